"""The rules for loops, echoes and sentences: texts that match, and texts that only look alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip2cap.tasks.text_rules import FAULTS, badness, find_fault, strip_prefixes, trim_to_sentence

LOOPS = [
    "a cat a cat a cat",
    "a cat a cat a cat on a mat",
    "A cat, a cat; a CAT and a dog",
    "a photo of a photo of a photo of a dog",
    "the the the the the the",
    "a man in a red hat and a man in a red hat and",
    "a woman is sitting on a chair. a woman is sitting on a chair.",
    "a man, a man, a woman, a man, a man, a woman, a man, a man",
    "a red, a blue, a red, a blue, a green, a red, a blue, a red, a blue",
    "一只猫一只猫一只猫",
    "黑白相间的猫黑白相间的猫",
    "แมวแมวแมว",
    "кот и пёс кот и пёс кот и пёс",
    "고양이 한 마리 고양이 한 마리 고양이 한 마리",
    "!!!!!!!!!!!!",
    "🐈🐈🐈🐈🐈🐈",
]
NO_LOOPS = [
    "a black and white photo of a black and white cat",
    "no no",
    "ha ha ha",
    "yes yes yes",
    "new york, new york",
    "happy birthday to you happy birthday to you",
    "a cat on a bed, a cat on a chair, a cat on a table, a cat on a sofa",
    "a woman holding a dog and a woman holding a cat",
    "a man and a woman and a man",
    "a dog and a cat and a dog and a bird",
    "two red flowers and two white flowers and two blue flowers in a vase",
    "a sign that says no parking, no stopping, no standing",
    "红色的花和白色的花和黄色的花",
    "一只黑白相间的猫坐在一张黑白相间的地毯上",
    "哈哈哈",
    "ドキドキ",
    "看看",
    "555",
    "10 10 10",
    "?",
    "...",
    "🐈🐈🐈",
    "a",
]


@pytest.mark.parametrize("text", LOOPS)
def test_a_loop_is_found(text: str) -> None:
    assert find_fault(text, "") == "repetition"


@pytest.mark.parametrize("text", NO_LOOPS)
def test_a_text_that_says_something_twice_is_no_loop(text: str) -> None:
    assert find_fault(text, "") == ""


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"])
def test_an_empty_text_is_empty(text: str) -> None:
    assert find_fault(text, "a photo of") == "empty"


PROMPT, QUESTION = "Question: what is the cat doing? Answer:", "what is the cat doing?"


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        "What is the cat doing",
        PROMPT,
        "Question: what is the cat doing? Answer: sleeping",
        "what is the cat doing? sleeping",
        "what is the cat doing? what is the cat doing?",
    ],
)
def test_an_answer_that_begins_with_the_question_is_an_echo(text: str) -> None:
    assert find_fault(text, PROMPT, QUESTION) == "prompt_echo"


def test_a_question_that_was_said_again_up_to_the_longest_text_is_an_echo() -> None:
    assert find_fault("what is the cat", PROMPT, QUESTION, cut=True) == "prompt_echo"
    assert find_fault("what is the cat", PROMPT, QUESTION) == ""
    assert find_fault("a short image", "A short image description.", cut=True) == "prompt_echo"


def test_an_echo_in_a_script_without_spaces_is_found() -> None:
    assert find_fault("这是什么？", "这是什么?", "这是什么?") == "prompt_echo"
    assert find_fault("这是猫", "这是什么?", "这是什么?") == ""


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("a cat", "a cat?"),
        ("cat", "cat?"),
        ("a dog", "is it a cat or a dog?"),
        ("black and white", "black and white or coloured?"),
        ("riding a horse", "is the man riding a horse or a bicycle?"),
        ("the cat is sleeping", "what is the cat doing?"),
        ("what", "what?"),
    ],
)
def test_an_answer_in_the_words_of_the_question_is_no_echo(text: str, question: str) -> None:
    assert find_fault(text, f"Question: {question} Answer:", question) == ""


@pytest.mark.parametrize("text", ["a photo of", "a photo of a photo of", "A photo of."])
def test_a_caption_that_says_its_prompt_and_no_more_is_an_echo(text: str) -> None:
    assert find_fault(text, "a photo of") == "prompt_echo"


def test_a_caption_may_go_on_from_its_prompt() -> None:
    assert find_fault("a photo of a cat", "a photo of") == ""
    assert find_fault("a cat", "") == find_fault("a cat", "a cat") == ""


def test_a_text_is_better_with_a_lesser_fault_or_less_of_it() -> None:
    texts = ["a cat on a mat", "a cat a cat a cat in a hat", "a cat a cat a cat", "what is it", ""]
    faults = [find_fault(text, "what is it", "what is it") for text in texts]
    assert faults == ["", "repetition", "repetition", "prompt_echo", "empty"]
    order = [badness(text, fault) for text, fault in zip(texts, faults, strict=True)]
    assert order == sorted(set(order))


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        ("a cat sits. it is", "a cat sits."),
        ("a cat sits. it is black. and the", "a cat sits. it is black."),
        ("is it a cat? yes! but", "is it a cat? yes!"),
        ('he says "stop." and then', 'he says "stop."'),
        ("he says “stop.” and then", "he says “stop.”"),
        ("(a cat sits.) it", "(a cat sits.)"),
        ("这是一只猫。它是", "这是一只猫。"),
        ("他说「停！」然后", "他说「停！」"),
        ("これは何？猫", "これは何？"),
        ("ａ．ｂ", "ａ．"),
        ("a cat sits.", "a cat sits."),
        ("a cat... and a dog", "a cat..."),
        ("no. there is", "no."),
    ],
)
def test_a_text_is_cut_behind_its_last_whole_sentence(text: str, trimmed: str) -> None:
    assert trim_to_sentence(text) == trimmed


@pytest.mark.parametrize(
    "text",
    [
        "a cat sits on a",
        "",
        "3.5 metres of",
        "a photo of mr. smith and",
        "a man at a U.S. flag",
        "a st. bernard dog with",
        "1. a cat 2. a",
        ". and",
        "... and a dog",
        "a file named cat.jpg on",
        "J. R. R. tolkien with",
    ],
)
def test_a_text_without_a_whole_sentence_is_left_as_it_is(text: str) -> None:
    assert trim_to_sentence(text) == text


@pytest.mark.parametrize(
    ("text", "prefixes", "rest"),
    [
        ("a photo of a cat", ["a photo of"], "a cat"),
        ("A Photo of  a cat", ["a photo of"], "a cat"),
        ("there is a photo of a cat", ["a photo of", "there is"], "a cat"),
        ("a photo of a photo of a cat", ["a photo of"], "a cat"),
        ("a photo of a cat", ["a", "a photo of"], "cat"),
        ("a photograph of a cat", ["a photo"], "a photograph of a cat"),
        ("apple", ["a"], "apple"),
        ("a cat", ["the cat", "dog"], "a cat"),
        ("a photo of a cat", [], "a photo of a cat"),
        ("这是一只猫", ["这是"], "一只猫"),
        ("image: a cat", ["image:"], "a cat"),
        ("a (cat) photo", ["a (cat)"], "photo"),
        (".* a cat", [".*"], "a cat"),
        ("🐈", ["a"], "🐈"),
    ],
)
def test_prefixes_are_taken_off_literally_in_whole_words(text: str, prefixes: list[str], rest: str) -> None:
    assert strip_prefixes(text, prefixes) == rest


@pytest.mark.parametrize("text", ["a photo of", "A photo of.", "a photo of ...", ""])
def test_a_text_that_would_be_left_without_a_word_is_left_as_it_is(text: str) -> None:
    assert strip_prefixes(text, ["a photo of"]) == text


def test_of_a_text_that_is_all_prefixes_the_last_stays() -> None:
    assert strip_prefixes("a photo of a photo of", ["a photo of"]) == "a photo of"


words = st.lists(st.sampled_from(["a", "cat", "of", ".", "。", "“x.”", "猫", "", "Mr.", "A"]), max_size=25)
texts = st.one_of(st.text(max_size=60), words.map(" ".join), words.map("".join))


@given(texts, texts, st.none() | texts, st.booleans())
@settings(deadline=None, max_examples=75)
def test_any_text_is_judged(text: str, prompt: str, question: str | None, cut: bool) -> None:
    fault = find_fault(text, prompt, question, cut=cut)
    assert fault in ("", *FAULTS)
    assert (fault == "empty") == (not text.strip())
    assert (badness(text, fault) > badness("a cat", "")) == bool(fault)


@given(texts, st.lists(texts.filter(lambda text: bool(text.strip())), max_size=3))
@settings(deadline=None, max_examples=75)
def test_what_is_left_is_a_part_of_the_text_and_never_nothing(text: str, prefixes: list[str]) -> None:
    trimmed, stripped = trim_to_sentence(text), strip_prefixes(text, prefixes)
    assert text.startswith(trimmed)
    assert text.endswith(stripped)
    assert bool(trimmed) == bool(stripped) == bool(text)
    assert trim_to_sentence(trimmed) == trimmed
    assert strip_prefixes(stripped, prefixes) == stripped
