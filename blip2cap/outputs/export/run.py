"""One export: every row is written or left out for a reason, and counted."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from blip2cap.errors import ImageError, OutputError
from blip2cap.outputs.export.entries import entries, find_scattered
from blip2cap.outputs.export.first_pass import Overview, Questions, first_pass
from blip2cap.outputs.export.item import Item, Items
from blip2cap.outputs.export.reasons import COLLISION, EXISTING, MEANINGS, MISSING_IMAGE, NOT_TEXT, UNWRITABLE
from blip2cap.outputs.export.writer import Writer
from blip2cap.outputs.read import Results

_OF_ONE_ENTRY = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ),
        *(errno.EACCES, errno.EPERM),
    }
)
"""Errors that the name or the folder of one entry causes; others, as a full disk, would come with every entry."""


@dataclass(kw_only=True, slots=True)
class ExportCounts:
    """Rows of an export, by what was done with them."""

    num_rows: int = 0
    num_written: int = 0
    num_failed: int = 0
    """Rows that are not ok."""
    num_below: int = 0
    """Rows that score below a cut-off."""
    num_other_questions: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by reason."""
    num_several: int = 0
    """Rows that were written and have several captions."""
    num_captions: int = 0
    """Captions of these that were written."""


def export(
    results: Results,
    writer: Writer,
    items: Items,
    *,
    dry_run: bool = False,
    on_left_out: Callable[[Item, str, str], None] = lambda item, reason, why: None,
) -> ExportCounts:
    """Write all rows that are ok; `dry_run` only counts them. `on_left_out` gets an item, the reason and its meaning.

    Raises OutputError if the output cannot be written, UsageError if it must not be; unfinished files are removed.
    """
    questions, counts = Questions(wanted=writer.options.question), ExportCounts()
    overview = Overview()
    joined = not writer.keeps_rows
    scattered = find_scattered(results) if joined else {}
    if writer.unique_names or writer.one_text or writer.needs_count:
        overview = first_pass(results, writer, items, scattered)
        writer.num_items = overview.num_items
    try:
        with nullcontext() if dry_run else writer.writing():
            for entry in entries(results, writer.options, joined=joined, scattered=scattered):
                row = entry.row
                counts.num_rows += entry.num_rows
                counts.num_failed += entry.num_failed
                counts.num_below += entry.num_below
                if not entry.is_wanted:
                    continue
                if not questions.match(row):
                    counts.num_other_questions += 1
                else:
                    item = items.item(row, entry.number)
                    reason, why = _write(writer, item, overview, dry_run=dry_run)
                    if reason:
                        counts.left_out[reason] += 1
                        on_left_out(item, reason, why)
                        continue
                    counts.num_written += 1
                    if row.texts:
                        counts.num_several += 1
                        counts.num_captions += len(item.captions)
            questions.check(one_text=writer.one_text, to=writer.options.to)
    except BrokenPipeError:
        raise  # the reader of standard output is gone
    except OSError as error:
        path = _shown(error, "standard output" if writer.out == "-" else writer.out)
        make = "Create its folder first, or use" if isinstance(error, FileNotFoundError) else "Use"
        raise OutputError(f"{path} cannot be written: {error.strerror}. {make} another --out.") from error
    return counts


def _write(writer: Writer, item: Item, overview: Overview, *, dry_run: bool) -> tuple[str, str]:
    """Write one item; return the reason and its meaning if it is left out, else empty strings."""
    try:
        reason = _skip_reason(writer, item, overview) or ("" if dry_run else writer.write(item))
    except ImageError as error:
        return MISSING_IMAGE, error.detail
    except OSError as error:
        if not writer.writes_entries or error.errno not in _OF_ONE_ENTRY:
            raise
        return UNWRITABLE, f"{_shown(error, writer.out)} cannot be written: {error.strerror}"
    return reason, MEANINGS.get(reason, "")


def _shown(error: OSError, out: str) -> str:
    """Return the name of the file that an error is about."""
    return os.fsencode(error.filename or out).decode("utf-8", "backslashreplace")


def _skip_reason(writer: Writer, item: Item, overview: Overview) -> str:
    reason = writer.skip_reason(item)
    if reason in ("", EXISTING, NOT_TEXT) and (name := writer.output_name(item)) and overview.collides(name):
        return COLLISION  # also if the file exists: nothing says which of the images it belongs to
    return reason
