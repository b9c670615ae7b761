"""Flags of option dataclasses: metadata from which the command line, the help and the docs are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, TypeVar

from blip2cap.errors import UsageError

T = TypeVar("T")
PANELS = (
    *("Input", "Output", "Model", "Server", "Training", "Generation", "Text rules"),
    *("Speed", "Cluster", "Safety", "Other"),
)
"""Sections of the help, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """Command-line form of one option."""

    names: tuple[str, ...]
    """Flags, e.g. ("-m", "--model"); empty for a positional argument."""
    metavar: str
    """Placeholder for the value in the help; "" for a switch."""
    help: str
    panel: str
    """Section of the help, one of PANELS."""
    least: int | None = None
    """Smallest valid value."""
    hint: str = ""
    """Next step for a user whose value is below `least`."""
    choices: tuple[str, ...] = ()
    """All valid values; () for no such list."""

    @property
    def long_name(self) -> str:
        """Long flag without its dashes, e.g. "batch-size"; "" for a positional argument."""
        return next((name[2:] for name in self.names if name.startswith("--")), "")

    def check(self, value: Any) -> None:
        """Raise UsageError if the value is below the least, or not one of the choices."""
        if value is None:
            return
        if self.least is not None and value < self.least:
            raise UsageError(f"--{self.long_name} {value}: must be {self.least} or more. {self.hint}".rstrip())
        if self.choices and value not in self.choices:
            raise UsageError(f"--{self.long_name} {value}: must be one of {', '.join(self.choices)}.")


def parse_flag(usage: str, help: str, **settings: Any) -> Flag:
    """Make a flag from its usage line, as the help shows it: "-m, --model NAME", "--quiet", "INPUT"."""
    words = usage.replace(",", "").split()
    names = tuple(word for word in words if word.startswith("-"))
    return Flag(names=names, metavar=" ".join(words[len(names) :]), help=help, **settings)


def flag(default: T, usage: str, help: str, *, panel: str = "", **limits: Any) -> T:
    """Declare a dataclass field that users set with a flag; arguments as those of `Flag`.

    The panel is that of the class (its attribute PANEL) if none is given.
    """
    metadata = {"flag": parse_flag(usage, help, panel=panel, **limits)}
    return field(default=default, metadata=metadata)


def flags_of(options: Any) -> Iterator[tuple[Field[Any], Flag]]:
    """Yield the fields of an option dataclass, or of an instance, that have a flag."""
    for each in fields(options):
        if "flag" in each.metadata:
            own: Flag = each.metadata["flag"]
            yield each, own if own.panel else replace(own, panel=options.PANEL)


def check_limits(options: Any) -> None:
    """Raise UsageError for the first field whose value is outside the limits of its flag."""
    for each, its_flag in flags_of(options):
        its_flag.check(getattr(options, each.name))
