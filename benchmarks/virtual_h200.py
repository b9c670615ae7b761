"""A model of an H200, not a measurement: the real loop of a run around a model that only adds time to two clocks.

    PYTHONPATH=. python -m benchmarks.virtual_h200 --out benchmarks/results/virtual_h200.json --as after

Real: Engine, Flow, TextSession, TextStream, the slots of the cache, searches, batch sizes. Modelled: what the host and
the device spend in each part, from published figures of kernels (`COSTS`). The host enqueues work, and waits where the
real code reads from the device; the device computes what is enqueued, in order. Images are decoded in no time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from blip2cap.decode.image import Decoded
from blip2cap.engine.read_ahead import in_batches
from blip2cap.engine.run import Engine, run
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2 import beams, search, text_session
from blip2cap.models.blip2.cache import Cache, CacheAllocator
from blip2cap.models.blip2.stream import TextRow, Tokens
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.records import Generated, ImageRef
from blip2cap.stopwatch import Stopwatch
from blip2cap.tasks.base import Request
from blip2cap.tasks.caption import Caption

_END, _OTHER, _VOCABULARY = 1, 2, 16
_PROMPT = 4
"""Tokens of the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds on one H200 for opt-2.7b in bfloat16."""

    vision: float = 0.96e-3
    """An image in the vision encoder: 650 TFLOP/s in its products."""
    qformer: float = 0.04e-3
    prefill: float = 0.31e-3
    step: float = 1.5e-3
    """A step without rows: reading the weights, small kernels."""
    step_row: float = 0.0094e-3
    """The products of one row of a step."""
    step_cache: float = 0.00586e-3
    """Reading the keys and values of one row of greedy decoding; other shapes in proportion to their positions."""
    choose: float = 0.1e-3
    choose_beams: float = 0.3e-3
    choose_beams_row: float = 1.2e-6
    move: float = 327_680 * 2 * 2 / 4e12
    """Copying one position of one row of the cache to a buffer and back, at 4 TB/s."""
    launch_vision: float = 3.5e-3
    """Host: 442 operations."""
    launch_qformer: float = 4.5e-3
    launch_prefill: float = 4e-3
    launch_step: float = 0.15e-3
    """Host: replaying a graph, and what surrounds it."""
    launch_move: float = 50e-6
    launch_choose: float = 60e-6
    launch_choose_beams: float = 0.5e-3
    capture: float = 80e-3
    """Host: capturing one graph."""
    take: float = 75e-6
    """Host: an image from the queue of decoded ones to the batch."""
    stack: float = 30e-6
    """Host: copying an image into the buffer."""
    detokenise: float = 60e-6
    row: float = 30e-6
    write: float = 2e-3
    """Host: writing a batch of rows durably."""

    def slower(self, factor: float) -> Costs:
        """Return the costs with slower products."""
        return replace(
            self,
            vision=self.vision * factor,
            qformer=self.qformer * factor,
            prefill=self.prefill * factor,
            step_row=self.step_row * factor,
            launch_vision=self.launch_vision * 2,
            launch_qformer=self.launch_qformer * 2,
            launch_prefill=self.launch_prefill * 2,
        )


COSTS = Costs()


@dataclass(slots=True)
class Clock:
    """The time of the host and the time when the device has finished what was enqueued."""

    costs: Costs
    host: float = 0.0
    device: float = 0.0
    busy: float = 0.0

    def launch(self, host_s: float, device_s: float) -> None:
        """Enqueue work: the device begins with the first kernel, and ends no earlier than the host has launched all."""
        begin = max(self.device, self.host)
        self.host += host_s
        self.device = max(begin + device_s, self.host)
        self.busy += device_s

    def wait(self) -> None:
        """Let the host wait for everything enqueued."""
        self.host = max(self.host, self.device)


@dataclass(slots=True)
class Shapes:
    """Number of times that each shape reached the device."""

    vision: Counter[int] = field(default_factory=Counter)
    prefill: Counter[int] = field(default_factory=Counter)
    step: Counter[int] = field(default_factory=Counter)
    captures: Counter[int] = field(default_factory=Counter)


CLOCK = Clock(COSTS)


class VirtualCache(Cache):
    """A cache whose copies take time."""

    def move_rows(self, sources_N: torch.Tensor, targets_N: torch.Tensor) -> None:
        """Copy rows, after two launches."""
        CLOCK.launch(CLOCK.costs.launch_move, CLOCK.costs.move * self.length * len(sources_N))
        super().move_rows(sources_N, targets_N)


class VirtualDecoder(CacheAllocator):
    """Ends the text of an image after as many tokens as its features say; knows a row from its cache only."""

    def __init__(self, shapes: Shapes, greedy_length: int) -> None:
        super().__init__(torch.zeros(()))
        self.shapes, self.greedy_length = shapes, greedy_length

    def num_given(self, num_prefix: int) -> int:
        """Return the length of the prefix."""
        return num_prefix

    def bytes_per_row(self, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> int:
        """Return hardly anything: everything fits."""
        return 1

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> Cache:
        """Allocate a tiny cache; clearing a real one takes its time."""
        length = num_prefix + max_new_tokens * num_beams
        CLOCK.launch(1e-3, 327_680 * length * num_rows / 2e12)
        return VirtualCache.allocate(
            self._like, num_layers=1, num_rows=num_rows, num_heads=1, head_size=1, length=length, num_beams=num_beams
        )

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
    ) -> torch.Tensor:
        """Remember how long the texts will be; return their first logits."""
        num_texts = len(image_of_N)
        self.shapes.prefill[num_texts] += 1
        CLOCK.launch(CLOCK.costs.launch_prefill, CLOCK.costs.prefill * num_texts)
        lengths_N, rows = image_IQD[image_of_N, 0, 0], slice(first_row, first_row + num_texts)
        cache.own_L2RHSK[0, 0, rows, 0, 0, 0] = lengths_N
        cache.start(rows, 32 + _PROMPT)
        return _logits(lengths_N, torch.zeros(num_texts))

    def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Return the logits of an end or of another token."""
        num_rows, num_texts, costs = len(ids_N), len(positions_M), CLOCK.costs
        self.shapes.step[num_rows] += 1
        read = costs.step_cache * num_texts * cache.length / self.greedy_length
        CLOCK.launch(costs.launch_step, costs.step + costs.step_row * num_rows + read)
        cache.next_indices(positions_M)
        lengths_M, num_chosen_M = cache.own_L2RHSK[0, 0, :num_texts, 0, 0, 0], positions_M - (32 + _PROMPT) + 1
        return _logits(*(each.repeat_interleave(cache.num_beams) for each in (lengths_M, num_chosen_M)))


