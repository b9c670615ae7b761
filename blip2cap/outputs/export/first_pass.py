"""A first pass over all rows: names in the output that collide, the number of items, and the questions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from blip2cap.errors import UsageError
from blip2cap.outputs.export.entries import entries
from blip2cap.outputs.export.item import Items
from blip2cap.outputs.export.name_hashes import NameHashes
from blip2cap.outputs.export.writer import Writer
from blip2cap.rows import Row

_NAMED_QUESTIONS = 5


@dataclass(kw_only=True, slots=True)
class Questions:
    """The questions that the rows answer, and the one that is wanted."""

    wanted: str | None
    seen: list[str] = field(default_factory=list)
    """The first few."""
    num_matching: int = 0

    def match(self, row: Row) -> bool:
        """Return whether a row is wanted. Raises UsageError for captions, which have no question."""
        if self.wanted is not None and row.question is None:
            raise UsageError("--question has no effect on captions; it is for answers. Leave it out.")
        if row.question is not None and row.question not in self.seen and len(self.seen) <= _NAMED_QUESTIONS:
            self.seen.append(row.question)
        matches = self.wanted is None or row.question == self.wanted
        self.num_matching += matches
        return matches

    def check(self, *, one_text: bool, to: str) -> None:
        """Raise UsageError, after all rows, if no question matched, or several did and the format holds one text."""
        names = ", ".join(f'"{question}"' for question in self.seen[:_NAMED_QUESTIONS])
        names += ", ..." if len(self.seen) > _NAMED_QUESTIONS else ""
        if self.wanted is not None and self.seen and not self.num_matching:
            raise UsageError(f'--question "{self.wanted}": nobody asked that. The rows answer {names}.')
        if one_text and self.wanted is None and len(self.seen) > 1:
            raise UsageError(
                f"--to {to} holds one text for an image, and the rows answer {names}. Choose one with --question TEXT."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Facts about all rows that have to be known before the first is written."""

    num_items: int = 0
    """Rows that are ok and wanted."""
    repeated: Set[int] = frozenset()
    """Hashes of the names in the output that several items have."""
    images: Set[str] = frozenset()
    """Images whose own name is that of a sidecar."""

    def collides(self, name: str) -> bool:
        """Return whether several items, or an item and an image, have this name."""
        return name in self.images or (bool(self.repeated) and NameHashes.hash(name) in self.repeated)


def first_pass(rows: Iterable[Row], writer: Writer, items: Items, scattered: Mapping[int, int]) -> Overview:
    """Read all rows once; `scattered` are the images whose rows do not follow each other.

    Raises UsageError if the format cannot hold their answers, if none of them is wanted, or if it needs the images and
    their folder is not known.
    """
    questions, names, images = Questions(wanted=writer.options.question), NameHashes(), set()
    for entry in entries(rows, writer.options, joined=not writer.keeps_rows, scattered=scattered):
        item = items.item(entry.row, entry.number)
        if writer.needs_root and not (item.image_path or item.archive):
            raise UsageError(f"--to {writer.options.to}: nothing says where the images are. Give --images DIR.")
        if writer.extension and item.image_path.endswith(writer.extension):
            images.add(os.path.normpath(item.image_path))  # also of failed rows: no image is overwritten
        if entry.is_wanted and questions.match(entry.row) and (name := writer.output_name(item)):
            names.add(name)
    questions.check(one_text=writer.one_text, to=writer.options.to)
    return Overview(num_items=questions.num_matching, repeated=names.repeated().keys(), images=images)
