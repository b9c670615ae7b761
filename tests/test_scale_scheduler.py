"""Who makes which part, and what happens to actors that die: with actors that are imitated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from blip2cap.engine.run import RunStats
from blip2cap.errors import Blip2CapError, ClusterError, ImageError, ModelError, OutputError
from blip2cap.jobs.job import Count, Listener
from blip2cap.jobs.parts import PartResult
from blip2cap.records import ImageRef
from blip2cap.scale.events import (
    Assignment,
    Died,
    Event,
    Failed,
    Made,
    Placed,
    Progress,
    Ready,
    Refused,
    Reported,
)
from blip2cap.scale.scheduler import Result, Scheduler

IMAGES_IN_A_PART = 10


def made(actor: int, *, num_images: int = IMAGES_IN_A_PART, locked: bool = False) -> Made:
    stats = RunStats(num_images=num_images, num_ok=num_images)
    return Made(actor=actor, result=PartResult(stats=stats, num_found=0, num_lost=0, locked=locked))


def died(actor: int, *, node_lost: bool = False) -> Died:
    return Died(actor=actor, report="On node n: SIGSEGV.", node_lost=node_lost)


class Actors:
    """A pool whose actors do what `behave` returns for a part, at once; the clock moves with every wait."""

    grows = False

    def __init__(self, num_slots: int = 2, behave: Callable[[int, Assignment], Sequence[Event]] | None = None) -> None:
        self.num_slots, self.now = num_slots, 0.0
        self.behave = behave or (lambda actor, assignment: [made(actor)])
        self.starts: Callable[[int], Sequence[Event]] = lambda actor: [
            Placed(actor=actor),
            Ready(actor=actor, line="tiny on cpu"),
        ]
        self.alive: set[int] = set()
        self.waiting: list[int] = []
        self.most_alive, self.num_started = 0, 0
        self.assigned: list[tuple[int, Assignment]] = []
        self.stopped: list[int] = []
        self._events: list[Event] = []

    def clock(self) -> float:
        return self.now

    def num_free(self) -> int:
        return max(0, self.num_slots - len(self.alive - {*self.waiting}))

    def start(self) -> int:
        number, self.num_started = self.num_started, self.num_started + 1
        self.alive.add(number)
        self.waiting.append(number)
        self.most_alive = max(self.most_alive, len(self.alive))
        return number

    def assign(self, actor: int, assignment: Assignment) -> None:
        self.assigned.append((actor, assignment))
        self._events += self.behave(actor, assignment)

    def stop(self, actor: int) -> None:
        self.stopped.append(actor)
        self._events.append(made(actor, num_images=1))

    def kill(self, actor: int) -> None:
        self.alive.discard(actor)
        if actor in self.waiting:
            self.waiting.remove(actor)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        self.now += 1.0
        events, self._events = self._events, []
        while self.waiting and len(self.alive) - len(self.waiting) < self.num_slots:
            events += self.starts(self.waiting.pop(0))
        return events

    def describe(self) -> str:
        return "1 node with 0 GPU (0 in use), 2 CPU (0 in use); an actor needs 1 CPU."


class Heard(Listener):
    """Notes what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures: list[tuple[str, str]] = []
        self.num_images: list[int] = []
        self.num_workers: list[int] = []
        self.begun = self.ended = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, count: Count | None) -> None:
        self.begun += 1

    def progress(self, stats: RunStats) -> None:
        self.num_images.append(stats.num_images)

    def workers(self, num_alive: int) -> None:
        self.num_workers.append(num_alive)

    def failure(self, ref: ImageRef, error: ImageError) -> None:
        self.failures.append((ref.file_name, error.code))

    def end(self) -> None:
        self.ended += 1


def schedule(
    actors: Actors,
    num_parts: int,
    *,
    heard: Heard | None = None,
    stopped: Callable[[], bool] = lambda: False,
    shared: bool = False,
    again: frozenset[int] = frozenset(),
    stall_s: float = 600,
) -> Result:
    context = SimpleNamespace(listener=heard or Heard(), stopped=stopped)
    plan = SimpleNamespace(store=SimpleNamespace(shared=shared))
    work: Any = SimpleNamespace(context=context, plan=plan, todo=range(num_parts), again=again, num_images=0)
    return Scheduler(actors, work, stall_s=stall_s, clock=actors.clock).run()


def parts_of(actors: Actors) -> list[int]:
    return [assignment.index for _, assignment in actors.assigned]


