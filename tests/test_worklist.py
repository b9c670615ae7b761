from collections.abc import Iterator

import pytest

from blip2cap.errors import UsageError
from blip2cap.prompts import Template
from blip2cap.records import ImageRef, row_key
from blip2cap.tasks.worklist import Worklist

REFS = [ImageRef(path=f"/imgs/{name}", name=name) for name in ("b.jpg", "a.jpg", "pets/c.jpg")]
QUESTIONS = ("what is it?", "where is it?")


def captions() -> Worklist:
    return Worklist(Template("a photo of {stem}"))


def answers() -> Worklist:
    return Worklist(Template("{stem}: {question}", question=True), QUESTIONS)


def test_every_image_becomes_one_task_in_the_order_of_the_source():
    tasks = list(captions().requests(REFS, set()))
    assert [task.ref for task in tasks] == REFS
    assert [[(ask.question, ask.prompt) for ask in task.queries] for task in tasks] == [
        [(None, "a photo of b")],
        [(None, "a photo of a")],
        [(None, "a photo of c")],
    ]


def test_every_question_is_asked_of_every_image():
    tasks = list(answers().requests(REFS[:1], set()))
    assert [(ask.question, ask.prompt) for ask in tasks[0].queries] == [
        ("what is it?", "b: what is it?"),
        ("where is it?", "b: where is it?"),
    ]


def test_what_is_finished_is_not_done_again():
    plan = captions()
    tasks = list(plan.requests(REFS, {row_key("a.jpg", "", None)}))
    assert [task.ref.name for task in tasks] == ["b.jpg", "pets/c.jpg"]
    assert (plan.num_images, plan.num_finished) == (3, 1)


def test_only_the_missing_questions_of_an_image_are_asked():
    plan = answers()
    finished = {row_key("b.jpg", "", question) for question in QUESTIONS} | {row_key("a.jpg", "", QUESTIONS[0])}
    tasks = list(plan.requests(REFS[:2], finished))
    assert [(task.ref.name, [ask.question for ask in task.queries]) for task in tasks] == [("a.jpg", [QUESTIONS[1]])]
    assert (plan.num_images, plan.num_finished) == (2, 3)


def test_a_new_question_is_asked_of_images_that_are_done():
    finished = {row_key(ref.file_name, "", question) for ref in REFS for question in QUESTIONS}
    plan = Worklist(Template("{question}", question=True), (*QUESTIONS, "when?"))
    assert [[ask.question for ask in task.queries] for task in plan.requests(REFS, finished)] == [["when?"]] * 3


def test_a_finished_caption_is_no_finished_answer():
    finished = {row_key(ref.file_name, "", None) for ref in REFS}
    assert len(list(answers().requests(REFS, finished))) == 3


def test_the_bytes_of_a_name_tell_what_is_finished():
    bad = ImageRef(path="x", name="\udcff.jpg")
    spelled = ImageRef(path="y", name="\\xff.jpg")
    finished = {row_key(bad.file_name, bad.file_name_b64, None)}
    assert [task.ref for task in captions().requests([bad, spelled], finished)] == [spelled]


def test_images_are_taken_one_at_a_time():
    taken = []

    def refs() -> Iterator[ImageRef]:
        for ref in REFS:
            taken.append(ref.name)
            yield ref

    tasks = captions().requests(refs(), set())
    assert taken == []
    next(tasks)
    assert taken == ["b.jpg"]


def test_counting_begins_anew_with_every_walk():
    plan = captions()
    for _ in range(2):
        list(plan.requests(REFS, {row_key("a.jpg", "", None)}))
    assert (plan.num_images, plan.num_finished) == (3, 1)


@pytest.mark.parametrize("question", ["", "  ", "\n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(UsageError, match="a question is empty"):
        Worklist(Template("{question}", question=True), ("what?", question))


def test_a_question_that_is_asked_twice_is_refused():
    with pytest.raises(UsageError, match="asked twice"):
        Worklist(Template("{question}", question=True), ("what?", "where?", "what?"))


def test_a_question_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="not valid UTF-8"):
        Worklist(Template("{question}", question=True), ("what\udcff?",))


def test_a_prompt_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="not valid UTF-8"):
        Worklist(Template("a photo\udcff of"))
