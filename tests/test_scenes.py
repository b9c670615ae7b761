import dataclasses
import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest

from blip2cap.tiny.scene_things import PAINTERS
from blip2cap.tiny.scenes import (
    COLOURS,
    NUMBERS,
    PLACES,
    PLURALS,
    SAMPLE_SEEDS,
    TRAINING_SEEDS,
    VALIDATION_SEEDS,
    Scene,
    draw,
    noun,
)

SEEDS = range(400)
SINGULARS = {plural: kind for kind, plural in PLURALS.items()}
LIGHTS = {" under the sun": "day", " under the moon": "night", " at night": "night", "": "day"}
CAPTION = re.compile(
    rf"(?P<things>.+) (?P<place>{'|'.join(PLACES.values())})(?P<light>{'|'.join(filter(None, LIGHTS))}|)"
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw(seed, (24, 18)) for seed in SEEDS]


def looks(scene: Scene) -> Counter[tuple[str, str]]:
    return Counter((thing.colour, thing.kind) for thing in scene.things)


def parse(said: str) -> tuple[int, str, str]:
    """Take "two red cars" apart, checking its grammar; the colour may be left out."""
    number, *colour, name = said.split()
    assert len(colour) <= 1
    if number in ("a", "an"):
        follows = (*colour, name)[0]
        assert number == ("an" if follows in ("orange", "umbrella") else "a")
        assert name in PLURALS
        return 1, "".join(colour), name
    assert NUMBERS.index(number) > 1
    return NUMBERS.index(number), "".join(colour), SINGULARS[name]


def test_equal_arguments_give_equal_scenes():
    random.seed(1)
    first = draw(7, (64, 48))
    random.seed(2)
    draw(8, (64, 48))
    second = draw(7, (64, 48))
    assert first.image.tobytes() == second.image.tobytes()
    assert dataclasses.replace(first, image=second.image) == second


def test_drawing_leaves_the_random_numbers_of_others_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    draw(7, (24, 18))
    assert random.random() == expected


def test_what_is_true_of_a_scene_does_not_depend_on_its_size():
    small, large = draw(5, (32, 32)), draw(5, (320, 300))
    assert dataclasses.replace(small, image=large.image) == large


def test_no_two_scenes_are_alike(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_samples_validation_and_training_share_no_seed():
    ranges = (SAMPLE_SEEDS, VALIDATION_SEEDS, TRAINING_SEEDS)
    for one, next_one in itertools.pairwise(ranges):
        assert len(one) > 0
        assert one.stop <= next_one.start


@pytest.mark.parametrize("size", [(640, 480), (112, 112), (48, 64), (101, 257), (1, 1)])
def test_the_size_is_what_was_asked_for(size):
    image = draw(3, size).image
    assert (image.size, image.mode) == (size, "RGB")


def test_there_is_enough_to_see():
    assert len(PLACES) >= 6
    assert len(PLURALS) == 8
    assert len(COLOURS) == 10
    assert PAINTERS.keys() == PLURALS.keys()


def test_everything_there_is_turns_up(scenes):
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.time for scene in scenes} == {"day", "night"}
    assert {thing.kind for scene in scenes for thing in scene.things} == set(PLURALS)
    assert {thing.colour for scene in scenes for thing in scene.things} == set(COLOURS)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}


def test_colours_that_have_different_names_look_different():
    values = np.array(list(COLOURS.values()))
    distances = abs(values[:, None] - values[None]).sum(axis=-1)
    assert distances[~np.eye(len(values), dtype=bool)].min() > 60


def test_things_lie_inside_the_image_side_by_side_from_left_to_right(scenes):
    for scene in scenes:
        edge = 0.0
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert edge <= left < right <= 1
            assert 0 <= top < bottom <= 1
            edge = right


def test_things_are_large_enough_to_see(scenes):
    for scene in scenes:
        for left, top, right, bottom in (thing.box for thing in scene.things):
            assert min(right - left, bottom - top) > 0.12


