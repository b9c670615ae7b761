"""Options of the data of a training: files of annotations, folders of images, columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag

MAX_TOKENS = 32
"""From LAVIS (`max_txt_len`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Examples to train on, and how they are read."""

    PANEL: ClassVar = "Input"

    data: tuple[str, ...] = flag(
        (),
        "--data FILE",
        "Images with texts, or with questions and answers: COCO, VQA, LAVIS or kohya .json, .jsonl, .csv, .parquet, a "
        "folder with metadata.jsonl or .txt files, or rows of blip2cap; repeatable.",
    )
    images: tuple[str, ...] = flag(
        (),
        "--images DIR",
        "Folder that names of images are relative to; repeatable: the first that holds an image counts. If left out, "
        "the folder of the file that names them.",
    )
    val: tuple[str, ...] = flag((), "--val FILE", "Examples to evaluate on, in the same formats; repeatable.")
    mix: tuple[str, ...] = flag(
        (),
        "--mix FILE:WEIGHT",
        "Mix in another set: other.json:0.5 adds an example of it for every two of --data; repeatable.",
    )
    image_column: str | None = flag(
        None, "--image-column NAME", "Column with names of images. Needed only if it is not found by its name."
    )
    text_column: str | None = flag(None, "--text-column NAME", "Column with captions; the same.")
    question_column: str | None = flag(None, "--question-column NAME", "Column with questions; the same.")
    answer_column: str | None = flag(None, "--answer-column NAME", "Column with answers; the same.")
    prompt: str | None = flag(
        None, "--prompt TEXT", 'Text that captions continue, e.g. "a photo of". If left out, that of the model family.'
    )
    template: str | None = flag(
        None, "--template TEXT", "Prompt of a question, with {question}. If left out, that of the model family."
    )
    max_tokens: int = flag(
        MAX_TOKENS, "--max-tokens N", "Longer captions and answers are truncated to N tokens.", least=2
    )
    skip_bad: bool = flag(False, "--skip-bad", "Leave out bad examples instead of refusing to start.", panel="Safety")

    def __post_init__(self) -> None:
        check_limits(self)
        for given in self.mix:
            parse_mix(given)
        if self.template is not None and "{question}" not in self.template:
            raise UsageError(
                f'--template "{self.template}": has no {{question}}, so all questions would get the same prompt.'
            )
        for name, prompt in (("--prompt", self.prompt), ("--template", self.template)):
            if prompt is not None and prompt != prompt.rstrip():
                raise UsageError(
                    f'{name} "{prompt}": ends in a space. A space belongs to the first token of the text that follows: '
                    "remove it."
                )


def parse_mix(given: str) -> tuple[str, float]:
    """Return file and weight of a value of --mix. Raises UsageError."""
    name, colon, weight = given.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        number = -1.0
    if not (name and colon and 0 < number < float("inf")):
        raise UsageError(
            f"--mix {given}: expected FILE:WEIGHT with a weight above 0, like other.json:0.5, which adds an example of "
            "other.json for every two of --data."
        )
    return name, number
