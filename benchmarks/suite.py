"""A suite of measurements that nobody has to watch: sections with a deadline, and one JSON file.

What a section finds is kept even if it fails later on; the suite goes on with the next. The file is written after each.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Facts = dict[str, Any]
Section = Callable[[Facts], None]
"""Measures, and puts what it finds into the facts at once."""
T = TypeVar("T")

MINUTES = 8.5
_GRACE_S = 20.0
"""What is under way when the time is up may take so much longer; then it is ended."""


class SkipError(Exception):
    """There are no means, or there is no time, to measure something."""


class Suite:
    """Runs sections and writes what they find."""

    def __init__(
        self,
        out: Path,
        about: Mapping[str, Any],
        *,
        minutes: float = MINUTES,
        only: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self.out, self.about, self.only = out, about, only
        self.clock, self.say = clock, say
        self.minutes = minutes
        self.ends = clock() + 60 * minutes

    def left_s(self) -> float:
        """Return how long what begins now may take. Raises SkipError if nothing may begin any more."""
        left_s = self.ends - self.clock()
        if left_s <= 0:
            raise SkipError(f"the {self.minutes:g} minutes are over")
        return left_s + _GRACE_S

    def run(self, sections: Mapping[str, Section]) -> int:
        """Run all sections, or those asked for; return 0, or 1 if one failed in whole or in part."""
        started = self.clock()
        found: dict[str, Facts] = {}
        for name, section in sections.items():
            if self.only and name not in self.only:
                continue
            self.say(f"{name} ...")
            found[name] = self._run(section)
            self._write({**self.about, "seconds": digits(self.clock() - started), "sections": found})
            self.say(f"{name}: {sentence(found[name])}")
        return int(any(has_error(facts) for facts in found.values()))

    def _run(self, section: Section) -> Facts:
        facts: Facts = {}
        started = self.clock()
        try:
            self.left_s()
            section(facts)
        except Exception as error:  # whatever it is, the other sections are none the worse for it
            facts |= reason(error)
        return {"seconds": digits(self.clock() - started), **facts}

    def attempt(self, facts: Facts, name: str, measure: Callable[[], T]) -> T | None:
        """Measure one part of a section; one that fails says so under its name, and is None. The others go on."""
        try:
            self.left_s()
            result = measure()
        except Exception as error:
            facts[name] = reason(error)
            self.say(f"  {name}: {sentence(facts[name])}")
            return None
        facts[name] = result
        return result

    def _write(self, result: Facts) -> None:
        """Write the file whole or not at all."""
        part = self.out.with_name(f".{self.out.name}.tmp")
        part.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.out)


def reason(error: Exception) -> Facts:
    """Say why there is no result."""
    if isinstance(error, SkipError):
        return {"skipped": str(error)}
    lines = str(error).strip().splitlines()
    return {"error": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"}


def has_error(facts: Facts) -> bool:
    """Say whether a section, or a part of it, failed."""
    return "error" in facts or any(isinstance(part, dict) and has_error(part) for part in facts.values())


def judge(
    facts: Facts, name: str, value: float | None, *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Note a figure beside what it should reach; None, where a part of it is missing, is left out."""
    if value is None:
        return
    figure: Facts = {"value": digits(value)}
    if at_least is not None:
        figure |= {"at_least": at_least, "reached": value >= at_least}
    if at_most is not None:
        figure |= {"at_most": at_most, "reached": value <= at_most}
    facts.setdefault("figures", {})[name] = figure


def sentence(facts: Facts) -> str:
    """Say in one line what came out of a section."""
    for word, verb in (("skipped", "skipped"), ("error", "failed")):
        if word in facts:
            return f"{verb}: {facts[word]}"
    parts = [f"{facts['seconds']:.0f} s"] if "seconds" in facts else []
    for name, figure in facts.get("figures", {}).items():
        wanted = [f"{key.replace('_', ' ')} {figure[key]:g}" for key in ("at_least", "at_most") if key in figure]
        parts.append(f"{name.replace('_', ' ')} {figure['value']:g}" + (f" ({wanted[0]})" if wanted else ""))
    return "; ".join(parts)


def value(facts: Facts | None, key: str = "images_per_s") -> float | None:
    """Return a number that a part has found, None if it has not."""
    found = None if facts is None else facts.get(key)
    return None if found is None else float(found)


def divide(one: float | None, other: float | None) -> float | None:
    """Divide, where both are known."""
    return None if one is None or not other else one / other


def mean(*values: float | None) -> float | None:
    """Return the mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def most(*values: float | None) -> float | None:
    """Return the largest of those that are known."""
    return max((value for value in values if value is not None), default=None)


def digits(number: float) -> float:
    """Keep four digits: more would say more than was measured."""
    return float(f"{number:.4g}")


def arguments(description: str | None, names: Sequence[str], argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options of a suite."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="write the results to this JSON file")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help="begin nothing later than this")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    found = parser.parse_args(argv)
    found.only = found.only or []
    if not found.out.resolve().parent.is_dir():
        parser.error(f"--out {found.out}: no such folder as {found.out.resolve().parent}")
    return found


def about(device: str, argv: Sequence[str] | None) -> Facts:
    """Describe the machine, the versions and the command."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    import torch

    from blip2cap.bench.machine import describe

    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *(sys.argv[1:] if argv is None else argv)]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": asdict(describe(torch.device(device))),
    }
