"""Prompt templates: known fields are replaced literally, never by `str.format`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from blip2cap.errors import UsageError

FIELDS = ("stem", "folder", "file_name")
"""Fields of an image: for `pets/cat.jpg` they are `cat`, `pets` and the whole name."""

_FIELD = re.compile(r"\{([^{}]*)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Template:
    """A prompt with fields in braces; all other text is literal.

    Raises UsageError for a field that is unknown or, in a question template, for a missing {question}.
    """

    def __init__(self, text: str, *, option: str = "--prompt", question: bool = False) -> None:
        self.text = text
        allowed = (*FIELDS, "question") if question else FIELDS
        for name in _FIELD.findall(text):
            if name not in allowed:
                fields = " ".join(f"{{{field}}}" for field in allowed)
                raise UsageError(f'{option} "{text}": unknown field {{{name}}}. Known fields: {fields}')
        if question and "{question}" not in text:
            raise UsageError(f'{option} "{text}": has no {{question}}, so all questions would get the same prompt.')

    @property
    def is_constant(self) -> bool:
        """True if all images have the same prompt, or the same for a question."""
        return not any(f"{{{name}}}" in self.text for name in FIELDS)

    def fill(self, file_name: str, question: str = "") -> str:
        """Insert the values of one image; fields inside the values are not replaced.

        Control characters in names become spaces: no model was trained on them.
        """
        path = PurePosixPath(file_name)
        folder = path.parent.name
        values = {"stem": path.stem, "folder": folder, "file_name": file_name}
        values = {name: _CONTROL.sub(" ", value) for name, value in values.items()} | {"question": question}
        return _FIELD.sub(lambda match: values[match.group(1)], self.text)
