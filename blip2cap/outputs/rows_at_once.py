"""Many lines of a journal at once -> keys, statuses and errors: a regular expression that matches our own rows.

It accepts no line that `json` would refuse, and not every line that `json` accepts: names with escapes, other columns
or blanks are left to `json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from blip2cap.rows import Schema

_TEXT = r'[^"\\\x00-\x1f]'
_STRING = rf'"{_TEXT}*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}){_TEXT}*+)*+"'
_NUMBER = r"-?(?:0|[1-9][0-9]{0,30}+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?"
_VALUE = rf"(?:{_STRING}|{_NUMBER}|\[(?:{_STRING}(?:, {_STRING})*+)?\])"

Found = tuple[bytes, bytes, bytes, bytes]
"""Name of the image, label, status and error of a row."""


def reader(schema: Schema) -> Callable[[bytes], list[Found] | None]:
    """Return a function that reads lines with their newlines; None if one of them needs another reader."""
    names = [column.name for column in schema.columns]
    label = names.index(schema.key) if schema.key else 0
    assert names.index("status") < names.index("error")
    groups = {
        "file_name": f'"({_TEXT}++)"' + ("" if schema.key else "()"),
        "file_name_b64": '""',
        schema.key: f'"({_TEXT}++)"',
        "status": '"(ok|failed)"',
        "error": '"([a-z_]*+)"',
    }
    assert 0 == names.index("file_name") <= label < names.index("status")
    members = ", ".join(f'"{name}": {groups.get(name, _VALUE)}' for name in names)
    rows = re.compile(rf"^\{{{members}\}}\n".encode(), re.MULTILINE)

    def read(lines: bytes) -> list[Found] | None:
        found: list[Found] = rows.findall(lines)
        # Each match is one line from its first byte to its newline.
        return found if len(found) == lines.count(b"\n") and _is_utf8(lines) else None

    return read


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
