"""Vectors of texts: one table, written whole, as texts take a thousandth of the time of images.

Covered: .parquet, .jsonl and standard output. Not covered: continuing a run that was stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blip2cap.column_types import Vector
from blip2cap.errors import OutputError, OutputRefusedError, UsageError
from blip2cap.jobs.job import Listener
from blip2cap.models.base import MATCHING_MODELS
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load
from blip2cap.options import Kind, ModelOptions, OutputOptions
from blip2cap.outputs.export.tables import parquet_rows
from blip2cap.outputs.files import OS_FILES, replacing_stream
from blip2cap.outputs.journal import open_locked
from blip2cap.outputs.open import files_of
from blip2cap.rows import Column, Row, Schema
from blip2cap.tasks.embed import Embed

if TYPE_CHECKING:
    import numpy as np

_AT_ONCE = 256
"""Number of texts whose vectors are held in memory."""
_SETTINGS = b"blip2cap.texts"
"""Key of the settings in the metadata of a Parquet file."""


def check_texts_output(task: Embed, output: OutputOptions) -> None:
    """Raise UsageError or OutputRefusedError for options that vectors of texts do not have, or an existing file."""
    if task.what != "pooled":
        raise UsageError(f"--what {task.what} and --texts exclude each other: a text has one vector. Leave --what out.")
    if output.kind is Kind.PARTS:
        raise UsageError(f"--out {output.out}: vectors of texts are one file. Use a .parquet or .jsonl --out.")
    if output.retries or output.same_inputs:
        raise UsageError("--retry-failed, --retry-only and --same-inputs are for images. Leave them out.")
    existing = next(filter(os.path.lexists, files_of(output.out)), None)
    if existing is not None and not output.overwrite:
        raise OutputRefusedError(
            f"{existing} exists, and vectors of texts are not added to a file. Use another --out, or --overwrite."
        )


def embed_texts(
    texts: Sequence[str],
    *,
    task: Embed,
    model: ModelOptions,
    output: OutputOptions,
    listener: Listener,
    stdout: BinaryIO | None = None,
) -> None:
    """Write a row with the columns `text` and `embedding` for each text. Raises Blip2CapError.

    An exception leaves an existing file as it was.
    """
    check_texts_output(task, output)
    checkpoint = find(model, say=listener.say, quiet=listener.quiet)
    if "match" not in FAMILIES[checkpoint.family].tasks:
        raise UsageError(f"--model {checkpoint.name}: has no vectors of texts. To embed texts, use {MATCHING_MODELS}.")
    task = task.for_checkpoint(checkpoint, FAMILIES[checkpoint.family])
    schema = Schema((Column("text"), Column("embedding", Vector(task.shape, task.dtype))))
    listener.say(f"loading {checkpoint.name} ...")
    loaded: Any = load(checkpoint, replace(model, texts_only=True))
    loaded.check_texts(texts)
    settings = {"command": task.name, **task.settings(), "model": checkpoint.name, "model_commit": checkpoint.commit}
    with _sink(output, schema, settings, stdout) as write:
        for batch in (texts[first : first + _AT_ONCE] for first in range(0, len(texts), _AT_ONCE)):
            vectors: np.ndarray = loaded.embed_texts(batch, normalised=not task.raw)
            for text, vector in zip(batch, vectors.astype(task.dtype), strict=True):
                write(schema.row(text=text, embedding=vector))


@contextmanager
def _sink(
    output: OutputOptions, schema: Schema, settings: dict[str, Any], stdout: BinaryIO | None
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes a row. Raises OutputError."""
    try:
        with ExitStack() as stack:
            if output.kind is Kind.STREAM:
                assert stdout is not None
                file = stdout
            else:
                stack.enter_context(_locked(output))
                file = stack.enter_context(replacing_stream(OS_FILES, Path(output.out)))
            if output.kind is Kind.PARQUET:
                metadata = {_SETTINGS: json.dumps(settings).encode()}
                yield stack.enter_context(parquet_rows(file, schema, metadata))
            else:
                yield lambda row: _write(file, row)
                file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{output.out} cannot be written: {error.strerror}. Use another --out.") from error


@contextmanager
def _locked(output: OutputOptions) -> Iterator[None]:
    """Hold the lock of an output, as its runs do; at the end, remove journal and manifest of what was replaced."""
    path, *companions = files_of(output.out)
    locked = companions[0] if output.kind is Kind.PARQUET else path
    existed = os.path.lexists(locked)
    file = open_locked(OS_FILES, locked)
    try:
        yield
    except BaseException:
        if not existed:
            locked.unlink(missing_ok=True)
        raise
    else:
        for companion in companions:
            companion.unlink(missing_ok=True)
    finally:
        OS_FILES.close(file)


def _write(file: BinaryIO, row: Row) -> None:
    file.write(row.as_json())
