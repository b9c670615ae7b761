"""Functions that run commands: in this process, or in a separate one where the process matters."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from typer.testing import CliRunner, Result

from blip2cap.cli import app
from blip2cap.tiny.scenes import draw
from tests.zygote import Command, the_zygote

Process: TypeAlias = Command | subprocess.Popen[bytes]
TINY = ("--model", "tiny", "--dtype", "float32")
"""In float32, where a text does not depend on how many are made at once; `auto` may be bfloat16."""


def draw_scenes(folder: Path, count: int, *, first_seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Draw scenes into `folder` as 000.png, 001.png and so on, named by their seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + count):
        draw(seed, size).image.save(folder / f"{seed:03}.png")
    return folder


def invoke(*args: str | Path | float, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
    """Run a command in this process; exceptions other than an exit are raised here."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*args: str | Path, cwd: Path, **settings: Any) -> Command:
    """Start a command in a separate process, with stdout and stderr in pipes."""
    return the_zygote().open(*args, cwd=cwd, **settings)


def finish(process: Process) -> tuple[bytes, bytes]:
    """Wait for a process; return what it printed to stdout and stderr."""
    return process.communicate()


def take_one_line(process: Command) -> bytes:
    """Read a line of what a process prints, and go away as `head -n 1` does."""
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    return line


def wait_until(condition: Callable[[], bool], process: Process) -> None:
    """Wait until `condition` holds; fails if the process ends before."""
    while not condition():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)


def read_rows(path: Path | bytes) -> list[dict[str, Any]]:
    """Read every row of an output file, or of what came on stdout."""
    content = path if isinstance(path, bytes) else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def num_lines(path: Path) -> int:
    """Count the whole lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def names_below(folder: Path) -> list[str]:
    """Return the names that the rows of a folder of PNG files have, in walking order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def environment(**changes: str) -> dict[str, str]:
    """Return this environment with changes, for a process."""
    return {**os.environ, **changes}


def on_terminal(*args: str | Path, cwd: Path, **variables: str) -> bytes:
    """Run a command whose stdout and stderr are one terminal of 100 columns; return everything that reached it."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    env = environment(TERM="xterm-256color", **variables)
    process = start(*args, cwd=cwd, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    printed = b""
    with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
        while block := os.read(ours, 65536):
            printed += block
    os.close(ours)
    process.wait()
    return printed
