"""Who has which image, without processes."""

from __future__ import annotations

import pytest

from blip2cap.records import ImageRef
from blip2cap.tasks.base import Request
from blip2cap.workers import ledger as module
from blip2cap.workers.ledger import Entry, Ledger
from blip2cap.workers.messages import Result


def ledger_of(count: int, first: int = 0) -> Ledger:
    ledger = Ledger(first)
    for number in range(count):
        ledger.add(Request(ref=ImageRef(path="", name=str(number)), labels=(None,)))
    return ledger


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.number for entry in entries]


def done(ledger: Ledger, *numbers: int) -> list[bool]:
    return [ledger.done(Result(number, [], [])) for number in numbers]


def test_images_are_given_in_order_and_leave_in_order() -> None:
    ledger = ledger_of(5)
    assert numbers(ledger.give(1, 2)) == [0, 1]
    assert numbers(ledger.give(2, 2)) == [2, 3]
    done(ledger, 2, 3)
    assert ledger.num_ready == 0
    assert numbers([*ledger.leave()]) == []
    done(ledger, 0, 1)
    assert ledger.num_ready == 4
    assert numbers([*ledger.leave()]) == [0, 1, 2, 3]
    assert (ledger.num_waiting, ledger.all_done) == (1, False)


def test_images_of_a_dead_worker_come_first_and_those_that_it_finished_do_not_come_again() -> None:
    ledger = ledger_of(6)
    ledger.give(1, 3)
    ledger.give(2, 1)
    done(ledger, 1)
    ledger.died(1, [0, 1, 2])
    assert numbers(ledger.give(2, 3)) == [0, 2, 4]


def test_an_image_that_two_workers_have_is_not_given_a_third_time_when_one_dies() -> None:
    ledger = ledger_of(1)
    ledger.give(1, 1)
    assert numbers(ledger.give_oldest(2, 5)) == [0]
    assert numbers(ledger.give_oldest(3, 5)) == []
    ledger.died(1, [0])
    assert numbers(ledger.give(3, 1)) == []
    ledger.died(2, [0])
    assert numbers(ledger.give(3, 1)) == [0]


def test_the_first_result_of_two_counts() -> None:
    ledger = ledger_of(2)
    ledger.give(1, 2)
    ledger.give_oldest(2, 2)
    assert done(ledger, 0) == [True]
    assert done(ledger, 0) == [False]
    assert numbers([*ledger.leave()]) == [0]
    assert done(ledger, 0) == [False]  # its rows have left
    assert not ledger.all_done


def test_a_slow_worker_lets_the_others_run_ahead_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_AHEAD", 4)
    ledger = ledger_of(20)
    ledger.give(1, 1)
    assert numbers(ledger.give(2, 10)) == [1, 2, 3]
    ledger.held(5)
    assert numbers(ledger.give(2, 10)) == [4, 5, 6, 7, 8, 9]
    done(ledger, 0)
    assert numbers([*ledger.leave()]) == [0]
    assert numbers(ledger.give(2, 10)) == [10]


def test_numbers_go_on_in_the_next_stream() -> None:
    ledger = ledger_of(2, first=7)
    assert numbers(ledger.give(1, 5)) == [7, 8]
    assert done(ledger, 3, 8) == [False, True]  # 3 is of the stream before
    assert ledger.next_number == 9
