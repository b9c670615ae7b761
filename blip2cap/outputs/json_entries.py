"""A JSON file -> its entries, each with its place: the line, or the index where a line has several.

json.loads tells no places. So the lists at the top, where annotations are, are parsed again, element by element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from blip2cap.errors import InputError

Entries: TypeAlias = list[tuple[str, Any]]
"""Place and content of each element of a list."""

_DECODER = json.JSONDecoder()
_SEPARATORS = re.compile(r"[ \t\n\r,:]*")


def read_json(path: Path) -> Entries | dict[str, Any]:
    """Read a file that holds a list, as its entries, or an object, with entries in place of each list in it.

    Raises InputError if it cannot be read, or is no JSON of that form.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
        if not isinstance(content, list | dict):
            raise json.JSONDecodeError("neither a list nor an object", text, 0)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}. Expected a list of entries, "
            "or COCO's object with lists; for one object on each line, name the file .jsonl."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in thousands of lists
        raise InputError(f"{path}: cannot be parsed: {error}.") from error
    at = _after_separators(text, 0)
    if isinstance(content, list):
        return list(zip(_places(path.name, "", text, _starts(text, at)[0]), content, strict=True))
    starts: dict[str, list[int]] = {}
    at = _after_separators(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _after_separators(text, at)
        starts.pop(key, None)  # of equal keys, json.loads takes the last
        if text[at] == "[":
            starts[key], at = _starts(text, at)
        else:
            _, at = _DECODER.raw_decode(text, at)
        at = _after_separators(text, at)
    for key, its_starts in starts.items():
        content[key] = list(zip(_places(path.name, f" {key}", text, its_starts), content[key], strict=True))
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a text file is read into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{_bad_line(path)}: not valid UTF-8. Save it as UTF-8.") from error


def _bad_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8; an error tells only its place in a block."""
    lines = path.read_bytes().split(b"\n")
    return next((number for number, line in enumerate(lines, 1) if line.decode(errors="ignore").encode() != line), 1)


def _starts(text: str, at: int) -> tuple[list[int], int]:
    """Return where the elements of the list at `at` begin, and where it ends. The text is valid JSON."""
    starts = []
    at = _after_separators(text, at + 1)
    while text[at] != "]":
        starts.append(at)
        at = _after_separators(text, _DECODER.raw_decode(text, at)[1])
    return starts, at + 1


def _after_separators(text: str, at: int) -> int:
    found = _SEPARATORS.match(text, at)
    assert found is not None
    return found.end()


def _places(file: str, name: str, text: str, starts: Sequence[int]) -> list[str]:
    """Return the places of the elements of a list that begin at `starts`."""
    lines, line, counted = [], 1, 0
    for at in starts:
        line += text.count("\n", counted, at)
        counted = at
        lines.append(line)
    has_lines = len(set(lines)) == len(lines) and (len(lines) > 1 or lines[:1] > [1])
    return [f"{file}:{line}" if has_lines else f"{file}{name}[{index}]" for index, line in enumerate(lines)]
