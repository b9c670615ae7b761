"""The scheduler: gives parts to actors, and handles the deaths of actors. It knows no Ray.

The parts in the store are the only state that lasts. Whatever is lost here costs a part that is made again.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from blip2cap.engine.run import RunStats
from blip2cap.errors import Blip2CapError, ClusterError, ImageError
from blip2cap.jobs.job import Listener
from blip2cap.jobs.parts_plan import PartsWork
from blip2cap.outputs.parts.plan import part_name
from blip2cap.records import ImageRef
from blip2cap.scale.events import (
    Assignment,
    Died,
    Event,
    Failed,
    Made,
    Placed,
    Pool,
    Ready,
    Refused,
    Reported,
)

MOST_DEATHS = 3
"""A part is given up when this number of actors has died over it; as many failed starts in a row slow down new ones."""
_MOST_LOST_NODES = 10
"""The same for actors that went with their node, for which a part is rarely to blame."""
_TICK_S = 0.5
_GROW_EVERY_S = 2.0
"""Time between two looks at the resources of the cluster."""
_START_AGAIN_S = 60.0
"""The same after MOST_DEATHS failed starts in a row: a node may have been repaired, or replaced."""
_LOOK_AGAIN_S, _MOST_LOOK_AGAIN_S = 1.0, 30.0
"""First and longest pause while another run has the last parts locked; doubled as long as none is free."""


@dataclass(kw_only=True, slots=True)
class _Actor:
    placed: bool = False
    ready: bool = False
    assignment: Assignment | None = None
    stats: RunStats = field(default_factory=RunStats)
    """Counts of its current part."""


@dataclass(kw_only=True, slots=True)
class Result:
    """Result of all parts."""

    stats: RunStats = field(default_factory=RunStats)
    num_found: int = 0
    num_lost: int = 0
    given_up: dict[int, str] = field(default_factory=dict)
    """Report about the last death, by part."""


class Scheduler:
    """Gives the missing parts to actors until all are made, given up, or the run is told to stop."""

    def __init__(self, pool: Pool, work: PartsWork, *, stall_s: float, clock: Callable[[], float] = time.monotonic):
        self.pool, self.work, self.stall_s, self.clock = pool, work, stall_s, clock
        self.listener: Listener = work.context.listener
        self.result = Result()
        self._todo, self._locked = deque(work.todo), deque[int]()
        self._actors: dict[int, _Actor] = {}
        self._deaths, self._lost_nodes = Counter[int](), Counter[int]()
        self._num_failed_starts = 0
        self._start_error: Blip2CapError | None = None
        self._began: float | None = None
        self._moved = self._looked = self.clock()
        self._look_again_s, self._look_again_at = _LOOK_AGAIN_S, 0.0
        self._num_unproductive_deaths = 0
        self._num_failures = 0
        """Number of parts in a row that ended with an error."""
        self._said: set[str] = set()
        self._stopping = False

    def run(self) -> Result:
        """Make all parts. Raises Blip2CapError if no actor can work, or if nothing moves any more."""
        try:
            while self._todo or self._locked or self._num_busy:
                if self.work.context.stopped() and self._stop():
                    break
                if not self._stopping:
                    self._look_at_locked_parts()
                    self._grow()
                    self._assign()
                events = self.pool.wait(_TICK_S)
                for event in events:
                    self._handle(event)
                if any(isinstance(event, Reported | Made) for event in events):
                    self.listener.progress(self._total())
                if self._num_failed_starts >= MOST_DEATHS and not self._has_placed and self._start_error is not None:
                    raise self._start_error
                self._check_stall()
        finally:
            if self._began is not None:
                self.listener.end()
        self.result.stats = self._total()
        return self.result

    @property
    def _has_placed(self) -> bool:
        return any(actor.placed for actor in self._actors.values())

    @property
    def _num_busy(self) -> int:
        return sum(actor.assignment is not None for actor in self._actors.values())

    def _stop(self) -> bool:
        """Tell all actors to stop after their batch; return True once none has a part."""
        if not self._stopping:
            self._stopping, self._moved = True, self.clock()
            for number, actor in list(self._actors.items()):
                if actor.assignment is not None:
                    self.pool.stop(number)
                else:
                    self._end(number)
        return self._num_busy == 0

    def _grow(self) -> None:
        """Ask for as many actors as fit, and on a growing cluster for one more, whose wait an autoscaler notices."""
        now, first, doubtful = self.clock(), not self._actors, self._num_failed_starts >= MOST_DEATHS
        if not first and now - self._looked < (_START_AGAIN_S if doubtful else _GROW_EVERY_S):
            return
        self._looked = now
        num_waiting = sum(not actor.placed for actor in self._actors.values())
        num_wanted = min(
            len(self._todo) + len(self._locked) + self._num_busy - len(self._actors),
            max(self.pool.num_free() + self.pool.grows, first) - num_waiting,
        )
        for _ in range(min(num_wanted, 1) if doubtful else num_wanted):
            self._actors[self.pool.start()] = _Actor()

    def _assign(self) -> None:
        for number, actor in self._actors.items():
            if self._todo and actor.ready and actor.assignment is None:
                index = self._todo.popleft()
                num_deaths = self._deaths[index]
                # On the disk that all nodes see, the trace of the part names the images that may be to blame.
                isolate = num_deaths > (0 if self.work.plan.store.shared else 1)
                actor.assignment = Assignment(index=index, again=index in self.work.again, isolate=isolate)
                self.pool.assign(number, actor.assignment)
        if not self._todo and not self._locked:  # those that wait in vain would keep resources from others
            for number, actor in list(self._actors.items()):
                if actor.assignment is None:
                    self._end(number)

    def _look_at_locked_parts(self) -> None:
        if self._locked and not self._todo and self.clock() >= self._look_again_at:
            self._look_again_at = self.clock() + self._look_again_s
            self._look_again_s = min(2 * self._look_again_s, _MOST_LOOK_AGAIN_S)
            self._todo, self._locked = self._locked, self._todo

    def _handle(self, event: Event) -> None:
        actor = self._actors.get(event.actor)
        if actor is None:
            return  # killed in the meantime
        match event:
            case Placed():
                actor.placed = True
            case Ready():
                self._begin(event, actor)
            case Reported():
                self._report(event, actor)
            case Made():
                self._finish(event, actor)
            case Refused():
                self._lose(event.actor)
                self._fail_start(event.error, f"{event.error.message} The run continues without it.", certain=True)
            case Failed():
                self._fail(event, actor)
            case Died():
                self._die(event, actor)

    def _begin(self, event: Ready, actor: _Actor) -> None:
        actor.ready, self._num_failed_starts = True, 0
        if self._num_unproductive_deaths < MOST_DEATHS:
            self._moved = self.clock()
        if self._began is None:
            self._began = self.clock()
            self.listener.say(event.line)
            self.listener.begin(lambda given_up: self.work.num_images)
        self._say_actors()

    def _report(self, event: Reported, actor: _Actor) -> None:
        progress = event.progress
        for line in progress.lines:
            if line not in self._said:  # each actor finds what is wrong with a model, in each part
                self._said.add(line)
                self.listener.say(line)
        for name, code, detail in progress.failures:
            self.listener.failure(ImageRef(path=name, name=name), ImageError(code, detail))
        if actor.assignment is not None:
            if progress.stats.num_images > actor.stats.num_images:
                self._note_progress()
            actor.stats = progress.stats

    def _finish(self, event: Made, actor: _Actor) -> None:
        assert actor.assignment is not None
        index, actor.assignment, actor.stats = actor.assignment.index, None, RunStats()
        result = event.result
        self.result.stats += result.stats
        self.result.num_found += result.num_found
        self.result.num_lost += result.num_lost
        if result.locked:
            self._locked.append(index)
            self._moved = self.clock()  # another run makes it, which may take long
            return
        self._look_again_s, self._num_failures = _LOOK_AGAIN_S, 0
        self._note_progress()

    def _fail(self, event: Failed, actor: _Actor) -> None:
        """Let another actor make the part; raise the error if there is none, or if others meet errors too.

        A full disk may be that of one node, or the one that all nodes write to.
        """
        self._num_failures += 1
        others = any(each.ready for each in self._actors.values() if each is not actor)
        if self._num_failures >= MOST_DEATHS or not others:
            raise type(event.error)(f"node {event.node}: {event.error.message}")
        self._replace(event.actor, actor, f"Node {event.node}: {event.error.message}", verb="failed")

    def _die(self, event: Died, actor: _Actor) -> None:
        if actor.assignment is not None:
            self._num_unproductive_deaths += 1
            self._replace(event.actor, actor, event.report, node_lost=event.node_lost)
            return
        self._lose(event.actor)
        if not event.node_lost:
            message = f"an actor could not start. {event.report}"
            error = ClusterError(f"{message} Fix the cause, then run the same command again.")
            self._fail_start(error, message, certain=False)

    def _replace(self, number: int, actor: _Actor, report: str, *, node_lost: bool = False, verb: str = "died") -> None:
        """Give the part of an actor to another one, unless it has cost too many."""
        assert actor.assignment is not None
        index = actor.assignment.index
        self._lose(number)
        self._lost_nodes[index] += node_lost
        self._deaths[index] += not node_lost
        name, num_deaths = part_name(index), self._deaths[index]
        if num_deaths >= MOST_DEATHS or self._lost_nodes[index] >= _MOST_LOST_NODES:
            self.result.given_up[index] = report
            self.listener.say(f"{name}: given up after {num_deaths + self._lost_nodes[index]} deaths. {report}")
        elif not self._stopping:
            self._todo.appendleft(index)
            self.listener.say(f"{name}: its actor {verb}, another one makes it. {report}")

    def _fail_start(self, error: Blip2CapError, line: str, *, certain: bool) -> None:
        """Count an actor that cannot work; `certain` if the next one on its node could not either."""
        self._num_failed_starts, self._start_error = self._num_failed_starts + 1, error
        self._looked = self.clock()
        if certain and not self._actors:  # others may not have a process yet
            raise error
        if self._num_failed_starts <= MOST_DEATHS:
            self.listener.say(line)
        if self._num_failed_starts == MOST_DEATHS:
            self.listener.say(
                f"{MOST_DEATHS} actors in a row could not start: from now on, one is tried every {_START_AGAIN_S:g} s"
            )

    def _lose(self, number: int) -> None:
        """Forget an actor that has gone, and the rows of its part: the store knows which of them are safe."""
        self._end(number)
        self._say_actors()

    def _end(self, number: int) -> None:
        del self._actors[number]
        self.pool.kill(number)

    def _note_progress(self) -> None:
        self._moved, self._num_unproductive_deaths = self.clock(), 0

    def _total(self) -> RunStats:
        total = self.result.stats
        for actor in self._actors.values():
            total = total + actor.stats
        total.seconds = 0.0 if self._began is None else self.clock() - self._began
        return total

    def _say_actors(self) -> None:
        self.listener.workers(sum(actor.ready for actor in self._actors.values()))

    def _check_stall(self) -> None:
        if self.clock() - self._moved <= self.stall_s:
            return
        raise ClusterError(
            f"nothing has moved for {self.stall_s:g} s, the limit of --ray-timeout: {self._state()} "
            f"{self.pool.describe()} Finished parts are safe: fix the cause, or raise --ray-timeout, and run the same "
            "command again."
        )

    def _state(self) -> str:
        actors = self._actors.values()
        states = {
            "wait for resources": sum(not actor.placed for actor in actors),
            "load the model": sum(actor.placed and not actor.ready for actor in actors),
            "make a part": self._num_busy,
            "wait for parts": sum(actor.ready and actor.assignment is None for actor in actors),
        }
        said = ", ".join(f"{count} {what}" for what, count in states.items() if count) or "none"
        busy = [actor.assignment.index for actor in actors if actor.assignment is not None]
        parts = f" Parts being made: {part_names(busy)}." if busy else ""
        if self._locked:
            parts += f" Parts that another run has locked: {part_names(self._locked)}."
        return f"of {len(actors)} actors, {said}.{parts}"


def part_names(indices: Iterable[int]) -> str:
    """Return the names of the first parts, and how many more there are."""
    names = [part_name(index) for index in sorted(indices)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
