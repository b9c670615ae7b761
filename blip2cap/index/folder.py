"""The folder of an index while it is brought up to date: its lock, and names that a killed update has left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip2cap.errors import OutputError, OutputLockedError, OutputRefusedError
from blip2cap.index.catalog import NAME, Catalog
from blip2cap.outputs.files import Files, close_quietly, sync_folder

LOCK, TRACE = ".lock", ".decoding"
"""The lock; and, after a crash, the list of images that were being decoded, which the next run decodes apart."""
PLAN = "plan.arrow"
"""List of the images that an update embeds into a segment, while it does so."""
DIGESTS = "digests.bin"
"""Hashes of their bytes, as they are read."""


@contextmanager
def locked(folder: Path, files: Files) -> Iterator[None]:
    """Create the folder of an index unless it exists, and hold its lock.

    Raises OutputRefusedError if something else is there, OutputLockedError while another process has the lock,
    OutputError if the folder cannot be created or written.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            sync_folder(files, folder.absolute().parent)
        if not folder.is_dir():
            raise OutputRefusedError(f"{folder}: a file. Expected a folder for the index; use another --out.")
        _check_is_ours(folder)
        file = files.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError as error:
        raise OutputError(
            f"{folder} cannot be created: its parent folder does not exist. Create that first."
        ) from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}. Use another --out.") from error
    try:
        try:
            files.lock(file)
        except BlockingIOError as error:
            raise OutputLockedError(
                f"{folder} is being brought up to date by another process. Wait for it; searching is possible."
            ) from error
        except OSError as error:
            raise OutputError(f"{folder} cannot be locked: {error.strerror}. Use a file system with locks.") from error
        yield
    finally:
        close_quietly(files, file)


def _check_is_ours(folder: Path) -> None:
    """Refuse a folder with other files: it is a mistake to mix them with an index."""
    names = {*os.listdir(folder)}
    if names - {LOCK} and not names & {NAME, LOCK}:
        raise OutputRefusedError(f"{folder}: a folder with other files and no {NAME}. Use a new or empty folder.")


def segment_folders(folder: Path) -> list[Path]:
    """Return the folders of segments, listed in index.json or not, in their order."""
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"segment-\d{6,}", path.name))


def next_segment(folder: Path, catalog: Catalog | None) -> Path:
    """Return the folder of the next segment."""
    names = [path.name for path in segment_folders(folder)]
    names += [each.name for each in catalog.segments] if catalog else []
    number = 1 + max((int(name.removeprefix("segment-")) for name in names), default=0)
    return folder / f"segment-{number:06}"


def sweep(folder: Path, catalog: Catalog, files: Files) -> None:
    """Remove files that index.json does not name: what earlier updates have replaced, or a killed one has left."""
    for each in catalog.segments:
        keep = {each.images, catalog.codes, "vectors.npy", "embeddings.parquet"}
        inner = folder / each.name
        for path in inner.iterdir():
            if path.name not in keep:
                with contextlib.suppress(FileNotFoundError):
                    files.unlink(path)
    for path in folder.glob(".blip2cap-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            files.unlink(path)


def remove_folder(folder: Path) -> None:
    """Remove the folder of a segment that no index.json names."""
    shutil.rmtree(folder)
