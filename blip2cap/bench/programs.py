"""Runs the programs that a benchmark measures in processes of their own: one JSON object from each."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLAIN = "blip2cap.bench.plain_transformers"
_OURS = "GOMP_SPINCOUNT"
"""The variable that our command line sets for itself; a peer runs as a user would start it."""


class ProgramError(Exception):
    """A program ended, or was stopped, without a result."""


class SkipError(Exception):
    """The means, or the time, for a measurement are missing; that is no failure."""


def run_peer(
    module: str, options: Mapping[str, Any], *, timeout_s: float | None = None, cwd: Path | None = None
) -> dict[str, Any]:
    """Run a script that prints one JSON object, and return the object. Raises ProgramError and SkipError."""
    command = [sys.executable, "-m", module, "--json", *flags(options)]
    environment = {name: value for name, value in os.environ.items() if name != _OURS}
    result = run_program(command, environment=environment, timeout_s=timeout_s, cwd=cwd)
    if "skipped" in result:
        raise SkipError(result["skipped"])
    return result


def run_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    cwd: Path | None = None,
) -> dict[str, Any]:
    """Run a command, and return the JSON object in its last line. Raises ProgramError, also after `timeout_s`."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProgramError(f"no result after {timeout_s:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    try:
        result: dict[str, Any] | None = json.loads(lines[-1]) if done.returncode == 0 and lines else None
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise ProgramError(why(done.returncode, done.stderr))
    return result


def flags(options: Mapping[str, Any]) -> list[str]:
    """Write options as command-line flags: True is a bare flag, False none, a list a repeated option."""
    found = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            found += [flag] if value else []
        else:
            found += [f"{flag}={one}" for one in (value if isinstance(value, (list, tuple)) else [value])]
    return found


def why(code: int, stderr: str = "") -> str:
    """Give in one line the reason why a process gave no result."""
    if code < 0:
        return f"ended by signal {-code}" + (": out of memory?" if code == -9 else "")
    lines = stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"ended with code {code} and no result"


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process in MB.

    Not ru_maxrss where there is a better source: it begins with the peak of the process that started this one.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:  # macOS, which counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return int(found[1]) / 1e3 if found else 0.0
