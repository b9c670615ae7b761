from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest

from blip2cap.decode.threads import Call, Threads, limit_myself


@pytest.fixture
def one() -> Iterator[Threads[str]]:
    with closing(Threads[str](1, "one")) as threads:
        yield threads


def alive() -> int:
    return sum(thread.name == "one" for thread in threading.enumerate())


def result_of(call: Call[str]) -> str:
    assert call.wait(10)
    return call.result()


def started(threads: Threads[str], do: Callable[[], str]) -> Call[str]:
    """Submit a call, and wait until it has started."""
    running = threading.Event()

    def call() -> str:
        running.set()
        return do()

    submitted = threads.submit(call)
    assert running.wait(10)
    return submitted


def test_calls_are_made_in_order(one: Threads[str]) -> None:
    done: list[str] = []

    def do(name: str) -> str:
        done.append(name)
        return name

    names = [str(number) for number in range(20)]
    calls = [one.submit(partial(do, name)) for name in names]
    assert [result_of(call) for call in calls] == names == done


def test_what_a_call_raises_is_raised_where_its_result_is_needed(one: Threads[str]) -> None:
    def breaks() -> str:
        raise KeyError("lost")

    call = one.submit(breaks)
    assert call.wait(10)
    with pytest.raises(KeyError, match="lost"):
        call.result()
    assert result_of(one.submit(lambda: "fine")) == "fine"


def test_a_call_that_hangs_is_abandoned_with_another_result_and_its_thread_is_replaced(one: Threads[str]) -> None:
    go_on = threading.Event()

    def hangs() -> str:
        go_on.wait(10)
        return "late"

    hanging, next_one = started(one, hangs), one.submit(lambda: "next")
    one.waited(0.6, 1.0, lambda: "abandoned")
    assert not hanging.wait(0)
    one.waited(0.6, 1.0, lambda: "abandoned")
    assert result_of(hanging) == "abandoned"
    assert result_of(next_one) == "next"
    assert alive() == 2
    go_on.set()
    while alive() > 1:  # the abandoned one ends by itself
        time.sleep(0.01)
    assert result_of(hanging) == "abandoned"
    assert result_of(one.submit(lambda: "fine")) == "fine"


def test_waiting_counts_only_for_the_call_that_runs(one: Threads[str]) -> None:
    for _ in range(3):
        go_on = threading.Event()
        call = started(one, lambda go_on=go_on: str(go_on.wait(10)))  # type: ignore[misc]
        one.waited(0.6, 1.0, lambda: "abandoned")
        go_on.set()
        assert result_of(call) == "True"


def test_a_call_that_limits_itself_is_not_abandoned(one: Threads[str]) -> None:
    go_on, limited = threading.Event(), threading.Event()

    def limits_itself() -> str:
        limit_myself()
        limited.set()
        return str(go_on.wait(10))

    call = one.submit(limits_itself)
    assert limited.wait(10)
    one.waited(60, 1.0, lambda: "abandoned")
    go_on.set()
    assert result_of(call) == "True"
    never = threading.Event()
    hanging = started(one, lambda: str(never.wait(10)))
    one.waited(60, 1.0, lambda: "abandoned")
    assert result_of(hanging) == "abandoned"  # the one after it is like any other
    never.set()


def test_limiting_oneself_has_no_effect_outside_of_a_call() -> None:
    limit_myself()


def test_closing_waits_for_running_calls_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip2cap.decode.threads._CLOSE_S", 0.05)
    go_on = threading.Event()
    done: list[str] = []

    def do(name: str) -> str:
        time.sleep(0.1)
        done.append(name)
        return name

    hanging: Threads[str] = Threads(1, "hanging")
    started(hanging, lambda: str(go_on.wait(10)))
    hanging.submit(lambda: do("never started"))
    hanging.close()
    go_on.set()
    monkeypatch.undo()
    quick: Threads[str] = Threads(1, "one")
    started(quick, lambda: do("finished"))
    quick.close()
    assert done == ["finished"]
    assert alive() == 0
