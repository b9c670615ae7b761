"""Pairs of captions and references: in which way they are compared, and what has no partner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blip2cap.errors import InputError
from blip2cap.evaluate.entries import Entries, Entry
from blip2cap.evaluate.pairs import pair


def captions(*images: str, **more: str) -> Entries:
    return Entries(given="own", entries=tuple(Entry(image=image, texts=("a",), **more) for image in images))


def answers(*asked: tuple[str, str]) -> Entries:
    entries = tuple(Entry(image=image, question=question, texts=("yes",)) for image, question in asked)
    return Entries(given="own", entries=entries)


@pytest.mark.parametrize(
    ("own", "wanted", "by"),
    [
        (captions("x/a.jpg"), captions("./x/a.jpg"), "file name"),
        (captions("a.jpg"), captions("val/a.jpg"), "file name without folders"),
        (captions("x/a.jpg"), captions("x/a"), "file name without its suffix"),
        (captions("x/a.v2.PNG"), captions("x/a.v2"), "file name without its suffix"),
        (answers(("a.jpg", "what?")), answers(("a", "what?")), "file name without its suffix and question"),
        (captions("", image_id="7"), captions("a.jpg", image_id="7"), "image_id"),
        (
            captions("COCO_val2014_000000000007.jpg"),
            captions("", image_id="7"),
            "number in the file name and image_id",
        ),
        (answers(("a.jpg", "what?")), answers(("a.jpg", " what? ")), "file name and question"),
        (
            answers(("000000000007.jpg", "what?")),
            Entries(given="ref", entries=(Entry(image_id="7", question="what?", texts=("cat",), question_id="70"),)),
            "number in the file name and image_id and question",
        ),
        (
            Entries(given="own", entries=(Entry(question_id="70", texts=("cat",)),)),
            Entries(given="ref", entries=(Entry(image_id="7", question="what?", texts=("cat",), question_id="70"),)),
            "question_id",
        ),
    ],
)
def test_entries_are_compared_by_what_both_have(own: Entries, wanted: Entries, by: str) -> None:
    found = pair(own, wanted)
    assert (found.by, found.left_out) == (by, "")
    assert [(each.own, each.reference) for each in found.pairs] == [(own.entries[0], wanted.entries[0])]


def test_the_way_in_which_most_have_a_partner_is_taken() -> None:
    own, wanted = captions("a.jpg", "b.jpg", "c.jpg"), captions("x/a.jpg", "x/b.jpg", "c.jpg")
    assert pair(own, wanted).by == "file name without folders"


def test_equal_names_in_different_folders_are_not_compared_without_them() -> None:
    own = captions("a.jpg", "b.jpg")
    with pytest.raises(InputError, match="no image in common"):
        pair(own, captions("x/a.jpg", "y/a.jpg", "x/b.jpg"))


@pytest.mark.parametrize("own", [("a.jpg", "a.png"), ("a.jpg",)])
def test_another_suffix_is_another_image(own: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="no image in common"):
        pair(captions(*own), captions("a" if len(own) > 1 else "a.png"))


def test_pairs_come_in_the_order_of_the_references() -> None:
    found = pair(captions("a.jpg", "b.jpg"), captions("b.jpg", "a.jpg"))
    assert [each.image for each in found.pairs] == ["b.jpg", "a.jpg"]


def test_what_has_no_partner_is_an_error_with_counts_and_examples() -> None:
    own = Entries(
        given="own",
        entries=(*captions("a.jpg", *(f"{number}.jpg" for number in range(5))).entries, Entry(image="b.jpg", texts=())),
    )
    wanted = captions("a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(InputError) as raised:
        pair(own, wanted)
    message = raised.value.message
    assert (
        'own and own, compared by file name: 5 of 7 captions have no reference ("0.jpg", "1.jpg", "2.jpg", ...)'
        in message
    )
    assert '2 of 3 references have no caption ("b.jpg", "c.jpg"); 1 row of the run has failed ("b.jpg")' in message
    assert "evaluate the 1 that have both with --only-matched" in message
    found = pair(own, wanted, only_matched=True)
    assert [each.image for each in found.pairs] == ["a.jpg"]
    assert found.left_out in message


def test_nothing_in_common_shows_names_of_both_sides() -> None:
    with pytest.raises(InputError, match=r'no image in common: 1 captions of "a.jpg"; 1 references of "b.jpg"'):
        pair(captions("a.jpg"), captions("b.jpg"), only_matched=True)


def test_an_image_that_is_there_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.jpg is there twice"):
        pair(captions("a.jpg", "./a.jpg"), captions("a.jpg"))


def test_a_name_that_is_there_twice_matters_only_where_names_are_compared() -> None:
    asked = Entry(image="a.jpg", question="what?", texts=("cat",))
    wanted = Entries(given="wanted", entries=(replace(asked, question_id="1"), replace(asked, question_id="2")))
    own = Entries(given="own", entries=tuple(Entry(question_id=each, texts=("cat",)) for each in ("2", "1")))
    found = pair(own, wanted)
    assert (found.by, len(found.pairs)) == ("question_id", 2)


def test_captions_are_not_compared_with_answers() -> None:
    with pytest.raises(InputError, match="own has captions, own has answers"):
        pair(captions("a.jpg"), answers(("a.jpg", "what?")))


def test_a_run_in_which_all_has_failed_has_nothing_to_evaluate() -> None:
    own = Entries(given="own", entries=(Entry(image="a.jpg", texts=()),))
    with pytest.raises(InputError, match="There is nothing to evaluate"):
        pair(own, captions("a.jpg"), only_matched=True)