def test_every_part_is_made_once_by_as_many_actors_as_fit() -> None:
    actors, heard = Actors(num_slots=3), Heard()
    result = schedule(actors, 20, heard=heard)
    assert sorted(parts_of(actors)) == [*range(20)]
    assert actors.most_alive == 3
    assert {actor for actor, _ in actors.assigned} == {0, 1, 2}
    assert result.stats.num_images == 20 * IMAGES_IN_A_PART == heard.num_images[-1]
    assert (heard.begun, heard.ended) == (1, 1)
    assert max(heard.num_workers) == 3
    assert result.stats.seconds > 0


def test_there_are_no_more_actors_than_missing_parts() -> None:
    actors = Actors(num_slots=50)
    schedule(actors, 2)
    assert actors.num_started == 2


def test_actors_are_added_when_the_cluster_grows_and_one_waits_for_that() -> None:
    def grow(actor: int, assignment: Assignment) -> Sequence[Event]:
        actors.num_slots = 4
        return [made(actor)]

    actors = Actors(num_slots=1, behave=grow)
    actors.grows = True
    schedule(actors, 40)
    assert len({actor for actor, _ in actors.assigned}) == 4


def test_idle_actors_give_their_resources_back_while_the_last_part_is_made() -> None:
    def last_takes_long(actor: int, assignment: Assignment) -> Sequence[Event]:
        return [] if assignment.index == 3 else [made(actor)]

    actors = Actors(num_slots=2, behave=last_takes_long)
    with pytest.raises(ClusterError):
        schedule(actors, 4)
    assert len(actors.alive) == 1


def test_a_part_whose_actor_dies_is_made_by_another_actor() -> None:
    deaths = iter([True])
    actors = Actors(behave=lambda actor, given: [died(actor) if next(deaths, False) else made(actor)])
    heard = Heard()
    result = schedule(actors, 6, heard=heard)
    assert sorted(parts_of(actors)) == [0, *range(6)]
    assert len({actor for actor, given in actors.assigned if given.index == 0}) == 2
    assert not result.given_up
    assert "part-00000.parquet: its actor died, another one makes it. On node n: SIGSEGV." in heard.lines


@pytest.mark.parametrize(("shared", "isolated"), [(True, [False, True, True]), (False, [False, False, True])])
def test_images_of_a_part_over_which_actors_died_are_decoded_apart(shared: bool, isolated: list[bool]) -> None:
    actors = Actors(behave=lambda actor, given: [died(actor) if given.index == 1 else made(actor)])
    schedule(actors, 3, shared=shared)
    assert [given.isolate for _, given in actors.assigned if given.index == 1] == isolated
    assert not any(given.isolate for _, given in actors.assigned if given.index != 1)


def test_a_part_that_kills_three_actors_is_given_up_and_the_others_are_made() -> None:
    actors, heard = Actors(behave=lambda actor, given: [died(actor) if given.index == 1 else made(actor)]), Heard()
    result = schedule(actors, 5, heard=heard)
    assert parts_of(actors).count(1) == 3
    assert result.given_up == {1: "On node n: SIGSEGV."}
    assert result.stats.num_images == 4 * IMAGES_IN_A_PART
    assert "part-00001.parquet: given up after 3 deaths. On node n: SIGSEGV." in heard.lines


def test_a_part_is_not_to_blame_for_nodes_that_go_until_ten_have_gone() -> None:
    actors = Actors(behave=lambda actor, given: [died(actor, node_lost=True) if given.index == 1 else made(actor)])
    result = schedule(actors, 3)
    assert parts_of(actors).count(1) == 10
    assert [*result.given_up] == [1]
    assert not any(given.isolate for _, given in actors.assigned)


def test_rows_of_an_actor_that_died_are_not_counted() -> None:
    def behave(actor: int, given: Assignment) -> Sequence[Event]:
        stats = RunStats(num_images=7, num_ok=7)
        progress = Progress(stats=stats, failures=[("a.png", "corrupt", "bad")], lines=["a line"])
        return [Reported(actor=actor, progress=progress), died(actor) if actor == 0 else made(actor)]

    heard = Heard()
    result = schedule(Actors(num_slots=1, behave=behave), 2, heard=heard)
    assert heard.num_images == [0, IMAGES_IN_A_PART, 2 * IMAGES_IN_A_PART]
    assert result.stats.num_images == 2 * IMAGES_IN_A_PART
    assert heard.failures[0] == ("a.png", "corrupt")
    assert "a line" in heard.lines


