"""The rows of an export one after the other: what fails or scores too low is marked, texts of one image are joined."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from blip2cap.column_types import FLOAT, STRINGS
from blip2cap.errors import UsageError
from blip2cap.outputs.export.name_hashes import NameHashes
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.rows import Column, Row, Schema, make_schema

_CUT_OFFS = {"itm": "min_itm", "itc": "min_itc"}
"""Column of a score -> field of the options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row to export, or the rows of `match` about one image."""

    row: Row
    number: int
    """Number of the row in the results, from 1, or of the first of several."""
    num_rows: int = 1
    num_failed: int = 0
    """Number of these rows that are not ok."""
    num_below: int = 0
    """Number of ok rows below a cut-off."""

    @property
    def is_wanted(self) -> bool:
        """True if one of its rows is ok and scores high enough."""
        return self.num_failed + self.num_below < self.num_rows


def find_scattered(rows: Iterable[Row]) -> dict[int, int]:
    """Find the images of `match` whose rows do not all follow each other, as after a text was added.

    Return the hash of each, and in how many places it has rows; takes 8 bytes of memory for every image.
    """
    first = next(iter(rows), None)
    if first is None or "itm" not in first.columns:
        return {}
    names = NameHashes()
    for name, _ in itertools.groupby(map(_name, rows)):
        names.add(name)
    return names.repeated()


def entries(
    rows: Iterable[Row], options: ExportOptions, *, joined: bool, scattered: Mapping[int, int]
) -> Iterator[Entry]:
    """Yield all rows.

    With `joined`, the rows of `match` that are about one image become one row, whose texts are those that score high
    enough, the best first. Rows of `scattered` images are held in memory until the last of their image is read.
    Raises UsageError for rows without the scores of a cut-off, and, if `joined`, for rows without a text.
    """
    cut_offs = {column: least for column, name in _CUT_OFFS.items() if (least := getattr(options, name)) is not None}
    for numbered in _groups(rows, joined=joined, scattered=scattered):
        numbers, found = zip(*numbered, strict=True)
        _check(found[0], options, cut_offs, joined=joined)
        ok = [row for row in found if row.status == "ok"]
        kept = [row for row in ok if all(row[column] >= least for column, least in cut_offs.items())]
        yield Entry(
            row=_joined(kept) if kept and joined and "itm" in kept[0].columns else (*kept, *found)[0],
            number=numbers[0],
            num_rows=len(found),
            num_failed=len(found) - len(ok),
            num_below=len(ok) - len(kept),
        )


def _groups(rows: Iterable[Row], *, joined: bool, scattered: Mapping[int, int]) -> Iterator[Sequence[tuple[int, Row]]]:
    """Yield the rows of each entry, with their numbers."""

    def image(numbered: tuple[int, Row]) -> int | str:
        number, row = numbered
        return _name(row) if joined and "itm" in row.columns else number

    waiting: dict[str, list[tuple[int, Row]]] = {}
    num_places = Counter[str]()
    for name, group in itertools.groupby(enumerate(rows, start=1), key=image):
        if not scattered or isinstance(name, int) or (last := scattered.get(NameHashes.hash(name))) is None:
            yield tuple(group)
            continue
        waiting.setdefault(name, []).extend(group)
        num_places[name] += 1
        if num_places[name] == last:
            yield waiting.pop(name)
    yield from waiting.values()  # images with the hash of another one


def _name(row: Row) -> str:
    return f"{row.file_name}\0{row.file_name_b64}"


def _check(row: Row, options: ExportOptions, cut_offs: Iterable[str], *, joined: bool) -> None:
    for column in cut_offs:
        if column not in row.columns:
            raise UsageError(f"--min-{column}: the rows have no {column}. Expected an output of `blip2cap match`.")
    if joined and not {"text", "answer"} & row.columns.keys():
        raise UsageError(f"--to {options.to}: the rows have no text. Vectors go to parquet, jsonl or csv.")


def _joined(rows: Sequence[Row]) -> Row:
    """Return one row for the texts of an image, the best first, with the scores of the best."""
    rows = sorted(rows, key=lambda row: (row["itm"], row["itc"]), reverse=True)
    columns = {**rows[0].columns}
    if len(rows) > 1:
        columns["texts"] = tuple(row.text for row in rows)
    schema = _schema(several=len(rows) > 1)
    return Row(schema, {name: columns[name] for name in schema.names})


@lru_cache
def _schema(*, several: bool) -> Schema:
    texts = (Column("texts", STRINGS),) if several else ()
    return make_schema(Column("text"), *texts, Column("itm", FLOAT), Column("itc", FLOAT))
