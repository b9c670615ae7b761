"""A JSON file -> its entries, each with its place: the line, or the index where a line has several.

json.loads tells no places. Here the elements of the lists at the top, where annotations are, are parsed one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from blip2cap.errors import InputError

Entries: TypeAlias = list[tuple[str, Any]]
"""Place and content of each element of a list."""

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path) -> Entries | dict[str, Any]:
    """Read a file that holds a list, as its entries, or an object, with entries in place of each list in it.

    Raises InputError if it cannot be read, or is no JSON of that form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    try:
        return _parse(path.name, text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}. Expected a list of entries, "
            "or COCO's object with lists; for one object on each line, name the file .jsonl."
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply.") from error


def _parse(name: str, text: str) -> Entries | dict[str, Any]:
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        entries, end = _list(name, text, start)
        _expect_end(text, end)
        return entries
    if text[start : start + 1] != "{":
        raise json.JSONDecodeError("neither a list nor an object", text, start)
    content: dict[str, Any] = {}
    at = _skip(text, start + 1)
    while text[at : at + 1] != "}":
        if content:
            at = _skip(text, _expect(text, at, ","))
        key, at = _DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise json.JSONDecodeError("a key that is no text", text, at)
        at = _skip(text, _expect(text, _skip(text, at), ":"))
        if text[at : at + 1] == "[":
            content[key], at = _list(f"{name} {key}", text, at)
        else:
            content[key], at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
    _expect_end(text, at + 1)
    return content


def _list(name: str, text: str, start: int) -> tuple[Entries, int]:
    """Return the elements of the list that begins at `start`, with their places, and its end."""
    elements, end = [], start
    for at, element, end in _elements(text, start):  # noqa: B007  the end of the last one
        elements.append((at, element))
    end = _expect(text, _skip(text, end + (not elements)), "]")
    lines, line, counted = [], 1, 0
    for at, _ in elements:
        line += text.count("\n", counted, at)
        counted = at
        lines.append(line)
    file = name.split(" ")[0]
    has_lines = len(set(lines)) == len(lines) and (len(lines) > 1 or lines[:1] > [1])
    places = [f"{file}:{line}" if has_lines else f"{name}[{index}]" for index, line in enumerate(lines)]
    return list(zip(places, (element for _, element in elements), strict=True)), end


def _elements(text: str, start: int) -> Iterator[tuple[int, Any, int]]:
    """Yield begin, content and end of each element of a list."""
    at = _skip(text, start + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        element, end = _DECODER.raw_decode(text, at)
        yield at, element, end
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            return
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise json.JSONDecodeError(f"expected {character!r}", text, at)
    return at + 1


def _expect_end(text: str, at: int) -> None:
    if (at := _skip(text, at)) != len(text):
        raise json.JSONDecodeError("extra data", text, at)
