"""Files of annotations -> examples; columns are found by their names, and said."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from blip2cap.errors import InputError, UsageError
from blip2cap.outputs.annotation_files import NAMES
from blip2cap.train.data.example import Data, DataSet, Example, Problem, Share
from blip2cap.train.data.image_files import ImageFiles
from blip2cap.train.data.table import Table
from blip2cap.train.data.tables import open_table
from blip2cap.train.data.vqa_files import VqaFiles, join_vqa
from blip2cap.train.options.data import DataOptions, parse_mix
from blip2cap.urls import scheme

Task: TypeAlias = Literal["caption", "vqa", "stage1", "stage2"]

_KNOWN: Mapping[str, tuple[str, ...]] = {
    "image": NAMES,
    "text": ("text", "caption", "captions", "texts", "sentence", "sentences"),
    "question": ("question", "text_input"),
    "answer": ("answer", "answers", "direct_answers", "text_output"),
    "image_id": ("image_id", "img_id"),
}
"""Names of the columns of each role, in order of preference."""


def read_data(options: DataOptions, task: Task | None) -> Data:
    """Read --data, --mix and --val; with None, files with questions and answers are read for vqa.

    Raises InputError for a file that cannot be read, or whose columns are not found. Entries that are no examples are
    problems of the sets.
    """
    if not options.data:
        raise UsageError("no --data given: expected files with images and their texts.")
    for folder in options.images:
        if not scheme(folder) and not os.path.isdir(folder):
            raise InputError(f"--images {folder}: no such folder. Expected the folder that names of images begin in.")
    sets = [read_set(options.data, options, task)]
    for given in options.mix:
        name, weight = parse_mix(given)
        # Captions mixed into questions keep a model from forgetting how to caption.
        mixed = read_set((name,), options, None if task == "vqa" else task)
        sets.append(replace(mixed, shares=tuple(replace(share, weight=weight) for share in mixed.shares)))
    return Data(train=_joined(sets), val=read_set(options.val, options, task) if options.val else None)


def read_set(given: Sequence[str], options: DataOptions, task: Task | None) -> DataSet:
    """Read some files as one set. Raises InputError."""
    vqa = VqaFiles()
    tables = [table for name in given if (table := open_table(name, vqa)) is not None]
    if vqa.given:
        tables.append(join_vqa(vqa, options.images))
    asks = task == "vqa" or (task is None and any(_holds_answers(table, options) for table in tables))
    sets = [_Reader(table, options, asks=asks).read() for table in tables]
    joined = _joined(sets)
    return replace(joined, shares=(Share(num_examples=len(joined.examples), weight=1.0),))


def _holds_answers(table: Table, options: DataOptions) -> bool:
    roles = (("question", options.question_column), ("answer", options.answer_column))
    return all(given or table.columns.keys() & _KNOWN[role] for role, given in roles)


def _joined(sets: Sequence[DataSet]) -> DataSet:
    return DataSet(
        examples=tuple(example for each in sets for example in each.examples),
        columns=tuple(line for each in sets for line in each.columns),
        problems=tuple(problem for each in sets for problem in each.problems),
        shares=tuple(share for each in sets for share in each.shares),
        folders=tuple(dict.fromkeys(folder for each in sets for folder in each.folders)),
        other_paths=tuple(path for each in sets for path in each.other_paths),
    )


class _BadEntryError(Exception):
    """An entry that is no example."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class _Reader:
    """Reads the examples of one table."""

    def __init__(self, table: Table, options: DataOptions, *, asks: bool) -> None:
        self.table, self.options, self.asks = table, options, asks
        self.files = ImageFiles(options.images or (table.folder,))
        self.names = table.columns
        self.columns = self._columns()
        self._paths: dict[str, str] = {}
        """Paths of the images so far, by their names: an image has about five captions."""
        self.lists_answers = table.lists_answers or self._has_list("answer")

    def read(self) -> DataSet:
        """Return the examples and the problems."""
        examples: list[Example] = []
        problems, other_paths = list(self.table.problems), []
        for where, row in self.table.rows:
            try:
                examples += self._examples(where, row)
            except _BadEntryError as bad:
                problems.append(Problem(reason=bad.reason, where=where, detail=bad.detail))
                if isinstance(row, dict):
                    with suppress(_BadEntryError):  # it is the image that is bad
                        other_paths.append(self.files.path(self._text(row, "image")))
        shown = ", ".join(
            f"{role} <- {self.columns[role]}"
            for role in ("image", "text", "question", "answer")
            if role in self.columns
        )
        return DataSet(
            examples=tuple(examples),
            columns=(f"{self.table.given}: {shown}",) if shown else (),
            problems=tuple(problems),
            folders=self.files.folders,
            other_paths=tuple(other_paths),
        )

    def _columns(self) -> dict[str, str]:
        """Return the column of each role. Raises InputError if one is not found."""
        if not self.names:
            return {}
        given = {
            "image": self.options.image_column,
            "text": self.options.text_column,
            "question": self.options.question_column,
            "answer": self.options.answer_column,
        }
        found: dict[str, str] = {}
        for role in ("image", *(("question", "answer") if self.asks else ("text",))):
            column = given[role]
            if column is not None and column not in self.names:
                raise InputError(
                    f"{self.table.given}: no column {column} (--{role}-column). Its columns are {self._listed()}."
                )
            column = column or self._known(role)
            if column is None:
                raise InputError(
                    f"{self.table.given}: no column with {_A[role]} was found by its name; its columns are "
                    f"{self._listed()}. Name it with --{role}-column."
                )
            found[role] = column
        if (column := self._known("image_id")) is not None and column not in found.values():
            found["image_id"] = column
        return found

    def _known(self, role: str) -> str | None:
        """Return the known name of a role that is in the most rows; the preferred one of several."""
        return max((name for name in _KNOWN[role] if name in self.names), key=self.names.__getitem__, default=None)

    def _listed(self) -> str:
        return ", ".join(self.names)

    def _has_list(self, role: str) -> bool:
        column = self.columns.get(role)
        return any(isinstance(row, dict) and isinstance(row.get(column), list) for _, row in self.table.rows)

    def _examples(self, where: str, row: Any) -> list[Example]:
        """Return the example of a row, or one for each of its captions. Raises _BadEntryError."""
        if not isinstance(row, dict):
            raise _BadEntryError("not an object", _shown(row))
        name = self._text(row, "image")
        if (path := self._paths.get(name)) is None:
            path = self._paths[name] = self.files.path(name)
        if self.asks:
            question, groups = self._text(row, "question"), [Counter(self._answers(row))]
        else:
            question, groups = None, [Counter([text]) for text in self._captions(row)]
        return [
            Example(
                path=path,
                name=name,
                question=question,
                texts=tuple(counts),
                weights=tuple(count / counts.total() for count in counts.values()),
                image_id=self._id(row, "image_id"),
                where=where,
            )
            for counts in groups
        ]

    def _captions(self, row: Mapping[str, Any]) -> list[str]:
        value = self._value(row, "text")
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _BadEntryError("empty text", f"{self.columns['text']} is an empty list")
        return [self._checked("text", each) for each in values]

    def _answers(self, row: Mapping[str, Any]) -> list[str]:
        value = self._value(row, "answer")
        if isinstance(value, str) and self.lists_answers:
            raise _BadEntryError(
                "answer is no list", f"{self.columns['answer']} is {_shown(value)}, not [{_shown(value)}]"
            )
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _BadEntryError("empty text", f"{self.columns['answer']} is an empty list")
        # Those of the VQA challenge are objects.
        values = [each.get("answer") if isinstance(each, dict) else each for each in values]
        return [self._checked("answer", each) for each in values]

    def _text(self, row: Mapping[str, Any], role: str) -> str:
        return self._checked(role, self._value(row, role))

    def _value(self, row: Mapping[str, Any], role: str) -> Any:
        column = self.columns[role]
        if row.get(column) is None:
            raise _BadEntryError("absent key", f"no {column}: {_shown(row)}")
        return row[column]

    def _checked(self, role: str, value: Any) -> str:
        """Return a text; captions, questions and answers without line breaks, which would end them for OPT."""
        column = self.columns[role]
        if not isinstance(value, str):
            raise _BadEntryError("wrong type", f"{column} is {_shown(value)}, no text")
        text = value if role == "image" else " ".join(value.split())
        if not text or "\0" in text:
            raise _BadEntryError("empty text", f"{column} is {_shown(value)}")
        try:
            os.fsencode(text) if role == "image" else text.encode()
        except UnicodeEncodeError:
            # Half a pair of surrogates, which JSON can hold: no tokenizer takes it, and no file is called so.
            raise _BadEntryError("wrong type", f"{column} is {_shown(value)}, not valid Unicode") from None
        return text

    def _id(self, row: Mapping[str, Any], role: str) -> str | None:
        value = row.get(self.columns.get(role, ""))
        return None if value is None else str(value)


_A = {"image": "names of images", "text": "captions", "question": "questions", "answer": "answers"}
_SHOWN = 60


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