def test_failed_rows_of_existing_parts_are_retried_there() -> None:
    actors = Actors()
    schedule(actors, 3, again=frozenset({2}))
    assert {given.index: given.again for _, given in actors.assigned} == {0: False, 1: False, 2: True}


def test_parts_that_another_run_has_locked_are_tried_again_less_and_less_often() -> None:
    times: list[float] = []

    def locked_for_a_minute(actor: int, given: Assignment) -> Sequence[Event]:
        if given.index != 1:
            return [made(actor)]
        times.append(actors.now)
        return [made(actor, num_images=0, locked=actors.now < 60)]

    actors = Actors(behave=locked_for_a_minute)
    result = schedule(actors, 3)
    assert result.stats.num_images == 3 * IMAGES_IN_A_PART - IMAGES_IN_A_PART
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert 4 <= len(gaps) <= 10
    assert gaps[-1] > gaps[0]


def test_a_run_on_which_nothing_moves_ends_with_what_is_known() -> None:
    actors, heard = Actors(behave=lambda actor, given: []), Heard()
    with pytest.raises(ClusterError) as stalled:
        schedule(actors, 5, heard=heard, stall_s=60)
    message = stalled.value.message
    assert "nothing has moved for 60 s, the limit of --ray-timeout" in message
    assert "of 2 actors, 2 make a part" in message
    assert "Parts being made: part-00000.parquet, part-00001.parquet." in message
    assert "an actor needs 1 CPU" in message
    assert "run the same command again" in message
    assert 60 <= actors.now < 70
    assert heard.ended == 1


def test_actors_that_never_get_resources_are_noticed_too() -> None:
    actors = Actors(num_slots=0)
    with pytest.raises(ClusterError, match="of 1 actors, 1 wait for resources"):
        schedule(actors, 5, stall_s=60)


def test_a_long_part_is_no_stall_while_its_images_go_on() -> None:
    class Slow(Actors):
        def wait(self, timeout_s: float) -> Sequence[Event]:
            events = [*super().wait(timeout_s)]
            if self.assigned:
                stats = RunStats(num_images=int(self.now))
                events.append(Reported(actor=0, progress=Progress(stats=stats, failures=[], lines=[])))
                if self.now > 300:
                    events.append(made(0))
            return events

    result = schedule(Slow(num_slots=1, behave=lambda actor, given: []), 1, stall_s=60)
    assert result.stats.num_images == IMAGES_IN_A_PART


def test_actors_that_load_again_and_again_are_no_progress() -> None:
    actors = Actors(num_slots=1, behave=lambda actor, given: [died(actor, node_lost=True)])
    with pytest.raises(ClusterError, match="nothing has moved"):
        schedule(actors, 100, stall_s=20)


def test_a_signal_stops_busy_actors_after_their_batch_and_ends_the_others() -> None:
    actors = Actors(num_slots=3, behave=lambda actor, given: [])
    result = schedule(actors, 9, stopped=lambda: len(actors.assigned) >= 3)
    assert actors.stopped == [0, 1, 2]
    assert len(actors.assigned) == 3
    assert result.stats.num_images == 3


def test_an_actor_that_dies_while_it_stops_is_not_replaced() -> None:
    class Dying(Actors):
        def stop(self, actor: int) -> None:
            self.stopped.append(actor)
            self._events.append(died(actor))

    actors = Dying(behave=lambda actor, given: [])
    schedule(actors, 9, stopped=lambda: len(actors.assigned) >= 2)
    assert actors.num_started == 2


def test_an_error_that_no_other_actor_is_spared_ends_the_run_with_its_class() -> None:
    full = OutputError("captions/ cannot be used: No space left on device.")
    actors = Actors(num_slots=5, behave=lambda actor, given: [Failed(actor=actor, node="n", error=full)])
    with pytest.raises(OutputError, match="node n: captions/ cannot be used: No space left"):
        schedule(actors, 9)
    assert len(actors.alive) > 1


def test_an_error_of_the_only_actor_ends_the_run_at_once() -> None:
    full = OutputError("captions/ cannot be used: No space left on device.")
    actors = Actors(num_slots=1, behave=lambda actor, given: [Failed(actor=actor, node="n", error=full)])
    with pytest.raises(OutputError, match="No space left"):
        schedule(actors, 9)
    assert len(actors.assigned) == 1


