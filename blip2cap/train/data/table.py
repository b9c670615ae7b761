"""Rows of a file of annotations, before they are examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blip2cap.outputs.json_entries import Entries
from blip2cap.train.data.example import Problem


@dataclass(kw_only=True, slots=True)
class Table:
    """Rows of one file."""

    given: str
    """Name of the file, as users gave it."""
    rows: Entries
    """Place and content of each row, which should be an object."""
    folder: str
    """Folder that names of images are relative to, unless --images says otherwise."""
    lists_answers: bool = False
    """True for formats in which answers are lists."""
    problems: list[Problem] = field(default_factory=list)

    def report(self, reason: str, where: str, detail: str) -> None:
        """Add a problem: an entry that is no row."""
        self.problems.append(Problem(reason=reason, where=where, detail=detail))

    @property
    def columns(self) -> Mapping[str, int]:
        """Columns, and in how many rows each of them is, in the order of their first appearance."""
        counts: dict[str, int] = {}
        for _, row in self.rows:
            if isinstance(row, dict):
                for name in row:
                    counts[name] = counts.get(name, 0) + 1
        return counts
