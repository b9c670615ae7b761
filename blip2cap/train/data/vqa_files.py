"""Questions and annotations of the VQA challenge, joined: one row for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blip2cap.errors import InputError
from blip2cap.outputs.json_entries import Entries
from blip2cap.train.data.example import Problem
from blip2cap.train.data.image_files import ImageFiles
from blip2cap.train.data.table import Table


@dataclass(kw_only=True, slots=True)
class VqaFiles:
    """Questions and annotations as the VQA challenge has them; usually a file of each."""

    given: list[str] = field(default_factory=list)
    questions: Entries = field(default_factory=list)
    annotations: Entries = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """Entries of the files that are neither."""
    split: str = ""
    """`data_subtype`: train2014"""


def join_vqa(vqa: VqaFiles, images: Sequence[str]) -> Table:
    """Join questions with their annotations, and name their images, which are in the folders `images`.

    Raises InputError if only one of the two is given.
    """
    name = " and ".join(vqa.given)
    if not vqa.questions or not vqa.annotations:
        has, lacks = ("questions", "annotations") if vqa.questions else ("annotations", "questions")
        raise InputError(f"{name}: {has} without {lacks}. Give the file with the {lacks} too: --data A --data B.")
    folder = vqa.given[0].rpartition("/")[0] or "."
    table = Table(given=name, rows=[], folder=folder, problems=vqa.problems)
    answers: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for where, annotation in vqa.annotations:
        if isinstance(annotation, dict) and {"question_id", "answers"} <= annotation.keys():
            answers[str(annotation["question_id"])] = where, annotation
        else:
            table.report("absent key", where, "an annotation without question_id and answers")
    numbers = [each["image_id"] for _, each in vqa.questions if isinstance(each, dict) and _is_number(each, "image_id")]
    pattern = ImageFiles(images or (folder,)).coco_pattern(numbers, vqa.split)
    for where, question in vqa.questions:
        if not isinstance(question, dict) or not {"question_id", "image_id"} <= question.keys():
            table.report("absent key", where, "a question without question_id and image_id")
            continue
        _, annotation = answers.pop(str(question["question_id"]), ("", {}))
        if not annotation or annotation.get("image_id", question["image_id"]) != question["image_id"]:
            detail = f"question {question['question_id']} of image {question['image_id']} has " + (
                f"an annotation of image {annotation['image_id']}" if annotation else "no annotation"
            )
            table.report("mismatched ids", where, detail)
            continue
        row = {**question, "answers": annotation["answers"]}
        if "image" not in row and _is_number(row, "image_id"):
            row["image"] = pattern.format(split=vqa.split, number=row["image_id"])
        table.rows.append((where, row))
    for where, annotation in answers.values():
        detail = f"question_id {annotation['question_id']} is not among the questions"
        table.report("mismatched ids", where, detail)
    return table


def _is_number(row: Mapping[str, Any], name: str) -> bool:
    return type(row.get(name)) is int
