"""Number of requests in flight, measured with a clock that the tests set."""

from __future__ import annotations

import asyncio
import time

import pytest

from blip2cap.models.server import throttle
from blip2cap.models.server.throttle import Concurrency, Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sizes(most: int, per_second: dict[int, float], num_answers: int) -> list[int]:
    """Return the size after each answer of a server; `per_second` is its rate of answers, by the largest size."""
    clock = Clock()
    concurrency = Concurrency(most, clock)
    found = []
    for _ in range(num_answers):
        rate = next(rate for size, rate in sorted(per_second.items()) if concurrency.size <= size)
        clock.now += 1 / rate
        concurrency.answered()
        found.append(concurrency.size)
    return found


def test_it_grows_to_the_most_while_that_is_faster():
    found = sizes(32, {size: 2.0 * size for size in range(1, 33)}, 400)
    assert found[0] == 4
    assert found[-1] == max(found) == 32
    assert found == sorted(found)


def test_it_stays_where_more_is_not_faster_and_tries_again_from_time_to_time():
    found = sizes(32, {size: 2.0 * min(size, 12) for size in range(1, 33)}, 3000)
    assert set(found[-2000:]) == {16, 24}
    assert found[-2000:].count(16) > 2 * found[-2000:].count(24)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_it_never_exceeds_a_small_most(most):
    assert {*sizes(most, {3: 10.0}, 200)} == {most}


def test_it_is_halved_down_to_one():
    concurrency = Concurrency(32)
    found = []
    for _ in range(4):
        concurrency.halve()
        found.append(concurrency.size)
    assert found == [2, 1, 1, 1]


def test_it_recovers_after_a_back_off():
    clock = Clock()
    concurrency = Concurrency(32, clock)
    concurrency.halve()
    for _ in range(400):
        clock.now += 1 / concurrency.size
        concurrency.answered()
    assert concurrency.size == 32


def run(steps):
    async def timed():
        async with asyncio.timeout(5):
            return await steps()

    return asyncio.run(timed())


@pytest.mark.parametrize("record", [Throttle.slow, lambda limits, began: limits.pause(began, 0.01)])
def test_requests_that_fail_together_halve_once(record):
    async def steps():
        limits = Throttle(32)
        began = [await limits.enter() for _ in range(4)]
        for each in began:
            record(limits, each)
        return limits.concurrency.size

    assert run(steps) == 2


def test_the_oldest_goes_first_and_one_that_is_repeated_before_it():
    async def steps():
        limits = Throttle(1)
        await limits.enter()
        order: list[str] = []

        async def work(name: str, *, again: bool = False) -> None:
            await limits.enter(again=again)
            order.append(name)
            limits.leave()

        tasks = [asyncio.create_task(each) for each in (work("first"), work("second"), work("repeated", again=True))]
        await asyncio.sleep(0)
        limits.leave()
        await asyncio.gather(*tasks)
        return order

    assert run(steps) == ["repeated", "first", "second"]


def test_pauses_are_those_asked_for_or_double_until_an_answer(monkeypatch):
    monkeypatch.setattr(throttle, "_FIRST_PAUSE_S", 10.0)
    monkeypatch.setattr(throttle, "_MOST_PAUSE_S", 30.0)

    async def steps():
        limits = Throttle(4)
        pauses = []
        for asked_for in (0, 0, 0, 100):
            began = time.monotonic()
            limits.pause(began, asked_for)
            pauses.append(round(limits._resume_at - began))
        limits.answered()
        limits._resume_at = 0.0
        began = time.monotonic()
        limits.pause(began, 0)
        return [*pauses, round(limits._resume_at - began)]

    assert run(steps) == [10, 20, 30, 100, 10]


def test_no_request_begins_in_a_pause():
    async def steps():
        limits = Throttle(4)
        began = await limits.enter()
        limits.pause(began, 0.05)
        limits.leave()
        return await limits.enter() - began

    assert run(steps) >= 0.05


def test_a_request_that_is_cancelled_leaves_its_turn_to_others():
    async def steps():
        limits = Throttle(1)
        await limits.enter()
        cancelled = asyncio.create_task(limits.enter())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        limits.leave()
        await limits.enter()

    run(steps)
