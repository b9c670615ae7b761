"""Files with the results of a search: checked before the search, written whole, renamed into place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blip2cap.errors import OutputError, UsageError
from blip2cap.outputs.files import OS_FILES, Files, replaceable, replacing_stream

HTML = (".html", ".htm")
"""Suffixes of pages."""


def check_target(
    path: str, *, flag: str, suffixes: Sequence[str], overwrite: bool = False, files: Files = OS_FILES
) -> None:
    """Check that a file can be written, before anything else is done.

    Raises UsageError for a name with another suffix, or an existing file without `overwrite`; OutputError for what is
    no regular file, or is in no folder.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise UsageError(f"{flag} {path}: must end in {' or '.join(suffixes)}.")
    if not target.parent.is_dir():
        raise OutputError(f"{flag} {path}: there is no folder {target.parent}. Make it first, or use another {flag}.")
    try:
        exists = replaceable(files, target) is not None
    except OSError as error:
        raise OutputError(f"{flag} {path}: cannot be written: {error.strerror}. Use another {flag}.") from error
    if exists and not overwrite:
        raise UsageError(f"{flag} {path}: exists. Use another {flag}, or --overwrite to replace it.")


@contextmanager
def writing(path: str, *, flag: str, files: Files = OS_FILES) -> Iterator[BinaryIO]:
    """Yield a stream that replaces a file when the block is complete. Raises OutputError if it cannot be written."""
    try:
        with replacing_stream(files, Path(path)) as stream:
            yield stream
    except OSError as error:
        if error.filename not in (None, path):
            raise  # of another file
        raise OutputError(f"{flag} {path}: cannot be written: {error.strerror}. Use another {flag}.") from error
