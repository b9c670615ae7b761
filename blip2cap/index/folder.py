"""The folder of an index while it is brought up to date: its lock, and names that a killed update has left."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.index.catalog import NAME, Catalog
from blip2cap.outputs.files import Files, holding_lock, sync_folder

LOCK, TRACE = ".lock", ".decoding"
"""The lock; and, after a crash, the list of images that were being decoded, which the next run decodes apart."""
PLAN = "plan.arrow"
"""List of the images that an update embeds into a segment, while it does so."""
DIGESTS = "digests.bin"
"""Hashes of their bytes, as they are read."""
MERGING = "merging"
"""Mark of a segment that others are merged into, until index.json lists it: the others still have its images."""
_OURS = re.compile(
    r"(images-\d+\.arrow|codes-\d+\.npy|vectors\.npy|plan\.arrow|merging)(\.tmp)?|digests\.bin|embeddings\.parquet.*"
    r"|\.blip2cap-.*\.tmp"
)
"""Names that this program makes in the folder of a segment."""
_OF_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", "lost+found"}
"""Names that systems and file managers make in any folder."""
_FINISHED = re.compile(r"images-\d+\.arrow|vectors\.npy|embeddings\.parquet")


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
    busy = f"{folder} is being brought up to date by another process. Wait for it; searching is possible."
    with holding_lock(files, file, folder, busy=busy):
        yield


def _check_is_ours(folder: Path) -> None:
    """Refuse a folder with other files, before anything is written: it is a mistake to mix them with an index.

    Files that systems add by themselves are none, and a build that was killed is continued whatever was put beside it.
    """
    names = {*os.listdir(folder)}
    if NAME in names:
        Catalog.read(folder)
        return
    other = {name for name in names if not re.fullmatch(r"\.lock|\.decoding|index\.json\.tmp|\.blip2cap-.*\.tmp", name)}
    begun = LOCK in names and any(map(_is_segment, segment_folders(folder)))
    if other - _OF_SYSTEMS and not begun:
        raise OutputRefusedError(
            f"{folder}: a folder with other files, such as {min(other - _OF_SYSTEMS)}, and no {NAME}: no index. Use a "
            "new folder, or move the other files away."
        )


def _is_segment(path: Path) -> bool:
    """Return True if a folder is empty, as a kill may leave it, or holds files of a segment."""
    if path.is_symlink() or not path.is_dir():
        return False
    names = os.listdir(path)
    return not names or any(_OURS.fullmatch(name) for name in names)


def check_unlisted(folder: Path, catalog: Catalog | None) -> None:
    """Refuse an index with complete segments that index.json does not list: it was lost, or an older one is there.

    A segment of a killed update has a plan, and one of a killed merge a mark, which are removed only after index.json
    has listed the segment.
    """
    listed = {*(entry.name for entry in catalog.segments), *catalog.merged} if catalog else set()
    lost = []
    for path in segment_folders(folder):
        names = [] if path.name in listed else os.listdir(path)
        if not {PLAN, MERGING} & {*names} and any(_FINISHED.fullmatch(name) for name in names):
            lost.append(path.name)
    if lost:
        what = f"does not list {', '.join(lost)}" if catalog else f"is missing, but not {', '.join(lost)}"
        raise OutputRefusedError(
            f"{folder / NAME} {what}: complete segments with embeddings. Restore {NAME} from a copy; or move these "
            "folders away, and their images are embedded again; or use another --out."
        )


def segment_folders(folder: Path) -> list[Path]:
    """Return the folders of segments, listed in index.json or not, in their order."""
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"segment-\d{6,}", path.name) and path.is_dir())


def next_segment(folder: Path, catalog: Catalog | None) -> Path:
    """Return the folder of the next segment."""
    names = [path.name for path in segment_folders(folder)]
    names += [*(each.name for each in catalog.segments), *catalog.merged] if catalog else []
    number = 1 + max((int(name.removeprefix("segment-")) for name in names), default=0)
    return folder / f"segment-{number:06}"


def sweep(folder: Path, catalog: Catalog, files: Files) -> None:
    """Remove files that index.json does not name: what earlier updates have replaced, or a killed one has left.

    Other files and folders, such as @eaDir, are left alone. A file that cannot be removed now is no error: the next
    update tries again.
    """
    for each in catalog.segments:
        keep = {each.images, catalog.codes, "vectors.npy", "embeddings.parquet"}
        inner = folder / each.name
        with contextlib.suppress(OSError):
            _unlink([path for path in inner.iterdir() if _OURS.fullmatch(path.name) and path.name not in keep], files)
    for name in catalog.merged:
        with contextlib.suppress(OSError):
            remove_folder(folder / name, files)
    _unlink([*folder.glob(f"{NAME}.tmp"), *folder.glob(".blip2cap-*.tmp")], files)


def remove_folder(folder: Path, files: Files) -> None:
    """Remove the folder of a segment that has no image; one with other files is left, without ours."""
    _unlink([path for path in folder.iterdir() if _OURS.fullmatch(path.name)], files)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _unlink(paths: list[Path], files: Files) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            files.unlink(path)
