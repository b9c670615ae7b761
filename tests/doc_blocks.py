"""The blocks of the pages that tests run: commands with what they print, and Python with what it prints.

A block of commands is fenced with plain ``` and begins with "$ ". All blocks of a page run in one new folder, which
holds a copy of sample_images; `blip2cap` runs in this process, everything else in a shell. A block of Python is fenced
with ```python; all blocks of a page share their variables, and the plain block right below one is what it prints.

    python -m tests.doc_blocks    # writes what the commands print now into the pages
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.commands import invoke

ROOT = Path(__file__).parent.parent
PAGES = (
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("sample_images", "benchmarks", "blip2cap/tiny")),
)
ENVIRONMENT = {"COLUMNS": "100", "BLIP2CAP_DTYPE": "float32", "BLIP2CAP_DEVICE": "cpu"}
"""Environment of the commands: a terminal of this width; float32, in which a text is the same on any machine."""
NOT_YET = "<!-- not yet:"
"""Beginning of a line before a Python block that is not run. The comment says what is missing."""

_COMMANDS = re.compile(r"(?<=^```\n)\$ .*?(?=^```$)", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(
    r"^(?P<note><!--[^\n]*-->\n)?```python\n(?P<code>.*?)^```\n(?:\n```\n(?!\$ )(?P<printed>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


def command_blocks(page: Path) -> list[str]:
    """Return the blocks of commands of a page, with the output shown."""
    return _COMMANDS.findall(page.read_text(encoding="utf-8"))


def python_blocks(page: Path) -> list[tuple[str, str]]:
    """Return the code of each Python block that runs, and what the page says that it prints."""
    found = _PYTHON.finditer(page.read_text(encoding="utf-8"))
    return [(block["code"], block["printed"] or "") for block in found if not (block["note"] or "").startswith(NOT_YET)]


def run_commands(block: str) -> str:
    """Run the commands of a block in the current folder, and return them with what they print now."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{_run(command.removeprefix('$ '))}" for command in commands)


def _run(command: str) -> str:
    ours = re.fullmatch(r"(?:(?P<shell>.*) \| )?blip2cap (?P<arguments>.*)", command)
    shell = command if ours is None else ours["shell"]
    piped = subprocess.run(shell, shell=True, stdout=subprocess.PIPE, check=True).stdout if shell else b""
    if ours is None:
        return piped.decode().rstrip("\n") + "\n" if piped else ""
    lines = invoke(*shlex.split(ours["arguments"]), stdin=piped, env=ENVIRONMENT).output.splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def run_python(code: str, names: dict[str, object]) -> str:
    """Run code with the variables of the blocks before it; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), names)
    return printed.getvalue()


def comparable(output: str) -> str:
    """Replace what differs from run to run: rates, times, absolute paths; and the dtype, which the machine decides."""
    output = re.sub(r"[0-9.]+ images/s", "N images/s", output)
    output = re.sub(r"(?<=\")/[^\"]*(?=/sample_images/)", "FOLDER", output)
    output = re.sub(r"loaded in [0-9.]+ s", "loaded in N s", output)
    output = re.sub(r"\b(bfloat16|float32) on cpu\b", "DTYPE on cpu", output)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "TIME", output)


@contextlib.contextmanager
def folder_of_a_page() -> Iterator[None]:
    """Change to a new folder with a copy of sample_images."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(ROOT / "sample_images", "sample_images")
        yield


def main() -> None:
    """Write what the commands print now into every page; what differs only in its rates stays as it is."""

    def renew(block: re.Match[str]) -> str:
        now = run_commands(block[0])
        return block[0] if comparable(now) == comparable(block[0]) else now

    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        with folder_of_a_page():
            after = _COMMANDS.sub(renew, before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{os.path.relpath(page, ROOT)}: changed")


if __name__ == "__main__":
    main()