@pytest.mark.parametrize("kind", PLURALS)
def test_a_thing_shows_its_colour_in_its_box(kind):
    found = 0
    for seed in SEEDS:
        scene = draw(seed, (16, 12))
        if {thing.kind for thing in scene.things} != {kind} or scene.time == "night":
            continue
        image = np.asarray(draw(seed, (320, 300)).image, dtype=int)
        for thing in scene.things:
            left, top, right, bottom = (
                round(edge * side) for edge, side in zip(thing.box, (320, 300, 320, 300), strict=True)
            )
            patch = image[top:bottom, left:right].reshape(-1, 3)
            near = abs(patch - COLOURS[thing.colour]).max(axis=1) < 50
            assert near.mean() > 0.1, (seed, thing)
            found += 1
    assert found


def test_a_caption_says_exactly_what_is_there(scenes):
    for scene in scenes:
        match = CAPTION.fullmatch(scene.caption)
        assert match, scene.caption
        groups = [parse(said) for said in match["things"].split(" next to ")]
        assert {(colour, kind): count for count, colour, kind in groups} == looks(scene)
        assert [(colour, kind) for _, colour, kind in groups] == list(looks(scene))
        assert match["place"] == PLACES[scene.place]
        assert LIGHTS[match["light"]] == scene.time


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("boat", 1, "orange"), "an orange boat"),
        (("boat", 1, "red"), "a red boat"),
        (("umbrella",), "an umbrella"),
        (("umbrella", 1, "blue"), "a blue umbrella"),
        (("house",), "a house"),
        (("fish", 2), "two fish"),
        (("car", 3, "white"), "three white cars"),
        (("car", 0), "zero cars"),
    ],
)
def test_nouns_take_their_article_and_plural(said, expected):
    assert noun(*said) == expected


def test_every_answer_is_true(scenes):
    for scene in scenes:
        kinds: Counter[str] = Counter(thing.kind for thing in scene.things)
        for question in scene.questions:
            if question.type == "colour":
                match = re.fullmatch(r"what colou?r (is|are) the (\w+)\?", question.text)
                assert match, question
                kind = match[2] if match[1] == "is" else SINGULARS[match[2]]
                assert {colour for colour, other in looks(scene) if other == kind} == {question.answer}
                assert (match[1] == "is") == (kinds[kind] == 1)
            elif question.type == "count":
                match = re.fullmatch(r"how many (\w+) are there\?", question.text)
                assert match, question
                assert question.answer == NUMBERS[kinds[SINGULARS[match[1]]]]
            elif question.type == "is_there":
                match = re.fullmatch(r"is there (.+)\?", question.text)
                assert match, question
                _, colour, kind = parse(match[1])
                there = looks(scene)[colour, kind] if colour else kinds[kind]
                assert question.answer == ("yes" if there else "no")
            elif question.type == "where":
                assert question.text in ("where is it?", "where is this?")
                assert question.answer == PLACES[scene.place]
            else:
                assert (question.type, question.text) == ("time", "is it day or night?")
                assert question.answer == scene.time


def test_yes_and_no_are_asked_for_equally_often_and_look_alike(scenes):
    coloured: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for scene in scenes:
        asked = [question for question in scene.questions if question.type == "is_there"]
        assert sorted(question.answer for question in asked) == ["no", "yes"]
        for question in asked:
            answers[question.answer] += 1
            coloured[question.answer] += len(question.text.split()) == 5
    assert answers["yes"] == answers["no"]
    assert all(0.35 < coloured[answer] / answers[answer] < 0.65 for answer in answers)


def test_no_scene_asks_one_question_with_two_answers(scenes):
    for scene in scenes:
        answers = {question.text: question.answer for question in scene.questions}
        assert all(answers[question.text] == question.answer for question in scene.questions)


def test_every_type_of_question_is_asked(scenes):
    types = [{question.type for question in scene.questions} for scene in scenes]
    assert set.union(*types) == {"colour", "count", "is_there", "where", "time"}
    assert all({"count", "is_there", "where", "time"} <= asked for asked in types)


def test_zero_is_among_the_counts(scenes):
    counts = Counter(question.answer for scene in scenes for question in scene.questions if question.type == "count")
    assert set(counts) == set(NUMBERS)
