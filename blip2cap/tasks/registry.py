"""All tasks by name, for readers of outputs, which need the columns.

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
    """The columns of a task, for readers of its outputs."""

    schema_of: Callable[[Mapping[str, Any]], Schema]
    """Columns of an output with these settings."""
    recognise: Callable[[Collection[str]], Schema | None] = lambda names: None
    """Columns with these names, where there is no manifest; None if they do not belong to this task."""


TASKS: dict[str, TaskEntry] = {
    "vqa": TaskEntry(schema_of=vqa.schema_of, recognise=vqa.recognise),
    "caption": TaskEntry(schema_of=caption.schema_of, recognise=caption.recognise),
}


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of an output with these settings. Raises KeyError for an unknown task."""
    return TASKS[settings.get("command", "caption")].schema_of(settings)


def recognise(names: Collection[str]) -> Schema | None:
    """Return the columns of an output with these names; None if no task has them."""
    return next((schema for entry in TASKS.values() if (schema := entry.recognise(names))), None)