def _logits(lengths_N: torch.Tensor, num_chosen_N: torch.Tensor) -> torch.Tensor:
    logits_NV = torch.zeros(len(lengths_N), _VOCABULARY)
    logits_NV[:, 3:] = torch.linspace(-40, -30, _VOCABULARY - 3)
    end_N = num_chosen_N + 1 >= lengths_N
    logits_NV[:, _OTHER] = 40.0 * ~end_N
    logits_NV[:, _END] = 40.0 * end_N
    return logits_NV


class VirtualModel:
    """The parts of a loaded BLIP-2 that a run uses."""

    checkpoint = Checkpoint(name="virtual", folder=Path(), commit="", family="opt", config={})
    dtype, quantize, fallback_reason = "bfloat16", None, ""
    on_cpu, reads_late = False, True
    num_query_tokens, num_positions = 32, None
    device = torch.device("cpu")

    def __init__(self, options: GenerateOptions) -> None:
        self.watch, self.shapes = Stopwatch(), Shapes()
        self.decoder = VirtualDecoder(self.shapes, 32 + _PROMPT + options.max_new_tokens)
        config = SimpleNamespace(eos_token_id=_END)
        self.workspaces = text_session.Workspaces()
        self.network = SimpleNamespace(language_model=SimpleNamespace(generation_config=config))

    def start_capture(self) -> Any:
        """Count captures."""

        def capture(step: Any) -> Any:
            self.shapes.captures[len(step.args[0])] += 1
            CLOCK.wait()
            CLOCK.host += CLOCK.costs.capture
            return step

        return capture

    @property
    def image_input(self) -> Any:
        """Do without: images come decoded."""
        raise NotImplementedError

    def check(self, options: GenerateOptions, prompts: Sequence[str] = ()) -> None:
        """Accept all options."""

    def current(self) -> Any:
        """Do nothing: there is no GPU."""
        return nullcontext()

    def wait(self) -> None:
        """Let the host wait."""
        CLOCK.wait()

    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """Return the length of the text of each image as its features."""
        num_images, costs = min(1 << (len(images) - 1).bit_length(), 128), CLOCK.costs  # with those it is filled up by
        self.shapes.vision[num_images] += 1
        CLOCK.host += costs.stack * len(images)
        CLOCK.launch(costs.launch_vision, costs.vision * num_images)
        CLOCK.launch(costs.launch_qformer, costs.qformer * num_images)
        return torch.tensor([float(content[0]) for content in images]).view(-1, 1, 1)

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> Any:
        """Open a real session."""
        return text_session.TextSession(self, options, capacity=capacity)  # type: ignore[arg-type]

    def tokenise(self, text: str) -> Tokens:
        """Return a short prompt."""
        return Tokens(ids=[0] * _PROMPT, qformer_ids=[])

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of each row."""
        return torch.stack([row.image for row in rows]), torch.arange(len(rows))

    def given_ids(self, tokens: Tokens) -> list[int]:
        """Return the ids of image and prompt."""
        return [0] * self.num_query_tokens + tokens.ids

    def read_text(self, ids: list[int]) -> Generated:
        """Return any text; decoding it takes the host a while."""
        CLOCK.host += CLOCK.costs.detokenise
        return Generated(text="x", num_tokens=len(ids), finish_reason="stop")


class VirtualImages:
    """Decoded images, all of them different and ready at once."""

    def __init__(self, lengths: Sequence[int], batch: BatchOptions) -> None:
        self.lengths, self.size = lengths, batch.images()

    def batches(self, *, on_cpu: bool, stopped: Any) -> Iterator[Any]:
        """Yield batches."""
        return in_batches(self._items(), lambda: self.size.size)

    def _items(self) -> Iterator[Any]:
        for number, length in enumerate(self.lengths):
            CLOCK.host += CLOCK.costs.take
            decoded = Decoded(content=np.array([length, number], dtype=np.int32), width=1, height=1)
            yield Request(ref=ImageRef(path=str(number), name=str(number)), labels=(None,)), decoded

    def close(self) -> None:
        """Do nothing: there are no threads."""


class VirtualSink:
    """Takes the time of writing."""

    num_rows = 0

    def write(self, rows: Any) -> None:
        """Count rows."""
        self.num_rows += len(rows)
        CLOCK.host += CLOCK.costs.row * len(rows) + CLOCK.costs.write

    def finish(self, *, stopped: bool) -> None:
        """Do nothing: there is no manifest."""


class VirtualCopy:
    """A copy to the host, which the host may wait for while the device computes what came after it."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.done_at = values.clone(), CLOCK.device

    def tolist(self) -> list[Any]:
        """Wait, and return the values."""
        CLOCK.host = max(CLOCK.host, self.done_at) + 20e-6
        return self.values.tolist()


