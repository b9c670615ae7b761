"""Outputs and references, read from files: texts about images, or about questions.

Covered: outputs of this tool, COCO captions, VQA questions and annotations, LAVIS annotations, lists of results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blip2cap.errors import InputError
from blip2cap.options import Kind
from blip2cap.outputs.open import exists, kind_of_existing, open_rows, read_manifest

_NAMES = ("file_name", "image_path", "filename", "image")
_QUESTIONS = ("question", "text_input")
_QUESTION_IDS = ("question_id", "instance_id")
_ANSWERS = ("answers", "answer", "direct_answers")
_CAPTIONS = ("texts", "text", "captions", "caption")
"""Keys of entries, in order of preference; the second of each is LAVIS's."""
_NUM_KEYS = 20
"""Most keys of an object that a message names."""
EXPECTED = (
    "Expected COCO captions, VQA annotations, LAVIS annotations (a list of objects with image and caption, or image, "
    "question and answer), or an output of blip2cap."
)
_EXPECTED_OUTPUT = (
    "Expected an output of `blip2cap caption` or `vqa`, or a .json list of objects with image_id and caption, or "
    "question_id and answer."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Texts about one image, or about one question about an image."""

    image: str = ""
    """Name of the image, "" if it is not known."""
    image_id: str = ""
    question: str | None = None
    question_id: str = ""
    texts: tuple[str, ...]
    """Captions or answers; () where a run has failed."""
    question_type: str = ""
    answer_type: str = ""

    @property
    def is_answer(self) -> bool:
        """True if the texts are answers."""
        return self.question is not None or bool(self.question_id)

    @property
    def label(self) -> str:
        """The entry as messages name it."""
        image = self.image or (f"image_id {self.image_id}" if self.image_id else "")
        if not self.is_answer:
            return image
        return ": ".join(filter(None, (image, self.question or f"question_id {self.question_id}")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Entries:
    """The entries of one output, or of references."""

    given: str
    entries: tuple[Entry, ...]
    """At least one; all are captions, or all are answers."""
    root: str = ""
    """Folder that names of images are relative to; "" if it is not known, or names are as the run was given them."""
    image_column: str | None = None
    """Column of the images in tables that the run has read."""
    have_texts: bool = True
    """False: the entries are images of an index, each with its name in place of a text."""

    @property
    def are_answers(self) -> bool:
        """True if the texts are answers."""
        return self.entries[0].is_answer

    @property
    def noun(self) -> str:
        """Name of one entry in messages: caption, answer, or image where nothing but images is known."""
        return "answer" if self.are_answers else "caption" if self.have_texts else "image"


def read_output(given: str) -> Entries:
    """Read what is to be evaluated. Raises InputError, or OutputRefusedError for damaged rows."""
    if given != "-" and not exists(given):
        raise InputError(f"{given}: no such file or folder. Paths are relative to {os.getcwd()}.")
    if Path(given).suffix.lower() == ".json":
        content = _read_json(given)
        if not isinstance(content, list):
            raise InputError(f"{given}: not a list of results. {_EXPECTED_OUTPUT}")
        return _checked(given, tuple(_of_objects(given, content)), _EXPECTED_OUTPUT)
    found = _checked(given, tuple(_of_rows(given)), _EXPECTED_OUTPUT)
    manifest = None if kind_of_existing(given) is Kind.STREAM else read_manifest(given)
    settings: Mapping[str, Any] = manifest.settings if manifest else {}
    return replace(found, root=str(settings.get("input_root", "")), image_column=settings.get("image_column"))


def read_references(files: Sequence[str]) -> Entries:
    """Read references from one file, or from several that complete each other, as questions and annotations do.

    Texts of one image, or of one question, are collected. Raises InputError.
    """
    given = " and ".join(files)
    found: list[Entry] = []
    questions: dict[str, Entry] = {}
    for file in files:
        if not exists(file):
            raise InputError(f"--references {file}: no such file or folder. Paths are relative to {os.getcwd()}.")
        if Path(file).suffix.lower() not in (".json", ".jsonl"):
            found += _of_rows(file)
            continue
        content = _read_json(file)
        if isinstance(content, list):
            found += _of_objects(file, content)
        elif not isinstance(content, dict):
            raise _wrong(file, f"{_shown(content)} is no list and no object")
        else:
            questions |= {each.question_id: each for each in _questions(file, content)}
            found += _of_coco(file, content)
    if questions:
        found = [_with_question(given, each, questions) for each in found]
    return _checked(given, tuple(_collected(each for each in found if each.texts)), EXPECTED)


def _checked(given: str, entries: tuple[Entry, ...], expected: str) -> Entries:
    """Return entries. Raises InputError if there is none, or if there are captions and answers."""
    if not entries:
        raise InputError(f"{given}: has no caption and no answer. {expected}")
    if len({each.is_answer for each in entries}) > 1:
        raise InputError(f"{given}: has captions and answers. Expected one of them: put the other into its own file.")
    return Entries(given=given, entries=entries)


def _of_rows(given: str) -> Iterator[Entry]:
    """Yield the rows of an output; of several captions for an image, the first is the best."""
    for row in open_rows(given):
        if "itm" in row.columns or ("text" not in row.columns and row.question is None):
            kind = "scores of texts" if "itm" in row.columns else "vectors"
            raise InputError(f"{given}: its rows are {kind}. {_EXPECTED_OUTPUT}")
        texts = (row.text,) if row.status == "ok" else ()
        yield Entry(image=row.file_name, question=row.question, texts=texts)


def _of_objects(given: str, content: Iterable[Any]) -> Iterator[Entry]:
    """Yield the entries of a list of objects: LAVIS, results of COCO and VQA, lines of JSON, rows of this tool."""
    for number, each in enumerate(content, start=1):
        if not isinstance(each, dict):
            raise _wrong(given, f"entry {number} is not an object")
        answers = _first(each, _ANSWERS)
        texts = answers if answers is not None else _first(each, _CAPTIONS)
        if texts is None:
            raise _wrong(given, f"entry {number} has no caption and no answer, but {_keys(each)}")
        question = _first(each, _QUESTIONS) if answers is not None else None
        if not isinstance(question, str | None):
            raise _wrong(given, f"entry {number} has {_shown(question)} for a question")
        entry = Entry(
            image=_image(given, number, _first(each, _NAMES)),
            image_id=_id(each.get("image_id")),
            question=question,
            question_id=_id(_first(each, _QUESTION_IDS)) if answers is not None else "",
            texts=() if each.get("status") == "failed" else _texts(given, number, texts),
            question_type=str(each.get("question_type") or ""),
            answer_type=str(each.get("answer_type") or ""),
        )
        if not (entry.image or entry.image_id or entry.question_id):
            raise _wrong(given, f"entry {number} names no image and no question, only {_keys(each)}")
        yield entry


def _of_coco(given: str, content: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the annotations of COCO or VQA, with the file names of their images where those are listed."""
    if "annotations" not in content:
        if "questions" in content:
            return
        raise _wrong(given, f"an object with {_keys(content)}")
    images = [each for each in _objects(given, content, "images") if "file_name" in each]
    try:
        names = {_id(each["id"]): str(each["file_name"]) for each in images}
    except KeyError as error:
        raise _wrong(given, f"an image lacks {error}") from error
    for entry in _of_objects(given, _objects(given, content, "annotations")):
        yield replace(entry, image=entry.image or names.get(entry.image_id, ""))


def _questions(given: str, content: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the questions of VQA, which have no answers."""
    try:
        for each in _objects(given, content, "questions"):
            yield Entry(
                image_id=_id(each.get("image_id")),
                question=str(each["question"]),
                question_id=_id(each["question_id"]),
                texts=(),
            )
    except KeyError as error:
        raise _wrong(given, f"a question lacks {error}") from error


def _objects(given: str, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects of COCO or VQA, empty if it is not there. Raises InputError for anything else."""
    found = content.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _wrong(given, f"its {name} are no list of objects")
    return found


def _with_question(given: str, entry: Entry, questions: Mapping[str, Entry]) -> Entry:
    asked = questions.get(entry.question_id)
    if asked is None:
        raise _wrong(given, f"no question has the id {entry.question_id or 'of ' + entry.label}")
    return replace(entry, question=asked.question, image_id=entry.image_id or asked.image_id)


def _collected(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield one entry for each image or question, with the texts of all."""
    together: dict[tuple[object, ...], Entry] = {}
    for each in entries:
        key = (each.image, each.image_id, each.question, each.question_id)
        there = together.get(key)
        together[key] = each if there is None else replace(there, texts=there.texts + each.texts)
    return iter(together.values())


def _read_json(given: str) -> Any:
    """Return the content of a .json file, or the lines of a .jsonl file as a list. Raises InputError."""
    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except OSError as error:
        raise InputError(f"{given}: cannot be read: {error.strerror}. {EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        reason = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else f"not JSON ({error})"
        raise InputError(f"{given}: {reason}. {EXPECTED}") from error


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the value of the first of these keys that has one."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _texts(given: str, number: int, value: Any) -> tuple[str, ...]:
    """Return captions or answers: a text, a list of texts, or the answers of VQA annotations."""
    every = value if isinstance(value, list) else [value]
    texts = [each.get("answer") if isinstance(each, dict) else each for each in every]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise _wrong(given, f"entry {number} has {_shown(value)} for texts")
    return tuple(map(str, texts))


def _image(given: str, number: int, value: Any) -> str:
    """Return the name of an image, "" for none. Raises InputError for what no file can be called."""
    name = "" if value is None else str(value)
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise _wrong(given, f"entry {number} has {_shown(name)} for the name of an image") from error
    return name


def _id(value: Any) -> str:
    """Return an id as text: files of one data set write 42 and "42", and tables with a gap 42.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _keys(content: Mapping[str, Any]) -> str:
    """Return the first keys of an object, for a message: those of kohya's are all names of images."""
    shown = ", ".join([*content][:_NUM_KEYS]) or "nothing"
    return shown if len(content) <= _NUM_KEYS else f"{shown}, ..."


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def _wrong(given: str, reason: str) -> InputError:
    return InputError(f"{given}: {reason}. {EXPECTED}")
