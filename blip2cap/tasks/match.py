"""`match`: how well each text fits an image, or how well an image fits its own captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, Self

from blip2cap.column_types import FLOAT
from blip2cap.errors import ImageError, UsageError
from blip2cap.models.base import Checkpoint, Family, Session
from blip2cap.records import ImageRef, MatchScore
from blip2cap.rows import Column, Row, Schema, make_schema
from blip2cap.tasks.text import is_text

_DIGITS = 6
"""Digits after the point in rows; float32 has no more."""


class Captions(Protocol):
    """Captions of images by their names."""

    @property
    def fingerprint(self) -> str:
        """Text that changes with the captions; a setting of a folder of parts."""

    def of(self, ref: ImageRef) -> Sequence[str]:
        """Return the captions of an image, each once; none if it has none."""

    def no_caption(self, example: str) -> str:
        """Return the message that no image has a caption; `example` is the name of an image, "" if not known."""


@lru_cache
def match_schema() -> Schema:
    """Return the columns of scores."""
    return make_schema(Column("text"), Column("itm", FLOAT), Column("itc", FLOAT), key="text")


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """Scores of texts for images: the same `texts` for every image, or its own `captions`.

    Raises UsageError for texts that are empty, repeated or not valid text.
    """

    name: ClassVar[str] = "match"

    texts: tuple[str, ...] = ()
    captions: Captions | None = None

    def __post_init__(self) -> None:
        assert bool(self.texts) != (self.captions is not None), "either texts or captions"
        for text, count in Counter(self.texts).items():
            if not text.strip():
                raise UsageError("a text is empty. Give it with --text.")
            if not is_text(text):
                raise UsageError(f"text {text!r}: not valid UTF-8.")
            if count > 1:
                raise UsageError(f'text "{text}" is given twice. Every (image, text) makes one row.')

    @property
    def schema(self) -> Schema:
        """Columns of the rows."""
        return match_schema()

    @property
    def labels(self) -> Sequence[str | None] | None:
        """One row for each text; None if every image has captions of its own."""
        return self.texts or None

    def labels_of(self, ref: ImageRef) -> Sequence[str | None]:
        """Return the texts for one image."""
        return self.texts if self.captions is None else self.captions.of(ref)

    def labels_settings(self) -> dict[str, Any]:
        """Return the fingerprint of the captions."""
        return {} if self.captions is None else {"captions": self.captions.fingerprint}

    def no_labels(self, example: str) -> str:
        """Return the message that no image has a caption."""
        assert self.captions is not None
        return self.captions.no_caption(example)

    @property
    def deterministic(self) -> bool:
        """Equal images have equal scores."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return nothing: texts are no setting, as each has its own rows."""
        return {}

    def model_settings(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def for_checkpoint(self, checkpoint: Checkpoint, family: Family) -> Self:
        """Raise UsageError if the family cannot match."""
        family.check_task(self.name, checkpoint)
        return self

    def check(self, model: Any) -> None:
        """Raise UsageError for a text that does not fit the model; a caption that does not costs its row."""
        model.check_texts(self.texts)

    def start(self, model: Any, *, capacity: int | None) -> Session:
        """Open a session that compares images with texts."""
        session: Session = model.start_match(capacity=capacity, num_texts=len(self.texts))
        return session

    def prompt(self, ref: ImageRef, label: str | None) -> str:
        """Return the text."""
        return label or ""

    def finish(self, result: MatchScore) -> MatchScore | ImageError:
        """Round the scores. Those that are not finite become an ImageError."""
        if not (math.isfinite(result.itm) and math.isfinite(result.itc)):
            return not_finite()
        return MatchScore(itm=round(float(result.itm), _DIGITS), itc=round(float(result.itc), _DIGITS))

    def row(self, ref: ImageRef, label: str | None, result: MatchScore | ImageError, *, width: int, height: int) -> Row:
        """Make the row of one text for an image; a failed one has the scores 0."""
        failed = isinstance(result, ImageError)
        scores = {} if isinstance(result, ImageError) else {"itm": result.itm, "itc": result.itc}
        return self.schema.row(
            file_name=ref.file_name,
            file_name_b64=ref.file_name_b64,
            text=label,
            **scores,
            status="failed" if failed else "ok",
            error=result.code if isinstance(result, ImageError) else "",
            width=width,
            height=height,
        )


def not_finite() -> ImageError:
    """Return the error of an image for which a model computes numbers that are not finite."""
    return ImageError("unsupported", "the model computes no finite numbers for it; --dtype float32 may help")


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of scores, whatever the settings."""
    return match_schema()


def recognise(columns: Mapping[str, Any]) -> Schema | None:
    """Return the columns of scores if these are their names."""
    return match_schema() if {"text", "itm", "itc"} <= columns.keys() else None