@contextmanager
def virtual_time(costs: Costs) -> Iterator[None]:
    """Let copies to the host and choices take time, and every clock show the host's time."""
    CLOCK.costs, CLOCK.host, CLOCK.device, CLOCK.busy = costs, 0.0, 0.0, 0.0
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        def choosing(search_class: Any, host_s: float, device_s: float, row_s: float) -> None:
            choose = search_class.choose

            def chosen(self: Any, scores_NV: torch.Tensor, first: int) -> Any:
                CLOCK.launch(host_s, device_s + row_s * len(scores_NV))
                return choose(self, scores_NV, first)

            replace(search_class, "choose", chosen)

        for name in ("perf_counter", "monotonic"):
            replace(time, name, lambda: CLOCK.host)
        for module in (search, beams):
            replace(module, "HostCopy", VirtualCopy)
        choosing(search.Greedy, costs.launch_choose, costs.choose, 0.0)
        choosing(beams.Beams, costs.launch_choose_beams, costs.choose_beams, costs.choose_beams_row)
        yield


def lengths_of_texts(num_images: int, spread: bool) -> list[int]:
    """Return the number of tokens of each text: 12, or 4 to 30, about 10."""
    numbers = random.Random(0)
    return [max(4, min(30, int(numbers.gauss(10, 2.5)))) if spread else 12 for _ in range(num_images)]


