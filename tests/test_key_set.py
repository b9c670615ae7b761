"""The keys of finished rows: all are found, no others are, and they are small."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip2cap.key_set import KeySet
from blip2cap.rows import row_key


def test_what_was_added_is_found_and_nothing_else_is():
    keys = KeySet(f"{number}.jpg" for number in range(20_000))  # enough for its buckets to be divided many times
    assert all(f"{number}.jpg" in keys for number in range(20_000))
    assert not any(f"{number}.jpg" in keys for number in range(20_000, 40_000))
    assert len(keys) == 20_000


def test_nothing_is_in_no_keys():
    assert "" not in KeySet()
    assert len(KeySet()) == 0


def test_adding_says_whether_a_key_is_new_and_a_key_counts_once():
    keys = KeySet()
    assert [keys.add(key) for key in ("a", "b", "a", "", "")] == [True, True, False, True, False]
    assert len(keys) == 3


@pytest.mark.parametrize("key", ["", "\0", "é", "e\u0301", "\udcff.jpg", "\ud800", "a" * 100_000])
def test_any_string_is_a_key(key):
    keys = KeySet([key])
    assert key in keys
    assert key + "x" not in keys


def test_an_image_and_a_question_do_not_run_into_each_other():
    keys = KeySet([row_key("a.jpg", "", "b?")])
    assert row_key("a.jpg", "", "b?") in keys
    assert row_key("a.jpgb?", "", None) not in keys


def test_keys_compare_with_collections_of_strings():
    assert KeySet(["a", "b"]) == {"b", "a"}
    assert KeySet(["a", "b"]) != {"a", "c"}
    assert KeySet(["a"]) != {"a", "b"}
    assert KeySet() != 0


def filled(*batches):
    keys = KeySet()
    for batch in batches:
        keys.extend([f"{number}.jpg" for number in batch])
    return keys


@pytest.mark.parametrize(
    "order", [range(3_000), range(2_999, -1, -1), [5, 4, *range(3_000)]], ids=["same", "back", "other"]
)
def test_keys_that_were_added_together_are_found_in_any_order_and_no_others(order, monkeypatch):
    monkeypatch.setattr("blip2cap.key_set._AT_ONCE", 1_000)
    monkeypatch.setattr("blip2cap.key_set._BLOCK", 100)
    keys = filled(range(1_000), range(1_000, 3_000))
    assert len(keys) == 3_000
    assert all(f"{number}.jpg" in keys for number in order)
    assert not any(f"{number}.jpg" in keys for number in range(3_000, 6_000))
    assert len(keys) == 3_000


@pytest.mark.parametrize("key", ["", "\0", "é", "e\u0301", "\udcff.jpg", "\ud800", 'a "b"\\\n'])
def test_any_string_may_be_among_keys_that_are_added_together(key):
    keys = KeySet()
    keys.extend(["a", key, "b"])
    assert all(one in keys for one in ("a", key, "b"))
    assert key + "x" not in keys
    assert all(one in keys for one in ("b", key, "a"))


def test_keys_may_be_added_together_after_others_and_again(monkeypatch):
    monkeypatch.setattr("blip2cap.key_set._AT_ONCE", 10)
    monkeypatch.setattr("blip2cap.key_set._BLOCK", 7)
    keys = filled(range(50), [])
    assert [keys.add(f"{number}.jpg") for number in (49, 50)] == [False, True]
    keys.extend([f"{number}.jpg" for number in range(51, 100)])
    assert all(f"{number}.jpg" in keys for number in range(100))
    assert "100.jpg" not in keys
    assert len(keys) == 100


def test_two_threads_look_keys_up_at_once(monkeypatch):
    """One in the order in which they were added, one in another, as a run and the count of its images."""
    monkeypatch.setattr("blip2cap.key_set._AT_ONCE", 100)
    monkeypatch.setattr("blip2cap.key_set._BLOCK", 50)
    for _ in range(20):
        keys = filled(range(1_000))
        orders = [range(1_000), range(999, -1, -1), range(1_000)]
        with ThreadPoolExecutor(3) as pool:
            found = pool.map(lambda order, keys=keys: sum(f"{number}.jpg" in keys for number in order), orders)
            assert [*found] == [1_000] * 3


def test_a_long_key_costs_no_more_than_about_twenty_bytes():
    tracemalloc.start()
    try:
        keys = KeySet()
        for number in range(12_500):
            keys.add(f"{number:0200}.jpg")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(keys) == 12_500
    assert used / len(keys) < 23  # 16 of them the digest; how full the buckets are varies with the number
