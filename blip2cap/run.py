"""The loop: tasks -> decoded images -> texts -> rows -> sink, timed. It knows all stages and does no work itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from blip2cap.batch import decode_ahead, in_batches
from blip2cap.decode import Decoded, Pixels, decode, read
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions, GenerateOptions
from blip2cap.plan import Ask, Task
from blip2cap.records import Generated, ImageRef, Prompt, Row
from blip2cap.sink import Sink

Item = tuple[Task, Decoded | ImageError]


class TextModel(Protocol):
    """What the loop needs of a model; `model.blip2.Blip2` is one."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""

    def encode(self, images: Sequence[Pixels]) -> Any:
        """Run the image side; raises MemoryError if it does not fit."""

    def generate(
        self, features: Any, prompts: Sequence[Prompt], options: GenerateOptions, *, max_prompts: int
    ) -> list[list[Generated] | ImageError]:
        """Run the text side; raises MemoryError if it does not fit."""


@dataclass(kw_only=True, slots=True)
class Summary:
    """What a run did."""

    num_images: int = 0
    """Images that went through this run."""
    num_ok: int = 0
    """Rows written with status ok."""
    failed: Counter[str] = field(default_factory=Counter)
    """Rows written with status failed, by error."""
    seconds: float = 0.0
    """From the first decode to the last write."""
    decode_s: float = 0.0
    """Of that, waiting for decoded images."""
    model_s: float = 0.0
    write_s: float = 0.0

    @property
    def num_failed(self) -> int:
        """Rows written with status failed."""
        return self.failed.total()


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A model with the options of one run."""

    model: TextModel
    generate: GenerateOptions
    decode: DecodeOptions
    batch_size: int
    """Images, and texts, that go through the model at once."""
    on_failure: Callable[[ImageRef, ImageError], None] = lambda ref, error: None
    """Told of every image that fails, and of every text that could not be made."""

    def row_batches(
        self, tasks: Iterable[Task], summary: Summary, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield the rows of each batch in the order of the tasks; what it took is added to `summary`."""
        started = mark = time.monotonic()
        items = decode_ahead(
            tasks,
            lambda task: task.ref,
            lambda ref: decode(read(ref, self.decode), self.model.image_size, self.decode),
            num_threads=self.decode.threads,
            num_ahead=2 * self.batch_size + self.decode.threads,
            stopped=stopped,
        )
        for batch in in_batches(items, self.batch_size):
            decoded = time.monotonic()
            rows = self.rows(batch)
            done = time.monotonic()
            summary.decode_s += decoded - mark
            summary.model_s += done - decoded
            summary.num_images += len(batch)
            for row in rows:
                if row.status == "ok":
                    summary.num_ok += 1
                else:
                    summary.failed[row.error] += 1
            try:
                yield rows
            finally:
                mark = time.monotonic()
                summary.write_s += mark - done
                summary.seconds = mark - started

    def rows(self, batch: Sequence[Item]) -> list[Row]:
        """Make the rows of one batch, in the order of its items and what is asked of each."""
        return self._rows(batch, self.batch_size)

    def _rows(self, batch: Sequence[Item], max_prompts: int) -> list[Row]:
        """Make the rows of one batch; when memory runs out, of its halves, down to one text that does not fit alone."""
        try:
            return self._generate(batch, max_prompts)
        except MemoryError as error:
            detail = f"the model has no room for it: {error}"
        # Outside `except`: there the error would still hold every tensor of the batch that did not fit.
        good = [index for index, (_, image) in enumerate(batch) if isinstance(image, Decoded)]
        if len(good) > 1:
            middle, fewer = good[len(good) // 2], max(1, max_prompts // 2)
            return self._rows(batch[:middle], fewer) + self._rows(batch[middle:], fewer)
        if fewer := min(max_prompts, len(batch[good[0]][0].asks)) // 2:
            return self._rows(batch, fewer)
        failed = ImageError("out_of_memory", detail)
        return self._generate([(task, failed if isinstance(image, Decoded) else image) for task, image in batch], 1)

    def _generate(self, batch: Sequence[Item], max_prompts: int) -> list[Row]:
        images: list[Pixels] = []
        prompts: list[Prompt] = []
        for task, image in batch:
            if isinstance(image, Decoded):
                for ask in task.asks:
                    name = f"{task.ref.name}\0{ask.question or ''}".encode("utf-8", "surrogateescape")
                    prompts.append(Prompt(image=len(images), text=ask.prompt, name=name.hex()))
                images.append(image.pixels_HWC)
        texts: Iterator[list[Generated] | ImageError] = iter(())
        if images:
            features = self.model.encode(images)
            texts = iter(self.model.generate(features, prompts, self.generate, max_prompts=max_prompts))
        return [self._row(task, ask, image, texts) for task, image in batch for ask in task.asks]

    def _row(
        self, task: Task, ask: Ask, image: Decoded | ImageError, texts: Iterator[list[Generated] | ImageError]
    ) -> Row:
        said = next(texts) if isinstance(image, Decoded) else image
        size = (image.width, image.height) if isinstance(image, Decoded) else (0, 0)
        several = self.generate.num_captions > 1
        if isinstance(said, ImageError):
            if isinstance(image, Decoded) or ask is task.asks[0]:  # a bad image is told once, not for every question
                self.on_failure(task.ref, said)
            said_texts: tuple[str, ...] = ()
            first = Generated(text="", finish_reason="", num_tokens=0)
        else:
            said_texts = tuple(generated.text for generated in said)
            first = said[0]
        return Row(
            file_name=task.ref.file_name,
            file_name_b64=task.ref.file_name_b64,
            question=ask.question,
            text=first.text,
            texts=said_texts if several else None,
            status="failed" if isinstance(said, ImageError) else "ok",
            error=said.code if isinstance(said, ImageError) else "",
            finish_reason=first.finish_reason,
            num_tokens=first.num_tokens,
            width=size[0],
            height=size[1],
        )


def run(
    engine: Engine,
    tasks: Iterable[Task],
    sink: Sink,
    on_batch: Callable[[Summary], None] = lambda summary: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Summary:
    """Do all tasks and write their rows, batch by batch; `on_batch` is told after each, when its rows are safe.

    Ends early, after a whole batch, when `stopped` says so.
    """
    summary = Summary()
    with closing(engine.row_batches(tasks, summary, stopped)) as batches:
        for rows in batches:
            sink.write(rows)
            on_batch(summary)
            if stopped():
                break
    sink.finish()
    return summary
