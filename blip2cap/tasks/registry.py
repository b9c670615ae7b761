"""All tasks by name, for readers of outputs, which need the columns.

A new task is a module like `caption` with an entry here, and a command in `cli/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blip2cap.rows import Schema
from blip2cap.tasks import caption, embed, match, vqa


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEntry:
    """The columns of a task, for readers of its outputs."""

    schema_of: Callable[[Mapping[str, Any]], Schema]
    """Columns of an output with these settings."""
    recognise: Callable[[Mapping[str, Any]], Schema | None] = lambda columns: None
    """Columns of a row with these names and values, where there is no manifest; None if it is not of this task."""


# Captions come last: their only column, `text`, is in other rows too.
TASKS: dict[str, TaskEntry] = {
    "match": TaskEntry(schema_of=match.schema_of, recognise=match.recognise),
    "embed": TaskEntry(schema_of=embed.schema_of, recognise=embed.recognise),
    "vqa": TaskEntry(schema_of=vqa.schema_of, recognise=vqa.recognise),
    "caption": TaskEntry(schema_of=caption.schema_of, recognise=caption.recognise),
}


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of an output with these settings. Raises KeyError for an unknown task."""
    return TASKS[settings.get("command", "caption")].schema_of(settings)


def recognise(columns: Mapping[str, Any]) -> Schema | None:
    """Return the columns of an output with a row of these names and values; None if no task has them."""
    return next((schema for entry in TASKS.values() if (schema := entry.recognise(columns))), None)
