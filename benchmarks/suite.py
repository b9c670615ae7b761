"""An unattended suite of measurements: sections with a deadline, and one JSON file.

The findings of a section are kept even if it fails later; the suite continues with the next section. The file is
written after each measurement, so that nothing is lost if the machine is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import Facts, Job, reason
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from blip2cap.bench.machine import describe
from blip2cap.bench.programs import SkipError
from blip2cap.bench.report import digits
from blip2cap.options import ModelOptions
from blip2cap.outputs.files import OS_FILES, write_whole

MINUTES = 8.5
_GRACE_S = 20.0
"""A measurement that runs at the deadline may take this much longer; then it is stopped."""


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
        self.out, self.about, self.minutes, self.only = out, about, minutes, only
        self.clock, self.say = clock, say
        self.started = clock()
        self.ends = self.started + 60 * minutes
        self.found: dict[str, Facts] = {}
        """The findings of each section so far."""

    def left_s(self) -> float:
        """Return the time for a measurement that starts now. Raises SkipError after the deadline."""
        left_s = self.ends - self.clock()
        if left_s <= 0:
            raise SkipError(f"the {self.minutes:g} minutes are over")
        return left_s + _GRACE_S

    def run(self, sections: Mapping[str, Callable[[Section], None]], programs: Programs, pictures: Pictures) -> int:
        """Run all sections, or those asked for; return 0, or 1 if one failed in whole or in part."""
        for name in [name for name in sections if not self.only or name in self.only]:
            self.say(f"{name} ...")
            began = self.clock()
            section = Section(self, programs, pictures)
            self.found[name] = section.facts
            try:
                self.left_s()
                sections[name](section)
            except Exception as error:  # of any kind: the other sections do not depend on this one
                section.facts |= reason(error)
            self.found[name] = {"seconds": digits(self.clock() - began), **section.facts}
            self.write()
            self.say(f"{name}: {sentence(self.found[name])}")
        return int(any(has_error(facts) for facts in self.found.values()))

    def write(self) -> None:
        """Write the findings so far."""
        result = {**self.about, "seconds": digits(self.clock() - self.started), "sections": self.found}
        write_whole(OS_FILES, self.out, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())


class Section:
    """One section: it measures parts, each of which may fail alone, and compares figures with targets."""

    def __init__(self, suite: Suite, programs: Programs, pictures: Pictures) -> None:
        self.suite, self.programs, self.pictures = suite, programs, pictures
        self.facts: Facts = {}

    def attempt(self, name: str, measure: Callable[..., Facts], *args: Any, **options: Any) -> Facts:
        """Measure one part; one that fails gives the reason under its name, and {} here."""
        began = self.suite.clock()
        try:
            self.suite.left_s()
            self.facts[name] = measure(*args, **options)
        except Exception as error:
            self.facts[name] = reason(error)
            self.suite.say(f"  {name}: {sentence(self.facts[name])}")
            return {}
        finally:
            self.suite.write()
        self.suite.say(f"  {name}: {self.suite.clock() - began:.0f} s")
        return self.facts[name]

    def ours(self, name: str, model: ModelOptions, job: Job) -> Facts:
        """Measure ours."""
        return self.attempt(name, self.programs.ours, model, job)

    def peer(self, name: str, module: str, **options: Any) -> Facts:
        """Run a script that ours is compared with."""
        return self.attempt(name, self.programs.peer, module, **options)

    def judge(
        self, name: str, value: float | None, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Note a figure beside its target; None, where a part of it is missing, is left out."""
        if value is None:
            return
        figure: Facts = {"value": digits(value)}
        if at_least is not None:
            figure |= {"at_least": at_least, "reached": value >= at_least}
        if at_most is not None:
            figure |= {"at_most": at_most, "reached": value <= at_most}
        self.facts.setdefault("figures", {})[name] = figure


def has_error(facts: Facts) -> bool:
    """Return True if a section, or a part of it, failed."""
    return "error" in facts or any(isinstance(part, dict) and has_error(part) for part in facts.values())


def sentence(facts: Facts) -> str:
    """Sum up the findings of a section, or of a part, in one line."""
    for word, verb in (("skipped", "skipped"), ("error", "failed")):
        if word in facts:
            return f"{verb}: {facts[word]}"
    parts = [f"{facts['seconds']:.0f} s"] if "seconds" in facts else []
    for name, figure in facts.get("figures", {}).items():
        wanted = [f" ({key.replace('_', ' ')} {figure[key]:g})" for key in ("at_least", "at_most") if key in figure]
        parts.append(f"{name.replace('_', ' ')} {figure['value']:g}" + "".join(wanted))
    return "; ".join(parts)


def divide(one: float | None, other: float | None) -> float | None:
    """Divide, where both are known."""
    return None if one is None or not other else one / other


def known(values: Sequence[float | None]) -> list[float]:
    """Return those that are not None."""
    return [value for value in values if value is not None]


def mean(*values: float | None) -> float | None:
    """Return the mean of those that are known."""
    return sum(found) / len(found) if (found := known(values)) else None


def most(*values: float | None) -> float | None:
    """Return the largest of those that are known."""
    return max(known(values), default=None)


def main(
    description: str | None,
    sections: Mapping[str, Callable[[Section], None]],
    argv: Sequence[str] | None,
    *,
    device: str = "cpu",
    files: int = 0,
) -> int:
    """Read the options of a suite, run it in a folder that can hold `files` files, and return the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="write the results to this JSON file")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help="start nothing later than this")
    parser.add_argument(
        "--only", action="append", choices=list(sections), metavar="NAME", help=f"of {', '.join(sections)}"
    )
    options = parser.parse_args(argv)
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out {options.out}: no such folder as {options.out.resolve().parent}")
    if device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU: nothing was measured, and nothing written.", file=sys.stderr)
        return 2
    suite = Suite(options.out, about(device, argv), minutes=options.minutes, only=options.only or ())
    programs = Programs(suite.left_s)
    with TemporaryDirectory(prefix="blip2cap-suite-") as name:
        pictures = Pictures(Path(name))
        if (free := pictures.num_free()) < files:
            print(f"{name}: {free:,} more files fit, {files:,} are needed. Set TMPDIR.", file=sys.stderr)
            return 2
        try:
            return suite.run(sections, programs, pictures)
        finally:
            programs.close()


def about(device: str, argv: Sequence[str] | None) -> Facts:
    """Describe the machine, the versions and the command."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *(sys.argv[1:] if argv is None else argv)]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": asdict(describe(torch.device(device))),
    }
