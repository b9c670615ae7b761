"""The requests of several parts in one stream, and the sink for their rows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext

from blip2cap.errors import OutputLockedError
from blip2cap.jobs.job import suspects_message
from blip2cap.outputs.parts.part import Part, PartExistsError
from blip2cap.outputs.parts.plan import PartsPlan
from blip2cap.outputs.parts.store import Store
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Request, Worklist


class PartQueue:
    """Parts to make, one after the other; to be closed.

    A part is locked when its first request is taken, and becomes an object when its last row is written. Requests are
    taken in a separate thread; rows come in the order of the requests.
    """

    def __init__(
        self,
        store: Store,
        plan: PartsPlan,
        indices: Iterable[int],
        again: Set[int] = frozenset(),
        retry_only: Collection[str] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store, self.plan, self.say = store, plan, say
        self.again = again
        """Existing parts whose failed rows are retried."""
        self.retry_only = retry_only
        """Errors of the rows that are retried; empty: all."""
        self.todo = deque(indices)
        self.locked: deque[int] = deque()
        """Parts that another process had locked when their turn came."""
        self.num_lost = 0
        """Number of parts that another process finished first."""
        self.num_found = 0
        """Number of rows that unfinished parts had when their turn came."""
        self._open: deque[Part] = deque()
        self._part_of: dict[str, Part] = {}
        """Open parts by the names of the images that are asked for."""
        self._closed, self._lock = False, threading.Lock()

    def requests(self) -> Iterator[Request]:
        """Yield the missing rows of one part after the other."""
        while self.todo:
            part = self._claim(self.todo.popleft())
            if part is None:
                continue
            self.num_found += part.num_found
            if num_suspects := part.trace.num_suspects:
                self.say(suspects_message(part.name, num_suspects))
            with self._lock:
                if self._closed:  # in the meantime: a bucket may answer slowly
                    part.close()
                    return
                self._open.append(part)
            for request in Worklist(part).requests(part.refs, part.finished):
                self._part_of[request.ref.name] = part
                yield request

    def _claim(self, index: int) -> Part | None:
        """Lock a part; return None if it exists, or if another process has locked it (then add it to `locked`)."""
        try:
            return Part(self.store, self.plan, index, again=index in self.again, retry_only=self.retry_only)
        except OutputLockedError:
            self.locked.append(index)
        except PartExistsError:
            pass
        return None

    def suspects(self, ref: ImageRef) -> bool:
        """Return whether an earlier run died while it decoded this image."""
        part = self._part_of.get(ref.name)
        return part is not None and part.trace.suspects(ref)

    def decoding(self, ref: ImageRef) -> AbstractContextManager[None]:
        """Record an image while it is decoded."""
        part = self._part_of.get(ref.name)
        return nullcontext() if part is None else part.trace.decoding(ref)

    def slots_for(self, ref: ImageRef, process: int) -> tuple[str, int]:
        """Return the file and the first slot for an image of an open part that another process decodes."""
        return self._part_of[ref.name].trace.slots_for(ref, process)

    def crashed(self, process: int) -> bool:
        """Suspect the images that a process was decoding when it crashed; return True if there were any."""
        with self._lock:
            found = [part.trace.crashed(process) for part in self._open]
        return any(found)

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows to the parts that they belong to, and commit complete parts."""
        waiting = deque(rows)
        while waiting:
            self._commit_whole_parts()
            part = self._open[0]
            part.write([waiting.popleft() for _ in range(min(len(waiting), part.num_missing))])
        self._commit_whole_parts()

    def finish(self, *, stopped: bool) -> None:
        """Commit parts that have all their rows already."""
        self._commit_whole_parts()

    def restart(self) -> None:
        """Queue the parts that were locked again; comes after `close`."""
        self.todo, self.locked = self.locked, deque()
        self._closed = False

    def close(self) -> None:
        """Release incomplete parts; their rows are kept for the next run."""
        with self._lock:
            self._closed = True
            while self._open:
                self._release().close()

    def _commit_whole_parts(self) -> None:
        while self._open and self._open[0].num_missing == 0:
            self.num_lost += not self._open[0].commit()
            with self._lock:
                self._release()

    def _release(self) -> Part:
        part = self._open.popleft()
        for ref in part.refs:
            self._part_of.pop(ref.name, None)
        return part
