from __future__ import annotations

import time

import pytest

from blip2cap.stopwatch import Stopwatch


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_seconds_and_counts_add_up_by_name(clock: Clock) -> None:
    watch = Stopwatch()
    for name, seconds in (("vision", 2.0), ("step", 0.5), ("step", 0.25)):
        with watch.measure(name):
            clock.now += seconds
        clock.now += 10.0
    assert watch.seconds == {"vision": 2.0, "step": 0.75}
    assert watch.counts == {"vision": 1, "step": 2}


def test_a_block_that_fails_counts_and_fails(clock: Clock) -> None:
    watch = Stopwatch()
    with pytest.raises(MemoryError), watch.measure("vision"):
        clock.now += 1.0
        raise MemoryError
    assert watch.seconds == {"vision": 1.0}


def test_the_time_of_a_stage_inside_another_counts_once(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.measure("before"):
        clock.now += 32.0
    with watch.measure("outer"):
        clock.now += 1.0
        with watch.measure("inner"):
            clock.now += 2.0
            with watch.measure("innermost"):
                clock.now += 16.0
        with watch.measure("outer"):
            clock.now += 4.0
        clock.now += 8.0
    assert watch.seconds == {"before": 32.0, "innermost": 16.0, "inner": 2.0, "outer": 13.0}
    assert watch.counts == {"before": 1, "innermost": 1, "inner": 1, "outer": 2}


def test_a_stage_inside_that_fails_is_not_in_the_outer_one(clock: Clock) -> None:
    watch = Stopwatch()
    with pytest.raises(MemoryError), watch.measure("outer"):
        clock.now += 1.0
        with watch.measure("inner"):
            clock.now += 2.0
            raise MemoryError
    assert watch.seconds == {"inner": 2.0, "outer": 1.0}


def test_the_device_is_waited_for_before_each_reading(clock: Clock) -> None:
    watch = Stopwatch()

    def wait() -> None:
        clock.now += 1.0

    watch.wait = wait
    with watch.measure("step"):
        pass
    assert watch.seconds == {"step": 1.0}


def test_reset_forgets_what_was_measured_but_not_how_to_wait() -> None:
    watch, waited = Stopwatch(), []
    watch.wait = lambda: waited.append(True)
    with watch.measure("step"):
        pass
    watch.reset()
    assert (watch.seconds, watch.counts) == ({}, {})
    with watch.measure("step"):
        pass
    assert watch.counts == {"step": 1}
    assert len(waited) == 4


def test_two_watches_know_nothing_of_each_other() -> None:
    first, second = Stopwatch(), Stopwatch()
    with first.measure("step"):
        pass
    assert second.counts == {}
