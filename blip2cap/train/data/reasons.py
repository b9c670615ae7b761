"""Reasons of problems of examples: errors, with which a training does not start, and warnings."""

from __future__ import annotations

from collections.abc import Mapping

ERRORS: Mapping[str, str] = {
    "not an object": "Expected one JSON object on each line, or a list of objects.",
    "absent key": "Add the value, or remove the entry.",
    "wrong type": "Names of images, captions, questions and answers are texts.",
    "answer is no list": 'Write "answer": ["yes"]: other tools read a bare text as one answer for each letter.',
    "empty text": "Add the text, or remove the entry.",
    "image token": "A text names the placeholder of an image, left over from another tool. Remove it.",
    "mismatched ids": "An id belongs to something else, or to nothing. Take images and texts of the same release.",
    "missing image": "Expected a file below --images. Names of images are relative to it.",
    "unreadable image": "Replace the file, or remove the entry.",
    "too long": "Prompt and text together exceed the positions of the model. Shorten the question.",
}
"""Reason -> what to do."""
WARNINGS: Mapping[str, str] = {
    "failed row": "Rows of images that a run could not process are left out.",
    "duplicate": "The same image with the same texts counts as often as it is there.",
    "equal images": "The same picture under several names.",
    "unreferenced image": "No entry names these files; they are not used.",
    "train/val overlap": "Results on a picture that is also trained on say little.",
    "answer balance": "A model can learn to always say it: mix in other questions with --mix FILE:WEIGHT.",
    "truncated text": "The rest is not learnt. Raise --max-tokens, or shorten the text.",
}
"""Reason -> what it means."""
REASONS = (*ERRORS, *WARNINGS)
"""All reasons, in the order of reports."""
