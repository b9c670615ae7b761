"""A given size stays; a measured size doubles as long as that is faster."""

from __future__ import annotations

from collections.abc import Callable

from blip2cap.batch_size import BatchSize


def settle(size: BatchSize, seconds: Callable[[int], float]) -> BatchSize:
    for _ in range(100):
        size.measured(size.size, seconds(size.size))
    return size


def test_a_given_size_stays_whatever_is_measured() -> None:
    size = settle(BatchSize(3), lambda count: 1.0)
    size.too_large(3)
    assert (size.size, size.settled) == (3, True)


def test_a_size_doubles_as_long_as_more_at_once_is_faster_for_each() -> None:
    assert settle(BatchSize(4, 128), lambda count: max(32.0, count)).size == 32
    assert settle(BatchSize(4, 100), lambda count: 1.0).size == 100
    assert settle(BatchSize(4, 128), float).size == 4


def test_the_first_batch_pays_for_warming_up_and_does_not_count() -> None:
    size = BatchSize(4, 128)
    size.measured(4, 100.0)
    size.measured(4, 4.0)
    size.measured(8, 8.0)
    size.measured(8, 8.0)
    assert (size.size, size.settled) == (4, True)


def test_quick_batches_double_at_once_whether_it_pays_or_not() -> None:
    size = BatchSize(4, 128, quick_s=20.0)
    for _ in range(3):
        size.measured(size.size, float(size.size))
    assert size.size == 32
    settle(size, float)
    assert size.size == 32
    assert settle(BatchSize(4, 128, quick_s=1000.0), float).size == 128


def test_short_batches_say_nothing() -> None:
    size = BatchSize(4, 8)
    for _ in range(10):
        size.measured(3, 1.0)
    assert (size.size, size.settled) == (4, False)


def test_what_had_no_room_is_never_tried_again_unless_one_item_was_to_blame() -> None:
    size = BatchSize(4, 128)
    size.measured(4, 1.0)
    size.measured(4, 1.0)
    assert size.size == 8
    size.too_large(8)
    assert (size.size, size.settled) == (4, True)
    size.too_large(4)
    size.too_large(2)
    assert size.size == 1
    size.restore()
    assert size.size == 4


def test_a_size_that_is_not_to_be_measured_is_the_largest_and_still_shrinks() -> None:
    size, given = BatchSize(4, 128), BatchSize(4)
    for each in (size, given):
        each.settle()
        assert each.settled
    assert (size.size, given.size) == (128, 4)
    size.too_large(128)
    size.restore()
    assert size.size == 128
    size.too_large(128)
    assert size.size == 64
