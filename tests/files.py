"""File operations that fail, end the process, or are recorded; they work on real files."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blip2cap.outputs.files import OsFiles

OPERATIONS = frozenset(
    "open read write fdatasync fsync ftruncate lock close fstat stat replace unlink".split()  # noqa: SIM905
)


class Watched(OsFiles):
    """Real files; every operation goes through `around`, which may leave it out."""

    def __getattribute__(self, name: str) -> Any:
        operation = super().__getattribute__(name)
        return partial(self.around, name, operation) if name in OPERATIONS else operation

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Do it."""
        return operation(*arguments)


class FastFiles(Watched):
    """Real files; nothing waits for the disk. For tests that write hundreds of files."""

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Do it, unless it is waiting."""
        return None if name in ("fsync", "fdatasync") else super().around(name, operation, *arguments)


class Counting(FastFiles):
    """Lists the operations that a run does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Note it and do it."""
        self.names.append(name)
        return super().around(name, operation, *arguments)


class Failing(Counting):
    """One operation fails, or that one and every later one; a `short` one takes one byte."""

    def __init__(self, at: int, error: int | None, *, ever_after: bool = False, only: str = "") -> None:
        super().__init__()
        self.at, self.error, self.ever_after, self.only = at, error, ever_after, only
        self.num_fired = 0

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Fail, if it is time; a close that fails has closed, as on Linux."""
        number = len(self.names) if not self.only else self.names.count(self.only)
        due = self.only in ("", name) and (number >= self.at if self.ever_after else number == self.at)
        if not due:
            return super().around(name, operation, *arguments)
        self.num_fired += 1
        if self.error is None:
            return super().around(name, operation, *shortened(name, arguments))
        self.names.append(name)
        if name == "close":
            operation(*arguments)
        raise OSError(self.error, os.strerror(self.error))


def shortened(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shorten a read or write to a single byte."""
    if name == "write":
        return arguments[0], memoryview(arguments[1])[:1]
    return (arguments[0], 1) if name == "read" else arguments


class Killed(BaseException):
    """The process has ended: no further operation takes effect."""


class Killing(Counting):
    """Ends the process at one operation: before it, after it, or in the middle of a write."""

    def __init__(self, at: int, when: str) -> None:
        super().__init__()
        self.at, self.when = at, when
        self.dead = False
        self.open_files: set[int] = set()

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Do it, or die; what is open is closed by the system, and its locks with it."""
        if self.dead:
            raise Killed
        due = len(self.names) == self.at
        if due and self.when == "before":
            self.die()
        if due and self.when == "within" and name == "write":
            operation(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2])
            self.die()
        try:
            result = super().around(name, operation, *arguments)
        except OSError:
            if due:
                self.die()
            raise
        if name == "open":
            self.open_files.add(result)
        if name == "close":
            self.open_files.discard(arguments[0])
        if due:
            self.die()
        return result

    def die(self) -> None:
        """End it."""
        self.dead = True
        for file in self.open_files:
            os.close(file)
        raise Killed


class PageCache(Counting):
    """Records operations that are not on the disk yet: `states` yields every folder that a power cut may leave now.

    Of a file: what was synced, then any part of the writes since, with zeros up to the length it had, cuts done or
    not. Of the folder: each name made, renamed or removed since it was synced, or not.
    """

    def __init__(self, folder: Path, on_change: Callable[[], None]) -> None:
        super().__init__()
        self.folder, self.on_change = folder, on_change
        self.kill_at: int | None = None
        """The process ends before this operation; what it has written is not lost by that."""
        self.paths: dict[int, Path] = {}
        self.nodes: dict[int, int] = {}
        """Open files by descriptor."""
        self.disk: dict[int, bytes] = {}
        """Content of each inode as it is for certain."""
        self.since: dict[int, list[bytes | int]] = {}
        """Changes of each inode since the last sync: bytes appended, or a length it was truncated to."""
        self.names_on_disk: dict[str, int] = {}
        self.names_since: list[dict[str, int | None]] = []
        for path in folder.iterdir():
            self.names_on_disk[path.name] = node = path.stat().st_ino
            self.disk[node] = path.read_bytes()

    @property
    def names_now(self) -> dict[str, int]:
        """The folder as the process sees it."""
        return changed(self.names_on_disk, self.names_since)

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Do it and remember it."""
        if len(self.names) == self.kill_at:
            for file in self.paths:
                os.close(file)
            self.paths.clear()
        if self.kill_at is not None and len(self.names) >= self.kill_at:
            raise Killed
        result = super().around(name, operation, *arguments)
        getattr(self, f"_{name}", lambda *rest: None)(result, *arguments)
        self.on_change()
        return result

    def _open(self, file: int, path: Path, flags: int) -> None:
        self.paths[file] = path
        if path == self.folder:
            return
        self.nodes[file] = node = os.fstat(file).st_ino
        if path.name not in self.names_now:
            # Its number may be that of a file that is gone: this one has nothing yet.
            self.names_since.append({path.name: node})
            self.disk[node], self.since[node] = b"", []
        if flags & os.O_TRUNC:
            self.since.setdefault(node, []).append(0)

    def _close(self, result: None, file: int) -> None:
        del self.paths[file]

    def _write(self, taken: int, file: int, data: Any) -> None:
        self.since.setdefault(self.nodes[file], []).append(bytes(data)[:taken])

    def _ftruncate(self, result: None, file: int, length: int) -> None:
        self.since.setdefault(self.nodes[file], []).append(length)

    def _fsync(self, result: None, file: int) -> None:
        if self.paths[file] == self.folder:
            self.names_on_disk, self.names_since = self.names_now, []
        else:
            node = self.nodes[file]
            self.disk[node], self.since[node] = now(self.disk[node], self.since.get(node, [])), []

    _fdatasync = _fsync

    def _replace(self, result: None, source: Path, target: Path) -> None:
        self.names_since.append({source.name: None, target.name: self.names_now[source.name]})

    def _unlink(self, result: None, path: Path) -> None:
        self.names_since.append({path.name: None})

    def states(self, cuts: Callable[[str, bytes], Iterable[int]]) -> Iterator[dict[str, bytes]]:
        """Yield names with content; `cuts` says where an append may end."""
        for happened in itertools.product((False, True), repeat=len(self.names_since)):
            names = changed(self.names_on_disk, list(itertools.compress(self.names_since, happened)))
            contents = [
                dict.fromkeys(possible(self.disk[node], self.since.get(node, []), partial(cuts, name)))
                for name, node in names.items()
            ]
            for content in itertools.product(*contents):
                yield dict(zip(names, content, strict=True))


def changed(names: dict[str, int], changes: list[dict[str, int | None]]) -> dict[str, int]:
    """Apply changes to the names in a folder."""
    for change in changes:
        after = {**names, **change}
        names = {name: node for name, node in after.items() if node is not None}
    return names


def now(content: bytes, changes: list[bytes | int]) -> bytes:
    """Apply changes to the content of a file."""
    for change in changes:
        content = content[:change] if isinstance(change, int) else content + change
    return content


def possible(content: bytes, changes: list[bytes | int], cuts: Callable[[bytes], Iterable[int]]) -> Iterator[bytes]:
    """Yield what a file may hold if the power goes: changes up to one of them, of an append a part, or zeros for it."""
    for change in changes:
        yield content
        if isinstance(change, bytes):
            for cut in cuts(change):
                yield content + change[:cut]
                yield content + change[:cut] + b"\0" * (len(change) - cut)
        content = now(content, [change])
    yield content


ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR, "short": None}
