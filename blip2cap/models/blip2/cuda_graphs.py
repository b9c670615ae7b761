"""Decoding steps as CUDA graphs: a step of a few milliseconds is one launch instead of a thousand.

A graph has a fixed number of rows and the addresses of one cache. All graphs are captured when a cache is allocated,
for few numbers of rows, and live as long as the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial

import torch

from blip2cap.models.blip2.cache import Cache
from blip2cap.models.blip2.decoders import Decoder
from blip2cap.models.device import free_bytes, memory_errors

_NUM_SIZES = 4
"""Number of graphs of a cache: each has half of the rows of the one before."""

_LITTLE = 256 << 20
"""With less free memory than this, a failed capture is an out-of-memory: the same step has just run."""

Step = Callable[[], torch.Tensor]
Capture = Callable[[Step], Step]
"""Records a step; returns a function that replays it, and returns the same tensor with new values."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for captures on a device: torch's default one belongs to the first GPU that was used.

    There is one for all caches, as libraries keep memory for each stream.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaCapture:
    """Captures for one cache."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.pool = device, _stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Run a step once, then record it. Raises MemoryError if it does not fit."""
        # The first run lets libraries allocate memory, which a capture does not allow. Replays repeat what it writes.
        current, graph = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph()
        self.stream.wait_stream(current)
        try:
            with memory_errors(), torch.cuda.stream(self.stream):
                step()
                # Not torch.cuda.graph: if the end of a capture fails, it hides the error before, and keeps its stream.
                graph.capture_begin(pool=self.pool)
                try:
                    values = step()
                except RuntimeError as error:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    if free_bytes(self.device) < _LITTLE:  # libraries have many names for it
                        raise MemoryError(f"capturing a step: {error}") from error
                    raise
                graph.capture_end()
        finally:  # also after an error: what is queued still writes into the cache
            current.wait_stream(self.stream)

        def replay() -> torch.Tensor:
            graph.replay()
            return values

        return replay


class GraphedDecoder:
    """A decoder whose steps are replayed."""

    def __init__(self, decoder: Decoder, start_capture: Callable[[], Capture]) -> None:
        self.decoder, self.start_capture = decoder, start_capture
        self.graphs: dict[int, Step] = {}
        self.num_given, self.bytes_per_row, self.prefill = decoder.num_given, decoder.bytes_per_row, decoder.prefill

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> Cache:
        """Allocate a cache, and capture its steps, the largest first: the smaller ones share its memory.

        If that does not fit, the error of the device is raised, and the graphs of the last cache remain.
        """
        cache = self.decoder.new_cache(num_rows, num_prefix, max_new_tokens, num_beams)
        ids_RB = cache.num_given_R.new_zeros((num_rows, num_beams))
        positions_R, capture, graphs = cache.num_given_R.new_zeros(num_rows), self.start_capture(), {}
        for size in reversed(self.step_sizes(num_rows)):
            ids_N, positions_M = ids_RB[:size].view(-1), positions_R[:size]
            graphs[size] = capture(partial(self.decoder.step, ids_N, positions_M, cache, cache.length))
        self.graphs, self.ids_RB, self.positions_R = graphs, ids_RB, positions_R
        return cache

    def step_sizes(self, num_rows: int) -> Sequence[int]:
        """Return the numbers of rows of a step."""
        return sorted({-(-num_rows // 2**power) for power in range(_NUM_SIZES)})

    def forget(self) -> None:
        """Release the graphs, which hold the addresses of the cache."""
        self.graphs = {}

    def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each beam of the first M rows; return the logits of the next token, [N, V].

        The next step overwrites the logits.
        """
        size = len(positions_M)
        self.ids_RB[:size], self.positions_R[:size] = ids_N.view(size, -1), positions_M
        return self.graphs[size]()