def one_run(model: VirtualModel, options: GenerateOptions, lengths: Sequence[int], costs: Costs) -> dict[str, Any]:
    """Caption images, and return the modelled figures."""
    batch, shapes = BatchOptions(), model.shapes
    task = Caption(template="a photo of", generate=options)
    engine = Engine(model=model, task=task, decode=DecodeOptions(), batch=batch)  # type: ignore[arg-type]
    for counter in (shapes.vision, shapes.prefill, shapes.step, shapes.captures):
        counter.clear()
    sink = VirtualSink()
    with virtual_time(costs):
        stats = run(engine, VirtualImages(lengths, batch), sink)  # type: ignore[arg-type]
        CLOCK.wait()
        seconds, busy = CLOCK.host, CLOCK.busy
    assert sink.num_rows == stats.num_ok == len(lengths)
    return {
        "images_per_s": round(len(lengths) / seconds),
        "device_busy": round(busy / seconds, 3),
        "captures": shapes.captures.total(),
        "texts_at_once": stats.capacity,
        "images_at_once": stats.batch_size,
        "shapes": {"vision": len(shapes.vision), "prefill": len(shapes.prefill), "step": len(shapes.step)},
    }


RUNS: dict[str, tuple[int, bool, int, Costs]] = {
    "bf16, 4,096 images": (4096, False, 1, COSTS),
    "bf16, 20,000 images": (20_000, False, 1, COSTS),
    "bf16, texts of 4 to 30 tokens, 4,096 images": (4096, True, 1, COSTS),
    "bf16, texts of 4 to 30 tokens, 20,000 images": (20_000, True, 1, COSTS),
    "fp8 with an eager quantiser, 4,096 images": (4096, False, 1, COSTS.slower(1.5)),
    "fp8 with an eager quantiser, 20,000 images": (20_000, False, 1, COSTS.slower(1.5)),
    "bf16, 5 beams, 4,096 images": (4096, False, 5, COSTS),
    "bf16, 5 beams, 20,000 images": (20_000, False, 5, COSTS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Model all runs, and write them under one name into the file, beside what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--as", dest="name", required=True, help="name of these figures in the file: before or after")
    arguments = parser.parse_args(argv)
    figures = {}
    for name, (num_images, spread, num_beams, costs) in RUNS.items():
        options = GenerateOptions(max_new_tokens=30 if spread else 12, num_beams=num_beams)
        model, lengths = VirtualModel(options), lengths_of_texts(num_images, spread)
        figures[name] = {"first run": one_run(model, options, lengths, costs)}
        if num_images == 4096:
            figures[name]["second run"] = one_run(model, options, lengths, costs)
        sys.stderr.write(f"{name}: {json.dumps(figures[name])}\n")
    content = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    content["what"] = (
        "A MODEL, NOT A MEASUREMENT: images/s that the loop of a run would reach on one H200 with opt-2.7b, if the "
        "parts took the seconds in `costs`. No GPU was used. benchmarks/virtual_h200.py says what is real and what is "
        "modelled. For `before`, a moved row took 20 microseconds in five launches, and beams copied their positions."
    )
    content["costs"] = {name: getattr(COSTS, name) for name in Costs.__dataclass_fields__}
    content[arguments.name] = figures
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
