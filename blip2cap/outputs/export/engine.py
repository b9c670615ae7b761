"""One export: rows in, each written or left out for a reason, and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from blip2cap.errors import OutputError
from blip2cap.outputs.export.item import Item, Items
from blip2cap.outputs.export.survey import Questions, Survey, survey
from blip2cap.outputs.export.writer import COLLISION, EXISTING, NOT_TEXT, Writer
from blip2cap.outputs.read import Results


@dataclass(kw_only=True, slots=True)
class ExportCounts:
    """What became of the rows."""

    num_rows: int = 0
    num_written: int = 0
    num_failed: int = 0
    """Rows that are not ok."""
    num_other_questions: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """By reason."""


def export(
    results: Results,
    writer: Writer,
    items: Items,
    *,
    dry_run: bool = False,
    on_left_out: Callable[[Item, str], None] = lambda item, reason: None,
) -> ExportCounts:
    """Write all rows that are ok; `dry_run` counts them instead.

    Raises OutputError if that cannot be written, UsageError if it must not be; what is not whole is removed.
    """
    wanted = writer.options.question
    look = survey(results, writer, items, wanted) if writer.has_keys or writer.one_text else Survey()
    questions, summary = Questions(wanted=wanted), ExportCounts()
    try:
        if not dry_run:
            writer.open()
        try:
            for number, row in enumerate(results, start=1):
                summary.num_rows += 1
                if row.status != "ok":
                    summary.num_failed += 1
                elif not questions.matches(row):
                    summary.num_other_questions += 1
                else:
                    item = items.item(row, number)
                    reason = _reason(writer, item, look) or ("" if dry_run else writer.write(item))
                    if reason:
                        summary.left_out[reason] += 1
                        on_left_out(item, reason)
                    else:
                        summary.num_written += 1
            questions.check(one_text=writer.one_text, to=writer.options.to)
            if not dry_run:
                writer.finish()
        finally:
            if not dry_run:
                writer.close()
    except OSError as error:
        place = os.fsencode(error.filename or writer.out).decode("utf-8", "backslashreplace")
        make = "Make its folder first, or use" if isinstance(error, FileNotFoundError) else "Use"
        raise OutputError(f"{place} cannot be written: {error.strerror}. {make} another --out.") from error
    return summary


def _reason(writer: Writer, item: Item, look: Survey) -> str:
    reason = writer.reason(item)
    if reason in ("", EXISTING, NOT_TEXT) and (key := writer.key(item)) and look.collides(key):
        return COLLISION  # also where a file of that name is there: it would not say whose it is
    return reason
