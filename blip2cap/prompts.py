"""Prompt templates: literal replacement of known fields, never `str.format`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from blip2cap.errors import UsageError

FIELDS = ("stem", "folder", "file_name")
"""Of one image: `cat` and `pets` for `pets/cat.jpg`, and the whole name."""

VQA_TEMPLATES = {
    "opt": "Question: {question} Answer:",
    "t5": "Question: {question} Short answer:",
    "instructblip": "{question}",
}
"""How each family of models is asked. BLIP-2: the paper (arXiv 2301.12597, table 3); InstructBLIP takes the bare
question, as its authors' examples do."""

CAPTION_PROMPTS = {"opt": "", "t5": "", "instructblip": "A short image description."}
"""What a caption begins with unless --prompt is given. InstructBLIP was tuned on instructions and needs one."""

_FIELD = re.compile(r"\{([^{}]*)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Template:
    """A prompt with fields in braces; any other text is taken as it stands.

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
            raise UsageError(f'{option} "{text}": has no {{question}}, so every question would be asked alike.')

    def fill(self, file_name: str, question: str = "") -> str:
        """Put the values of one image into the template; values are never searched for fields again.

        Control characters in names become spaces: they are data, and no model was trained on them.
        """
        path = PurePosixPath(file_name)
        folder = path.parent.name
        values = {"stem": path.stem, "folder": folder, "file_name": file_name}
        values = {name: _CONTROL.sub(" ", value) for name, value in values.items()} | {"question": question}
        return _FIELD.sub(lambda match: values[match.group(1)], self.text)
