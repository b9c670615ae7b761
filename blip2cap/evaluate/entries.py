"""Outputs and references, read from files: texts about images, or about questions.

Covered: outputs of this tool, lists of results; references in every form of `annotation_files`.
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
from blip2cap.outputs.annotation_files import (
    NAMES,
    OWN_COLUMNS,
    SUFFIXES,
    Annotations,
    first_columns,
    id_text,
    open_annotations,
)
from blip2cap.outputs.open import exists, kind_of_existing, open_rows, read_manifest

_QUESTIONS = ("question", "text_input")
_QUESTION_IDS = ("question_id", "instance_id")
_ANSWERS = ("answers", "answer", "direct_answers", "text_output")
_CAPTIONS = ("texts", "text", "captions", "caption", "sentences", "sentence")
_IMAGE_IDS = ("image_id", "img_id")
"""Keys of entries, in order of preference: those that `train` knows."""
EXPECTED = (
    "Expected COCO captions, VQA annotations, LAVIS annotations (a list of objects with image and caption, or image, "
    "question and answer), the same columns in .jsonl, .csv or .parquet, kohya's metadata, a folder of .txt files "
    "named after the images, or an output of blip2cap."
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
        results = open_annotations(given, expected=_EXPECTED_OUTPUT)
        if results.form != "list":
            raise InputError(f"{given}: {results.form}, not a list of results. {_EXPECTED_OUTPUT}")
        return _checked(given, tuple(_of_annotations(results)), _EXPECTED_OUTPUT)
    manifest = None if kind_of_existing(given) is Kind.STREAM else read_manifest(given)
    if manifest is None and os.path.isfile(given):
        columns = first_columns(Path(given))
        if columns is not None and not {*columns} >= OWN_COLUMNS:
            raise InputError(
                f"{given}: not an output of blip2cap: its columns are {', '.join(columns)}, expected "
                f"{', '.join(sorted(OWN_COLUMNS))} and text or answer. {_EXPECTED_OUTPUT}"
            )
    found = _checked(given, tuple(_of_rows(given)), _EXPECTED_OUTPUT)
    settings: Mapping[str, Any] = manifest.settings if manifest else {}
    return replace(found, root=str(settings.get("input_root", "")), image_column=settings.get("image_column"))


def read_references(files: Sequence[str]) -> Entries:
    """Read references from one file, or from several that complete each other, as questions and annotations do.

    Texts of one image, or of one question, are collected. Raises InputError, or OutputRefusedError for damaged rows.
    """
    given = " and ".join(files)
    found: list[Entry] = []
    questions: dict[str, Mapping[str, Any]] = {}
    for file in files:
        if not exists(file):
            raise InputError(f"--references {file}: no such file or folder. Paths are relative to {os.getcwd()}.")
        if not (os.path.isdir(file) or (os.path.isfile(file) and Path(file).suffix.lower() in SUFFIXES)):
            found += _of_rows(file, every=True)
            continue
        annotations = open_annotations(file, expected=EXPECTED)
        if annotations.form == "own":
            found += _of_rows(annotations.given, every=True)
            continue
        for where, each in annotations.objects(annotations.questions):
            if not {"question", "question_id"} <= each.keys():
                raise InputError(f"{where}: a question without question and question_id, but {', '.join(each)}.")
            questions[id_text(each["question_id"])] = each
        found += _of_annotations(annotations)
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


def _of_rows(given: str, *, every: bool = False) -> Iterator[Entry]:
    """Yield the rows of an output; of several captions for an image, the first is the best, or `every` one counts."""
    for row in open_rows(given):
        if "itm" in row.columns or ("text" not in row.columns and row.question is None):
            kind = "scores of texts" if "itm" in row.columns else "vectors"
            raise InputError(f"{given}: its rows are {kind}. {_EXPECTED_OUTPUT}")
        texts = tuple((every and row.texts) or (row.text,))
        yield Entry(image=row.file_name, question=row.question, texts=texts if row.status == "ok" else ())


def _of_annotations(found: Annotations) -> Iterator[Entry]:
    """Yield the entries of a file of another tool; each line of kohya's texts and of text files is a caption."""
    rows = found.objects(found.rows)
    if found.given.lower().endswith(".csv"):  # an empty cell is no value
        rows = ((where, {name: cell for name, cell in row.items() if cell}) for where, row in rows)
    for each in _of_objects(rows):
        if found.form in ("kohya", "text files"):
            lines = (line.strip() for text in each.texts for line in text.split("\n"))
            yield replace(each, texts=tuple(filter(None, lines)))
        else:
            yield each


def _of_objects(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Entry]:
    """Yield the entries of objects: LAVIS, COCO, VQA and their results, kohya, lines of text files, tables."""
    for where, each in rows:
        answers = _first(each, _ANSWERS)
        texts = answers if answers is not None else _first(each, _CAPTIONS)
        if texts is None and each.get("status") != "failed":
            expected = ", ".join((*_CAPTIONS, *_ANSWERS))
            raise InputError(f"{where}: no caption and no answer, but {', '.join(each)}. Expected one of {expected}.")
        question = _first(each, _QUESTIONS) if answers is not None else None
        if not isinstance(question, str | None):
            raise InputError(f"{where}: its question is {_shown(question)}. Expected a text.")
        entry = Entry(
            image=_image(where, _first(each, NAMES)),
            image_id=id_text(_first(each, _IMAGE_IDS)),
            question=question,
            question_id=id_text(_first(each, _QUESTION_IDS)) if answers is not None else "",
            texts=() if each.get("status") == "failed" else _texts(where, texts),
            question_type=str(each.get("question_type") or ""),
            answer_type=str(each.get("answer_type") or ""),
        )
        if not (entry.image or entry.image_id or entry.question_id):
            expected = ", ".join((*NAMES, "image_id", *_QUESTION_IDS))
            raise InputError(
                f"{where}: names no image and no question, only {', '.join(each)}. Expected one of {expected}."
            )
        yield entry


def _with_question(given: str, entry: Entry, questions: Mapping[str, Mapping[str, Any]]) -> Entry:
    asked = questions.get(entry.question_id)
    if asked is None:
        raise InputError(f"{given}: no question has the id {entry.question_id or 'of ' + entry.label}. {EXPECTED}")
    image_id = entry.image_id or id_text(asked.get("image_id"))
    return replace(entry, question=str(asked["question"]), image_id=image_id)


def _collected(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield one entry for each image or question, with the texts of all."""
    together: dict[tuple[object, ...], Entry] = {}
    for each in entries:
        key = (each.image, each.image_id, each.question, each.question_id)
        there = together.get(key)
        together[key] = each if there is None else replace(there, texts=there.texts + each.texts)
    return iter(together.values())


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the value of the first of these keys that has one."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    """Return captions or answers: a text, a list of texts, or the answers of VQA annotations."""
    every = value if isinstance(value, list) else [value]
    texts = [each.get("answer") if isinstance(each, dict) else each for each in every]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: its texts are {_shown(value)}. Expected a text, or a list of texts.")
    return tuple(map(str, texts))


def _image(where: str, value: Any) -> str:
    """Return the name of an image, "" for none. Raises InputError for what no file can be called."""
    name = "" if value is None else str(value)
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {_shown(name)} is no name of an image: not valid Unicode.") from error
    return name


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
