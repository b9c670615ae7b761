"""A first look at all rows: which names would collide, and which questions there are."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from blip2cap.errors import UsageError
from blip2cap.outputs.export.item import Items
from blip2cap.outputs.export.writer import Writer
from blip2cap.rows import Row

_NAMED_QUESTIONS = 5


@dataclass(kw_only=True, slots=True)
class Questions:
    """Which questions the rows answer, and which of them is wanted."""

    wanted: str | None
    seen: list[str] = field(default_factory=list)
    """The first few."""
    num_matching: int = 0

    def matches(self, row: Row) -> bool:
        """Whether a row is wanted. Raises UsageError for captions, where a question means nothing."""
        if self.wanted is not None and row.question is None:
            raise UsageError("--question has no effect on captions; it is for answers. Leave it out.")
        if row.question is not None and row.question not in self.seen and len(self.seen) <= _NAMED_QUESTIONS:
            self.seen.append(row.question)
        matches = self.wanted is None or row.question == self.wanted
        self.num_matching += matches
        return matches

    def check(self, *, one_text: bool, to: str) -> None:
        """Raise UsageError, after all rows, if no question matched, or several did where one text is to be written."""
        names = ", ".join(f'"{question}"' for question in self.seen[:_NAMED_QUESTIONS])
        names += ", ..." if len(self.seen) > _NAMED_QUESTIONS else ""
        if self.wanted is not None and self.seen and not self.num_matching:
            raise UsageError(f'--question "{self.wanted}": nobody asked that. The rows answer {names}.')
        if one_text and self.wanted is None and len(self.seen) > 1:
            raise UsageError(
                f"--to {to} holds one text for an image, and the rows answer {names}. Choose one with --question TEXT."
            )


class NameHashes:
    """Names, each in 8 bytes: an export may have a hundred million. Two names that are taken for one are left out."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    @staticmethod
    def hash(key: str) -> int:
        """Return 64 bits of a name."""
        return int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=8).digest(), "big")

    def add(self, key: str) -> None:
        """Add one name."""
        self._hashes.append(self.hash(key))

    def repeated(self) -> Set[int]:
        """Return the hashes of the names that were added more than once."""
        import numpy as np

        hashes = np.sort(np.frombuffer(self._hashes, dtype=np.uint64)) if self._hashes else np.empty(0, np.uint64)
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What must be known of all rows before the first is written."""

    repeated: Set[int] = frozenset()
    images: Set[str] = frozenset()
    """Images that could be taken for a sidecar by their suffix."""

    def collides(self, key: str) -> bool:
        """Whether two items have this key, or an image is called so."""
        return key in self.images or (bool(self.repeated) and NameHashes.hash(key) in self.repeated)


def survey(rows: Iterable[Row], writer: Writer, items: Items, wanted: str | None) -> Survey:
    """Read all rows once. Raises UsageError if they answer what cannot be written, or not what is wanted."""
    questions, keys, images = Questions(wanted=wanted), NameHashes(), set()
    extension = getattr(writer, "extension", None)
    for number, row in enumerate(rows, start=1):
        item = items.item(row, number)
        if extension and item.image.endswith(extension):
            images.add(os.path.normpath(item.image))  # failed ones too: they must not be written over
        if row.status == "ok" and questions.matches(row) and (key := writer.key(item)):
            keys.add(key)
    questions.check(one_text=writer.one_text, to=writer.options.to)
    return Survey(repeated=keys.repeated(), images=images)
