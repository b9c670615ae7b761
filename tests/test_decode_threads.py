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


def result_of(job: Call[str]) -> str:
    assert job.wait(10)
    return job.result()


def begun(threads: Threads[str], do: Callable[[], str]) -> Call[str]:
    """Have something done, and wait until it has begun."""
    started = threading.Event()

    def job() -> str:
        started.set()
        return do()

    submitted = threads.submit(job)
    assert started.wait(10)
    return submitted


def test_jobs_are_done_in_their_order(one: Threads[str]) -> None:
    done: list[str] = []

    def do(name: str) -> str:
        done.append(name)
        return name

    names = [str(number) for number in range(20)]
    jobs = [one.submit(partial(do, name)) for name in names]
    assert [result_of(job) for job in jobs] == names == done


def test_what_a_job_raises_is_raised_where_its_result_is_wanted(one: Threads[str]) -> None:
    def breaks() -> str:
        raise KeyError("lost")

    job = one.submit(breaks)
    assert job.wait(10)
    with pytest.raises(KeyError, match="lost"):
        job.result()
    assert result_of(one.submit(lambda: "fine")) == "fine"


def test_a_job_that_hangs_gets_another_result_and_its_thread_another_place(one: Threads[str]) -> None:
    go_on = threading.Event()

    def hangs() -> str:
        go_on.wait(10)
        return "late"

    hanging, next_one = begun(one, hangs), one.submit(lambda: "next")
    one.waited(0.6, 1.0, lambda: "given up")
    assert not hanging.wait(0)
    one.waited(0.6, 1.0, lambda: "given up")
    assert result_of(hanging) == "given up"
    assert result_of(next_one) == "next"
    assert alive() == 2
    go_on.set()
    while alive() > 1:  # the one that was given up ends by itself
        time.sleep(0.01)
    assert result_of(hanging) == "given up"
    assert result_of(one.submit(lambda: "fine")) == "fine"


def test_waiting_counts_for_the_job_that_runs_only(one: Threads[str]) -> None:
    for _ in range(3):
        go_on = threading.Event()
        job = begun(one, lambda go_on=go_on: str(go_on.wait(10)))  # type: ignore[misc]
        one.waited(0.6, 1.0, lambda: "given up")
        go_on.set()
        assert result_of(job) == "True"


def test_a_job_that_limits_itself_is_not_given_up(one: Threads[str]) -> None:
    go_on, limited = threading.Event(), threading.Event()

    def limits_itself() -> str:
        limit_myself()
        limited.set()
        return str(go_on.wait(10))

    job = one.submit(limits_itself)
    assert limited.wait(10)
    one.waited(60, 1.0, lambda: "given up")
    go_on.set()
    assert result_of(job) == "True"
    never = threading.Event()
    hanging = begun(one, lambda: str(never.wait(10)))
    one.waited(60, 1.0, lambda: "given up")
    assert result_of(hanging) == "given up"  # the one after it is like any other
    never.set()


def test_to_limit_oneself_means_nothing_outside_of_a_job() -> None:
    limit_myself()


def test_the_end_waits_for_what_runs_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip2cap.decode.threads._CLOSE_S", 0.05)
    go_on = threading.Event()
    done: list[str] = []

    def do(name: str) -> str:
        time.sleep(0.1)
        done.append(name)
        return name

    hanging: Threads[str] = Threads(1, "hanging")
    begun(hanging, lambda: str(go_on.wait(10)))
    hanging.submit(lambda: do("never begun"))
    hanging.close()
    go_on.set()
    monkeypatch.undo()
    quick: Threads[str] = Threads(1, "one")
    begun(quick, lambda: do("finished"))
    quick.close()
    assert done == ["finished"]
    assert alive() == 0
