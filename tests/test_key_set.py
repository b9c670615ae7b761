"""The keys of finished rows: all are found, no others are, and they are small."""

import tracemalloc

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
