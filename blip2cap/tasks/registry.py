"""All tasks by name, for readers of outputs: which columns an output has.

A new task is a module like `caption` with an entry here, and a command in `cli/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from blip2cap.rows import Schema
from blip2cap.tasks import caption, vqa


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEntry:
    """A task as the reader of its outputs sees it."""

    schema_of: Callable[[Mapping[str, Any]], Schema]
    """The columns of an output with these settings."""
    recognise: Callable[[Collection[str]], Schema | None] = lambda names: None
    """The columns, judged by their names alone, where no manifest is at hand; None if they belong to no such task."""


TASKS: dict[str, TaskEntry] = {
    "vqa": TaskEntry(schema_of=vqa.schema_of, recognise=vqa.recognise),
    "caption": TaskEntry(schema_of=caption.schema_of, recognise=caption.recognise),
}


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of an output with these settings. Raises KeyError for a task that is not known here."""
    return TASKS[settings.get("command", "caption")].schema_of(settings)


def recognise(names: Collection[str]) -> Schema | None:
    """Return the columns of an output by their names; None if no task has them."""
    return next((schema for entry in TASKS.values() if (schema := entry.recognise(names))), None)
