from collections.abc import Iterator

import pytest

from blip2cap.errors import UsageError
from blip2cap.records import ImageRef
from blip2cap.rows import row_key
from blip2cap.tasks.base import Worklist
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.vqa import Vqa

REFS = [ImageRef(path=f"/imgs/{name}", name=name) for name in ("b.jpg", "a.jpg", "pets/c.jpg")]
QUESTIONS = ("what is it?", "where is it?")


def captions() -> Worklist:
    return Worklist(Caption())


def answers() -> Worklist:
    return Worklist(Vqa(questions=QUESTIONS))


def test_every_image_becomes_one_request_in_the_order_of_the_source():
    requests = list(captions().requests(REFS, set()))
    assert [request.ref for request in requests] == REFS
    assert [request.labels for request in requests] == [(None,)] * 3


def test_every_question_is_asked_of_every_image():
    (request,) = answers().requests(REFS[:1], set())
    assert request.labels == QUESTIONS
    assert list(request.keys) == [row_key("b.jpg", "", question) for question in QUESTIONS]


def test_prompts_are_filled_with_the_name_of_the_image_and_the_question():
    assert [Caption(template="a photo of {stem}").prompt(ref, None) for ref in REFS][2] == "a photo of c"
    assert Vqa(template="{stem}: {question}", questions=QUESTIONS).prompt(REFS[0], "what?") == "b: what?"


def test_what_is_finished_is_not_done_again():
    worklist = captions()
    requests = list(worklist.requests(REFS, {row_key("a.jpg", "", None)}))
    assert [request.ref.name for request in requests] == ["b.jpg", "pets/c.jpg"]
    assert (worklist.num_images, worklist.num_finished) == (3, 1)


def test_only_the_missing_questions_of_an_image_are_asked():
    worklist = answers()
    finished = {row_key("b.jpg", "", question) for question in QUESTIONS} | {row_key("a.jpg", "", QUESTIONS[0])}
    requests = list(worklist.requests(REFS[:2], finished))
    assert [(request.ref.name, request.labels) for request in requests] == [("a.jpg", (QUESTIONS[1],))]
    assert (worklist.num_images, worklist.num_finished) == (2, 3)


def test_a_new_question_is_asked_of_images_that_are_done():
    finished = {row_key(ref.file_name, "", question) for ref in REFS for question in QUESTIONS}
    worklist = Worklist(Vqa(questions=(*QUESTIONS, "when?")))
    assert [request.labels for request in worklist.requests(REFS, finished)] == [("when?",)] * 3


def test_a_finished_caption_is_no_finished_answer():
    finished = {row_key(ref.file_name, "", None) for ref in REFS}
    assert len(list(answers().requests(REFS, finished))) == 3


def test_the_bytes_of_a_name_tell_what_is_finished():
    bad = ImageRef(path="x", name="\udcff.jpg")
    spelled = ImageRef(path="y", name="\\xff.jpg")
    finished = {row_key(bad.file_name, bad.file_name_b64, None)}
    assert [request.ref for request in captions().requests([bad, spelled], finished)] == [spelled]


def test_images_are_taken_one_at_a_time():
    taken = []

    def refs() -> Iterator[ImageRef]:
        for ref in REFS:
            taken.append(ref.name)
            yield ref

    requests = captions().requests(refs(), set())
    assert taken == []
    next(requests)
    assert taken == ["b.jpg"]


def test_counting_begins_anew_with_every_walk():
    worklist = captions()
    for _ in range(2):
        list(worklist.requests(REFS, {row_key("a.jpg", "", None)}))
    assert (worklist.num_images, worklist.num_finished) == (3, 1)


@pytest.mark.parametrize("question", ["", "  ", "\n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(UsageError, match="a question is empty"):
        Vqa(questions=("what?", question))


def test_a_question_that_is_asked_twice_is_refused():
    with pytest.raises(UsageError, match="asked twice"):
        Vqa(questions=("what?", "where?", "what?"))


def test_a_question_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="not valid UTF-8"):
        Vqa(questions=("what\udcff?",))


def test_a_prompt_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="not valid UTF-8"):
        Caption(template="a photo\udcff of")
