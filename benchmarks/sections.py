"""What the suites for CPU and GPU have in common: a section that asks questions, and how a suite is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from benchmarks.suite import Facts, Suite, about, arguments, divide, judge, mean, value

QUESTIONS = (
    "is it day or night?",
    "where is this?",
    "is there a house?",
    "how many trees are there?",
    "what colour is the house?",
)
Sections = TypeVar("Sections")


def ask(suite: Suite, facts: Facts, ours: Callable[..., Facts]) -> Facts | None:
    """Ask all questions at once, one after the other, and at once again; return what the last found.

    `ours` runs a job with the questions that it is given.
    """
    before = suite.attempt(facts, "together", partial(ours, *QUESTIONS))
    single = [
        suite.attempt(facts, f"only_question_{number}", partial(ours, question))
        for number, question in enumerate(QUESTIONS, 1)
    ]
    again = suite.attempt(facts, "together_again", partial(ours, *QUESTIONS))
    one_by_one = sum(one["seconds"] for one in single if one) if all(single) else None
    together_s = mean(value(before, "seconds"), value(again, "seconds"))
    judge(facts, "times_one_by_one", divide(one_by_one, together_s), at_least=2.5)
    return again


def run(
    description: str | None,
    device: str,
    sections: Mapping[str, Callable[[Sections, Facts], None]],
    make: Callable[[Suite, Programs, Pictures], Sections],
    argv: Sequence[str] | None,
) -> int:
    """Read the options, run the sections that they ask for, and return the exit code."""
    options = arguments(description, list(sections), argv)
    suite = Suite(options.out, about(device, argv), minutes=options.minutes, only=options.only)
    programs = Programs(suite.left_s)
    with TemporaryDirectory(prefix=f"blip2cap-{device}-") as folder:
        owner = make(suite, programs, Pictures(Path(folder)))
        try:
            return suite.run({name: partial(section, owner) for name, section in sections.items()})
        finally:
            programs.close()
