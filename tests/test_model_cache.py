"""Slots of the cache: texts that end make room, and the others keep their keys."""

from __future__ import annotations

import random

import pytest
import torch

from blip2cap.models.blip2.cache import Cache, Slots
from tests.test_model_stream import CPU, CountingDecoder


def filled(num_slots: int, num_beams: int) -> Slots:
    """Return slots whose every value says which slot it is of."""
    slots = Slots(CountingDecoder(), num_beams, 7, CPU)
    cache = slots.reserve(0, num_slots, 3, num_slots)
    numbers_R = torch.arange(num_slots)
    cache.own_L2RHSK[:] = numbers_R.view(1, 1, -1, 1, 1, 1)
    cache.cross_L2RHPK, cache.cross_lengths_R = cache.own_L2RHSK.clone(), numbers_R.clone()
    cache.num_given_R[:] = slots.positions_R[:] = numbers_R
    slots.ids_RB[:] = numbers_R.view(-1, 1)
    cache.seen_RBS[:] = numbers_R.view(-1, 1, 1) % 2 == 1
    return slots


def one_by_one(num_used: int, ended: list[int]) -> list[int]:
    """Move the last slot in use to each free one, from the last free one to the first."""
    order = list(range(num_used))
    for slot in sorted(ended, reverse=True):
        last = order.pop()
        if slot < len(order):
            order[slot] = last
    return order


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("num_used", [1, 9, 100])
def test_slots_of_many_texts_that_end_together_are_filled_as_if_they_ended_one_by_one(
    num_used: int, num_beams: int
) -> None:
    numbers = random.Random(num_used)
    for num_ended in {1, num_used // 2, num_used - 1, num_used} - {0}:
        ended = numbers.sample(range(num_used), num_ended)
        slots = filled(num_used, num_beams)
        order, cache = slots.compact(num_used, ended), slots.cache
        assert cache is not None
        assert order == one_by_one(num_used, ended)
        left = torch.tensor(order, dtype=torch.long)
        num_left = len(order)
        for values in (cache.own_L2RHSK, cache.cross_L2RHPK):
            assert values is not None
            assert torch.equal(values[0, 1, :num_left, 0, -1, 0], left.float())
        for numbers_R in (cache.num_given_R, cache.cross_lengths_R, slots.positions_R, slots.ids_RB[:, -1]):
            assert numbers_R is not None
            assert torch.equal(numbers_R[:num_left], left)
        assert torch.equal(cache.seen_RBS[:num_left, -1, -1], left % 2 == 1)
        assert not slots.positions_R[num_left:].any()


def test_the_copies_of_a_compaction_do_not_grow_with_the_number_of_slots_that_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[int] = []
    monkeypatch.setattr(Cache, "move_rows", lambda cache, sources, targets: moved.append(len(sources)))
    slots = filled(64, 1)
    slots.compact(64, list(range(32)))
    assert moved == [32]


def test_beams_see_the_tokens_of_their_ancestors_only() -> None:
    slots = filled(2, 3)
    cache = slots.cache
    assert cache is not None
    cache.start(slice(0, 1), 2)
    cache.start(slice(1, 2), 4)
    positions_R = torch.tensor([2, 4])
    assert cache.next_indices(positions_R).tolist() == [[2, 3, 4], [4, 5, 6]]
    cache.reorder(torch.tensor([[0, 0, 2], [2, 1, 0]]))
    assert cache.next_indices(positions_R + 1).tolist() == [[5, 6, 7], [7, 8, 9]]
    seen = [[[index for index, yes in enumerate(beam) if yes] for beam in row] for row in cache.seen_RBS.tolist()]
    assert seen[0] == [[0, 1, 2, 5], [0, 1, 2, 6], [0, 1, 4, 7]]
    assert seen[1] == [[0, 1, 2, 3, 6, 7], [0, 1, 2, 3, 5, 8], [0, 1, 2, 3, 4, 9]]
    assert cache.length % 8 == 0
