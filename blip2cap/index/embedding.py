"""Embeds the chosen images of the inputs, by a run of the task `embed`: it isolates, stops and reports as any run."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from blip2cap.decode.read import read
from blip2cap.errors import UsageError
from blip2cap.index.changes import digest
from blip2cap.index.images import DIGEST_BYTES
from blip2cap.index.job import IndexJob
from blip2cap.jobs.job import Job, Listener, Outcome
from blip2cap.models.base import MATCHING_MODELS, Checkpoint, Model
from blip2cap.models.registry import FAMILIES
from blip2cap.options import OutputOptions, SourceOptions
from blip2cap.outputs.files import OS_FILES, Files
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.records import ImageRef
from blip2cap.rows import row_key
from blip2cap.source.inputs import ImageStream, Source

if TYPE_CHECKING:
    from blip2cap.tasks.base import Task

_RECORD = struct.Struct(f"<I{DIGEST_BYTES}s")


class Embedder(Protocol):
    """Makes the rows of images."""

    def settings(self, source: Source) -> dict[str, Any]:
        """Return the settings of its rows, without the dtype. Raises ModelError or UsageError."""

    def run(self, source: Source, out: Path, dtype: str) -> Outcome:
        """Embed all images of `source` into a Parquet file; `dtype` is that of the model, or auto."""


class RunEmbedder:
    """Embeds by a run with the model of a job, or with a loaded one."""

    def __init__(
        self, job: IndexJob, listener: Listener, stopped: Callable[[], bool], model: Model | None = None
    ) -> None:
        self._job, self._listener, self._stopped, self._model = job, listener, stopped, model
        self._checkpoint: Checkpoint | None = None if model is None else model.checkpoint

    def settings(self, source: Source) -> dict[str, Any]:
        """Find the checkpoint, and return the settings of its rows."""
        from blip2cap.models.checkpoint import find

        if self._checkpoint is None:
            self._checkpoint = find(self._job.model, say=self._listener.say, quiet=self._listener.quiet)
        family = FAMILIES[self._checkpoint.family]
        if "match" not in family.tasks:
            raise UsageError(
                f"--model {self._checkpoint.name}: a model of the family {family.name}, which has no vectors of texts "
                f"to search with. For an index, use {MATCHING_MODELS}."
            )
        job = self._run_job("rows.parquet").for_checkpoint(self._checkpoint)
        return job.settings(source) | job.model_settings(self._checkpoint)

    def run(self, source: Source, out: Path, dtype: str) -> Outcome:
        """Run the task; what it raises goes through."""
        from blip2cap.jobs.run import run_job

        job = self._run_job(str(out))
        job = replace(job, model=replace(job.model, dtype=dtype))
        return run_job(job, listener=self._listener, stopped=self._stopped, model=self._model, source=source)

    def _run_job(self, out: str) -> Job:
        job = self._job
        return Job(
            task=embed_task(),
            source=job.source,
            output=OutputOptions(out=out),
            model=job.model,
            decode=job.decode,
            batch=job.batch,
            workers=job.workers,
        )


def embed_task() -> Task:
    """Return the task whose rows an index holds."""
    from blip2cap.tasks.embed import Embed

    return Embed(what="queries", dtype="float16")


class ChosenImages(Source):
    """The inputs of an index without the images that it has; notes the hashes of the others as they are read."""

    def __init__(
        self, options: SourceOptions, stdin: BinaryIO | None, chosen: Mapping[str, int], job: IndexJob, digests: Path
    ) -> None:
        super().__init__(options, stdin)
        self.chosen, self.decode, self.digests = chosen, job.decode, digests
        self._lock = threading.Lock()

    def stream(self, *, ordered: bool = True) -> ImageStream:
        """Begin to walk the inputs; only the chosen images are yielded."""
        return _ChosenStream(self, ordered=ordered or self.options.limit is not None)

    def read(self, ref: ImageRef, number: int) -> bytes:
        """Read an image and note the hash of its bytes, without waiting for the disk: one that is lost costs time."""
        data = read(ref, self.decode)
        with self._lock, open(self.digests, "ab", buffering=0) as file:
            file.write(_RECORD.pack(number, digest(data)))
        return data


class _ChosenStream(ImageStream):
    """One walk through the inputs that leaves out what was not chosen."""

    def __init__(self, source: ChosenImages, *, ordered: bool) -> None:
        super().__init__(source, ordered=ordered)
        self._refs = islice(self._chosen(source, self._refs), None)

    def _chosen(self, source: ChosenImages, refs: Iterator[ImageRef]) -> Iterator[ImageRef]:
        for ref in refs:
            number = source.chosen.get(row_key(*ref.names, None))
            if number is not None:
                yield _noted(source, ref, number)


def _noted(source: ChosenImages, ref: ImageRef, number: int) -> ImageRef:
    return replace(ref, load=lambda: source.read(ref, number), offset=None, num_bytes=None)


def read_digests(path: Path, num_images: int) -> dict[int, bytes]:
    """Return the hashes by the number of the image; a torn last record is left out, as are all that cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    whole = data[: len(data) - len(data) % _RECORD.size]
    return {number: found for number, found in _RECORD.iter_unpack(whole) if number < num_images}


def finish_rows(out: Path, files: Files = OS_FILES) -> dict[str, Any] | None:
    """Complete the Parquet file of a run that was stopped or killed with the rows it has, and return their settings.

    None if it has no row. Raises OutputRefusedError if it is damaged, OutputError if it cannot be written.
    """
    with closing(ParquetSink(out, files=files)) as sink:
        made_with = sink.made_with
        sink.finish()
    return None if made_with is None or not os.path.exists(out) else dict(made_with)
