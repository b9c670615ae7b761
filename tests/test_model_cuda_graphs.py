"""Captured steps: when they are captured, and what happens if they do not fit. Nothing here needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blip2cap.models.blip2 import cuda_graphs
from blip2cap.models.blip2.cuda_graphs import Capture, CudaCapture, GraphedDecoder, Step
from tests.test_model_stream import CPU, SPREAD, CountingDecoder, lengths_of, run


class Graphs:
    """Captures steps by keeping them; larger ones than `room` do not fit."""

    def __init__(self, room: int = 1000) -> None:
        self.room, self.sizes = room, list[int]()

    def start(self) -> Capture:
        return self.capture

    def capture(self, step: Any) -> Step:
        self.sizes.append(len(step.args[1]))
        if self.sizes[-1] > self.room:
            raise MemoryError("capture")
        replay: Step = step
        return replay


@pytest.mark.parametrize("num_beams", [1, 3])
def test_texts_are_the_same_with_captured_steps_of_four_sizes(num_beams: int) -> None:
    graphs = Graphs()
    decoder = GraphedDecoder(CountingDecoder(), graphs.start)
    results = run(decoder, SPREAD, reads_late=True, few_sizes=True, num_beams=num_beams, capacity=16, max_new_tokens=21)
    assert lengths_of(results) == SPREAD
    assert graphs.sizes == [16, 8, 4, 2], "the largest first, and once"


def test_a_capture_that_does_not_fit_halves_the_number_of_texts() -> None:
    graphs = Graphs(room=5)
    results = run(GraphedDecoder(CountingDecoder(), graphs.start), SPREAD[:40], capacity=16, few_sizes=True)
    assert lengths_of(results) == SPREAD[:40]
    assert graphs.sizes[:5] == [16, 8, 4, 2, 1]


class Streams:
    """torch.cuda with a stream that is current, and graphs whose capture ends with an error after an error."""

    def __init__(self) -> None:
        self.current: Any = SimpleNamespace(wait_stream=lambda stream: None)
        self.before = self.current

    def Stream(self, device: torch.device) -> Any:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda stream: None)

    def current_stream(self, device: torch.device) -> Any:
        return self.current

    def graph_pool_handle(self) -> tuple[int, int]:
        return 0, 0

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    class CUDAGraph:
        def capture_begin(self, pool: Any) -> None:
            """Begin."""

        def capture_end(self) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "free", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1 << 40, MemoryError),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"), 1 << 20, MemoryError),
        (RuntimeError("operation not permitted when stream is capturing"), 1 << 40, RuntimeError),
    ],
)
def test_a_capture_that_fails_says_why_and_leaves_its_stream(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, free: int, expected: type[Exception]
) -> None:
    streams, runs = Streams(), list[int]()
    for name in ("Stream", "current_stream", "graph_pool_handle", "stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(cuda_graphs, "free_bytes", lambda device: free)

    def step() -> torch.Tensor:
        runs.append(0)
        if len(runs) > 1:
            raise error
        return torch.zeros(1)

    with pytest.raises(expected, match=str(error)):
        CudaCapture(CPU)(step)
    assert streams.current is streams.before
