"""--include and --exclude: patterns as in .gitignore -> whether a path is wanted."""

from __future__ import annotations

import re
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.options import SourceOptions

_HELP = "Expected one as in .gitignore: '*.png', 'pets/', 'drafts/**/old-*', '!keep.jpg'."


class Patterns:
    """The patterns of one run.

    Raises UsageError for a pattern that could match nothing, and where pathspec is missing.
    """

    def __init__(self, options: SourceOptions) -> None:
        self._include = _compile("--include", options.include)
        self._exclude = _compile("--exclude", options.exclude)

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return self._include is not None or self._exclude is not None

    def excludes(self, path: str) -> bool:
        """Say whether a path is excluded; that of a folder ends with `/`, and nothing below it can be had back."""
        return _matches(self._exclude, path)

    def reason_against(self, path: str, *, folders_too: bool = False) -> str:
        """Say why an image is passed over, as it is counted; "" if it is wanted.

        With `folders_too` the folders on the way to it are looked at as well: no walk has done it.
        """
        ends = [place for place, letter in enumerate(path) if letter == "/"] if folders_too and self.any else []
        if any(self.excludes(path[: end + 1]) for end in ends) or self.excludes(path):
            return "excluded"
        return "not_included" if self._include is not None and not _matches(self._include, path) else ""


def _matches(spec: Any, path: str) -> bool:
    # The wildcards of pathspec stop at a newline. No pattern holds one, so it may as well be something else.
    return spec is not None and bool(spec.match_file(path.replace("\n", "\r")))


def _compile(flag: str, patterns: tuple[str, ...]) -> Any:
    """Return a pathspec of these, None if there are none."""
    if not patterns:
        return None
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise UsageError(f"{flag}: pathspec is not installed. Run: pip install pathspec") from error
    kinds = [_kind(GitIgnoreSpec, flag, pattern) for pattern in patterns]
    if not any(kinds):
        raise UsageError(f"{flag} {patterns[0]}: `!` takes back what other patterns match, and there is no other.")
    # The other backends, which pathspec prefers where they are installed, take no names that are not UTF-8.
    return GitIgnoreSpec.from_lines(patterns, backend="simple")


def _kind(spec: Any, flag: str, pattern: str) -> bool:
    """Say whether a pattern matches (True) or takes back (False). Raises UsageError if it does neither."""
    try:
        (compiled,) = spec.from_lines([pattern], backend="simple").patterns
    except (ValueError, re.error) as error:
        raise UsageError(f"{flag} {pattern}: not a pattern. {_HELP}") from error
    if compiled.include is None or "\n" in pattern:  # a comment, nothing but spaces, or two lines
        raise UsageError(f"{flag} {pattern}: matches nothing. {_HELP}")
    return bool(compiled.include)