def test_an_error_of_one_node_costs_its_actor_and_another_one_makes_the_part() -> None:
    full = OutputError("the cache is full.")

    def behave(actor: int, given: Assignment) -> Sequence[Event]:
        return [Failed(actor=actor, node="n", error=full)] if actor == 1 else [made(actor)]

    actors, heard = Actors(num_slots=2, behave=behave), Heard()
    result = schedule(actors, 9, heard=heard)
    assert result.stats.num_images == 9 * IMAGES_IN_A_PART
    assert not result.given_up
    assert "part-00001.parquet: its actor failed, another one makes it. Node n: the cache is full." in heard.lines


def test_waiting_for_a_part_of_another_run_is_no_stall() -> None:
    def locked_for_an_hour(actor: int, given: Assignment) -> Sequence[Event]:
        return [made(actor, num_images=0, locked=actors.now < 3600)]

    actors = Actors(behave=locked_for_an_hour)
    assert not schedule(actors, 1, stall_s=60).given_up


def test_what_several_actors_find_is_said_once() -> None:
    progress = Progress(stats=RunStats(), failures=(), lines=["the first 10 texts are all empty"])
    actors = Actors(behave=lambda actor, given: [Reported(actor=actor, progress=progress), made(actor)])
    heard = Heard()
    schedule(actors, 6, heard=heard)
    assert heard.lines.count("the first 10 texts are all empty") == 1


def test_a_node_that_cannot_work_ends_the_run_if_it_is_the_only_one() -> None:
    actors = Actors(num_slots=1)
    actors.starts = lambda actor: [Placed(actor=actor), Refused(actor=actor, error=ModelError("n has none."))]
    with pytest.raises(ModelError, match="n has none"):
        schedule(actors, 5)
    assert actors.num_started == 1


def test_a_node_that_cannot_work_beside_others_is_tried_three_times_and_named() -> None:
    actors, heard = Actors(num_slots=2, behave=lambda actor, given: [made(actor)]), Heard()
    good = actors.starts

    def starts(actor: int) -> Sequence[Event]:
        refused = Refused(actor=actor, error=ModelError("n has none."))
        return good(actor) if actor == 0 else [Placed(actor=actor), refused]

    actors.starts = starts
    schedule(actors, 30, heard=heard)
    assert actors.num_started == 4
    assert heard.lines.count("n has none. The run continues without it.") == 3
    assert "3 actors in a row could not start: from now on, one is tried every 60 s" in heard.lines


def test_a_node_that_cannot_work_and_answers_first_does_not_end_the_run() -> None:
    actors = Actors(num_slots=2)
    good = actors.starts

    def starts(actor: int) -> Sequence[Event]:
        if actor == 1:
            return good(actor)
        return [Placed(actor=actor), Refused(actor=actor, error=ModelError("n has none."))]

    actors.starts = starts
    result = schedule(actors, 5)
    assert result.stats.num_images == 5 * IMAGES_IN_A_PART


def test_after_failed_starts_one_actor_a_minute_is_tried_until_one_works() -> None:
    actors, heard = Actors(num_slots=4), Heard()
    good, times = actors.starts, list[float]()

    def starts(actor: int) -> Sequence[Event]:
        times.append(actors.now)
        mended = actors.now > 150
        return good(actor) if actor == 0 or mended else [Placed(actor=actor), died(actor)]

    actors.starts = starts
    schedule(actors, 400, heard=heard)
    tries = [time for time in times if 10 < time < 150]
    assert all(60 <= after - before < 63 for before, after in itertools.pairwise(tries))
    assert len(tries) == 2
    assert len({actor for actor, _ in actors.assigned}) == 4
    assert sum(line.startswith("an actor could not start") for line in heard.lines) == 3


def test_the_listener_hears_of_progress_once_a_turn() -> None:
    actors, heard = Actors(num_slots=5), Heard()
    schedule(actors, 10, heard=heard)
    assert heard.num_images == [5 * IMAGES_IN_A_PART, 10 * IMAGES_IN_A_PART]


def test_actors_that_die_while_they_load_end_the_run_after_three() -> None:
    actors = Actors(num_slots=1)
    actors.starts = lambda actor: [Placed(actor=actor), died(actor)]
    with pytest.raises(ClusterError, match=r"an actor could not start\. On node n: SIGSEGV"):
        schedule(actors, 5)
    assert actors.num_started == 3


def test_errors_have_the_exit_codes_of_their_classes() -> None:
    assert issubclass(ClusterError, Blip2CapError)
    assert ClusterError.exit_code == 1
