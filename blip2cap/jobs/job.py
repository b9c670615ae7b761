"""The description of a run and its outcome: plain values, without terminal and exit codes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2cap.errors import Blip2CapError, ImageError, InputError, UsageError
from blip2cap.models.registry import FAMILIES
from blip2cap.options import MAX_PIXELS, BatchOptions, DecodeOptions, Kind, ModelOptions, OutputOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.walk import UNREAD_PARTS
from blip2cap.tasks.base import WITHOUT_CAPTION, Request, Task, Worklist
from blip2cap.urls import is_http, shown
from blip2cap.workers.options import WorkerOptions

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats
    from blip2cap.models.base import Checkpoint
    from blip2cap.source.inputs import ImageStream, Source

Count = Callable[[Callable[[], bool]], int]
"""Counts the images to do; calls its argument from time to time, and stops when that returns True."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that defines a run. Raises UsageError for options that exclude each other."""

    task: Task
    source: SourceOptions
    output: OutputOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        if not self.decode.allow_http:
            for given in filter(is_http, self.source.inputs):
                raise UsageError(f"{shown(given)}: nothing is fetched from web servers without --allow-http. Add it.")
        if self.model.on_server and (self.workers.num_workers not in (None, 1) or self.workers.gpus):
            raise UsageError(
                f"--workers or --devices and --model {self.model.name} exclude each other: the server computes, and "
                "one process keeps --concurrency requests in flight. Leave the former out."
            )

    @property
    def kind(self) -> Kind:
        """Kind of the output."""
        return self.output.kind

    def for_checkpoint(self, checkpoint: Checkpoint) -> Job:
        """Return the job with what the family of its model decides."""
        family = FAMILIES[checkpoint.family]
        batch = self.batch
        if family.batch_size is not None:
            if batch.batch_size not in (None, family.batch_size):
                raise UsageError(
                    f"--batch-size {batch.batch_size} has no effect with --model {checkpoint.name}: its server makes "
                    "the batches. --concurrency sets how many requests it gets at once."
                )
            batch = BatchOptions(batch_size=family.batch_size)
        return replace(self, task=self.task.for_checkpoint(checkpoint, family), batch=batch)

    def settings(self, source: Source) -> dict[str, Any]:
        """Return everything that changes a result or a name, except what only the model knows."""
        inputs = {"decode": self.decode.mode}
        if source.root:
            inputs["input_root"] = os.fsencode(source.root).decode("utf-8", "backslashreplace")
        if self.source.image_column is not None:
            inputs["image_column"] = self.source.image_column
        return {"command": self.task.name, **self.task.settings(), "quantize": self.model.quantize, **inputs}

    def model_settings(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the settings that only the model knows; `for_checkpoint` comes first."""
        max_pixels = FAMILIES[checkpoint.family].max_pixels(self.model)
        size = {} if max_pixels is None else {"max_pixels": max_pixels}
        server = {"server": checkpoint.server} if checkpoint.server else {}
        names = {"model": checkpoint.name, "model_commit": checkpoint.commit, **server}
        return {**names, **size, **self.task.model_settings()}

    def estimate_tokens(self, num_rows: int) -> tuple[float, float]:
        """Return the numbers of tokens that a server reads and generates for rows: about, and at most.

        Each model has its own tokens; these are 28 x 28 pixels, as those of Qwen2-VL, and 4 characters.
        """
        from blip2cap.models.checkpoint import find
        from blip2cap.tasks.text import TextTask

        task = self.for_checkpoint(find(self.model)).task
        assert isinstance(task, TextTask), "other tasks do not generate text"
        prompts = [task.prompt(ImageRef(path="", name=""), label) for label in task.labels]
        num_prompt_tokens = sum(map(len, prompts)) / len(prompts) / 4
        num_image_tokens = (self.model.max_pixels or MAX_PIXELS) / 28**2
        num_texts = num_rows * task.generate.num_captions
        return num_texts * (num_image_tokens + num_prompt_tokens), num_texts * task.generate.max_new_tokens

    def known_settings(self, source: Source) -> dict[str, Any]:
        """Return the settings that are known without loading or downloading a model."""
        from blip2cap.models.checkpoint import PACKAGED, find

        settings = self.settings(source)
        if self.model.dtype != "auto":
            settings["dtype"] = self.model.dtype
        if self.model.name in PACKAGED or self.model.on_server or Path(self.model.name).expanduser().is_dir():
            checkpoint = find(self.model)
            return settings | self.for_checkpoint(checkpoint).model_settings(checkpoint)
        return settings | {"model": self.model.name, **self.task.model_settings()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Counts of the parts that belong to a run."""

    num_parts: int
    num_existing: int
    num_lost: int
    """Number of parts that another process finished first."""
    num_failed: int
    """Number of failed rows in all of them, whichever process made them; 0 if the run was stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of a run."""

    out: str
    num_images: int
    """Number of images found."""
    num_rows_before: int
    """Number of their rows that already existed."""
    num_failed_before: int
    """Number of their existing failed rows, without those that were retried."""
    num_failed_not_asked: int = 0
    """Number of existing failed rows of other images, which this run was not asked for."""
    skipped: Mapping[str, int]
    """Number of skipped entries, by reason."""
    damaged: tuple[str, ...]
    """Messages about archives that could not be read completely."""
    stats: RunStats | None
    """Counts and times; None if there was nothing to do."""
    stopped: bool = False
    parts: Parts | None = None
    """None for other outputs."""
    error: Blip2CapError | None = None
    """Error that came after the last row: the rows are safe, but the parts could not be counted or cleaned up."""

    @property
    def num_ok(self) -> int:
        """Number of ok rows written."""
        return self.stats.num_ok if self.stats else 0

    @property
    def failed(self) -> Counter[str]:
        """Number of failed rows written, by error."""
        return self.stats.failed if self.stats else Counter()

    @property
    def num_failed(self) -> int:
        """Number of failed rows written."""
        return self.failed.total()

    @property
    def complete(self) -> bool:
        """True if every input of this run has an ok row, and every archive and folder could be read."""
        unread = sum(self.skipped.get(reason, 0) for reason in UNREAD_PARTS)
        num_failed = self.parts.num_failed if self.parts else self.num_failed + self.num_failed_before
        return not (self.stopped or self.error or num_failed or unread)


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """Result of a dry run."""

    out: str
    num_images: int
    num_images_to_do: int
    num_rows_to_do: int
    num_rows_before: int
    num_failed_before: int = 0
    num_failed_not_asked: int = 0
    skipped: Mapping[str, int]
    damaged: tuple[str, ...]


class Listener:
    """Receives the messages and the progress of a run; a subclass overrides the methods that it needs."""

    quiet = True
    """False: a bar is drawn on the terminal while a model is downloaded."""

    def say(self, line: str) -> None:
        """Receive a line for the user; names in it may hold any character."""

    def begin(self, count: Count | None) -> None:
        """Called before the first image goes into the model; from here on, a stop completes the batch first.

        `count` counts the images to do; None if they cannot be counted in advance.
        """

    def progress(self, stats: RunStats) -> None:
        """Called when a batch of rows is safe."""

    def workers(self, num_alive: int) -> None:
        """Called when the number of processes that make rows has changed; never by a run in one process."""

    def failure(self, ref: ImageRef, error: ImageError) -> None:
        """Called when an image has failed."""

    def end(self) -> None:
        """Called after the last image, if `begin` was called."""


def count_requests(
    job: Job,
    source: Source,
    stream: ImageStream,
    worklist: Worklist,
    requests: Iterable[Request],
) -> DryRun:
    """Count what a run would do. Raises InputError if there is no image."""
    num_images_to_do = num_rows_to_do = 0
    for request in requests:
        num_images_to_do += 1
        num_rows_to_do += len(request.labels)
    skipped = all_skipped(stream, worklist)
    if worklist.num_images == 0:
        raise InputError(no_image(source, skipped, job.task))
    return DryRun(
        out=job.output.out,
        num_images=worklist.num_images,
        num_images_to_do=num_images_to_do,
        num_rows_to_do=num_rows_to_do,
        num_rows_before=worklist.num_finished,
        skipped=skipped,
        damaged=tuple(stream.damaged),
    )


def all_skipped(stream: ImageStream, worklist: Worklist) -> dict[str, int]:
    """Return the number of skipped entries by reason, with those of images that have no rows."""
    without = worklist.num_without_labels
    return {**stream.skipped, WITHOUT_CAPTION: without} if without else dict(stream.skipped)


def no_image(source: Source, skipped: Mapping[str, int], task: Task | None = None) -> str:
    """Return the message that no image was found, or none that has rows, with the number of skipped entries."""
    if task is not None and skipped.get(WITHOUT_CAPTION):
        example = next(iter(source.stream()), None) if source.repeatable else None
        message = task.no_labels(example.file_name if example else "")
        limit = source.options.limit
        return message if limit is None else f"{message} Only the first {limit} images were looked at (--limit)."
    given = shown(", ".join((*source.options.inputs, *source.options.files_from)))
    reasons = ", ".join(skipped_phrases(skipped))
    found = f"no image found in {given}" + (f" ({reasons})" if reasons else "")
    if skipped.get("archive"):
        return (
            f"{found}. Archives and tables in a folder are not opened; give them by name, e.g. "
            '"shards/{000..099}.tar" or shards/*.tar.'
        )
    if skipped.keys() & {"excluded", "not_included"}:
        return f"{found}. Check --include and --exclude."
    return f"{found}. Expected files like .jpg .png .webp; give files with other names one by one."


def skipped_phrases(skipped: Mapping[str, int]) -> list[str]:
    """Return a phrase for each reason for which entries were skipped."""
    return [f"skipped {count} {reason.replace('_', ' ')}" for reason, count in skipped.items()]


def suspects_message(where: str, num_suspects: int) -> str:
    """Return the message about images that an earlier run was decoding when it died."""
    one = num_suspects == 1
    images, they = ("1 image", "it") if one else (f"{num_suspects} images", "they")
    processes = "a separate process" if one else "separate processes"
    return f"{where}: an earlier run died while decoding {images}; {they} will be decoded in {processes}"
