"""Report of a check of data, and the data without its bad examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from blip2cap.errors import InputError
from blip2cap.train.data.example import Data, DataSet, Problem
from blip2cap.train.data.reasons import ERRORS, REASONS

_NUM_NAMED = 3
"""Number of places that a message names for each reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Problems of examples to train on and to evaluate on, in the order of the files."""

    train: tuple[Problem, ...]
    val: tuple[Problem, ...] = ()
    num_images: int
    """Number of different image files that the examples name."""

    @property
    def by_reason(self) -> Counter[str]:
        """Number of problems by reason, errors first."""
        counts = Counter(problem.reason for problem in (*self.train, *self.val))
        return Counter({reason: counts[reason] for reason in REASONS if reason in counts})

    @property
    def num_errors(self) -> int:
        """Number of errors, with which a training does not start."""
        return sum(count for reason, count in self.by_reason.items() if reason in ERRORS)

    @property
    def num_bad(self) -> int:
        """Number of places with an error, or with several."""
        return len({problem.where for problem in (*self.train, *self.val) if problem.reason in ERRORS})

    @property
    def num_warnings(self) -> int:
        """Number of warnings."""
        return self.by_reason.total() - self.num_errors

    def errors(self) -> str:
        """Return the errors by reason in one phrase: "3 missing image (train.json:12, ...)"."""
        phrases = []
        for reason, count in self.by_reason.items():
            if reason in ERRORS:
                places = [problem.where for problem in (*self.train, *self.val) if problem.reason == reason]
                named = ", ".join([*places[:_NUM_NAMED], *(["..."] if count > _NUM_NAMED else [])])
                phrases.append(f"{count} {reason} ({named})")
        return "; ".join(phrases)


def usable(data: Data, report: Report, *, skip_bad: bool) -> Data:
    """Return the data without its bad examples. Raises InputError if there are any, unless `skip_bad` is given.

    Raises InputError too if no example is left.
    """
    if report.num_errors and not skip_bad:
        raise InputError(
            f"{report.num_bad} bad examples: {report.errors()}. `blip2cap check-data` shows all; repair them, or "
            "leave them out with --skip-bad."
        )
    train = _without(data.train, report.train)
    val = None if data.val is None else _without(data.val, report.val)
    for name, one in (("--data", train), ("--val", val)):
        if one is not None and not one.examples:
            raise InputError(f"{name}: no example{' is left' if report.num_errors else ' in it'}.")
    return replace(data, train=train, val=val)


def _without(data: DataSet, problems: Iterable[Problem]) -> DataSet:
    return data.without({problem.example for problem in problems if problem.example is not None})
