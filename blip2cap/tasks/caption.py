"""`caption`: one text for each image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from blip2cap.models.base import Family
from blip2cap.rows import Schema
from blip2cap.tasks.text import TextTask, schema_from, schema_with


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption(TextTask):
    """Captions that continue a prompt."""

    name: ClassVar[str] = "caption"
    template_setting: ClassVar[str] = "prompt"

    def _default_template(self, family: Family) -> str:
        return family.caption_prompt


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of captions made with these settings."""
    return schema_from(settings, question=False)


def recognise(columns: Collection[str]) -> Schema | None:
    """Return the columns of captions if these are their names."""
    return schema_with(columns, question=False) if "text" in columns else None
