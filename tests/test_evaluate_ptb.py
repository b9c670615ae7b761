"""The tokeniser, beside what Stanford's found in the same texts (tests/make_ptb_golden.py)."""

from __future__ import annotations

import pytest

from blip2cap.evaluate.ptb import _scan, tokenize
from tests.make_ptb_golden import NUM_CAPTIONS, NUM_LINES, read_golden


@pytest.mark.parametrize(("name", "num_texts"), [("captions", NUM_CAPTIONS), ("documents", NUM_LINES)])
def test_999_of_1000_texts_are_split_as_stanfords_tokenizer_does(name, num_texts):
    golden = read_golden(name)
    found = tokenize(text for text, _ in golden)
    wrong = [(text, words, own) for (text, words), own in zip(golden, found, strict=True) if words != own]
    assert len(golden) == num_texts
    assert len(wrong) <= num_texts // 1000, wrong


@pytest.mark.parametrize(("text", "words"), read_golden("cases"))
def test_special_words_are_split_as_stanfords_tokenizer_does(text, words):
    assert tokenize([text]) == [words]


@pytest.mark.parametrize("name", ["captions", "documents", "cases"])
def test_texts_split_part_by_part_have_the_words_of_the_whole(name):
    texts = [text for text, _ in read_golden(name)]
    assert tokenize(texts) == [" ".join(_scan(text)) for text in texts]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x0b", "\x85", "\u2028"])
def test_the_end_of_a_line_is_a_space(end):
    assert tokenize([f"a dog.{end}a cat."]) == ["a dog a cat"]


@pytest.mark.parametrize("text", ["", " ", ".", "...", "🎂", "\u200b"])
def test_a_text_without_words_is_empty(text):
    assert tokenize([text]) == [""]


def test_the_first_words_of_a_sentence_decide_whether_a_letter_is_an_abbreviation():
    assert tokenize(["Vitamin C. The end", "Vitamin C. Theo"]) == ["vitamin c the end", "vitamin c. theo"]
