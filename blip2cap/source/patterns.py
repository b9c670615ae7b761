"""--include and --exclude: patterns as in .gitignore select paths."""

from __future__ import annotations

import re
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.options import SourceOptions

_HELP = "Expected one as in .gitignore: '*.png', 'pets/', 'drafts/**/old-*', '!keep.jpg'."


class Patterns:
    """The patterns of one run.

    The constructor raises UsageError for a pattern that cannot match anything, and if pathspec is not installed.
    """

    def __init__(self, options: SourceOptions) -> None:
        self._include = _compile("--include", options.include)
        self._exclude = _compile("--exclude", options.exclude)

    @property
    def any(self) -> bool:
        """True if patterns were given."""
        return self._include is not None or self._exclude is not None

    def excludes(self, path: str) -> bool:
        """Return whether a path is excluded; that of a folder ends with `/`, and excludes everything below it."""
        return _matches(self._exclude, path)

    def reason_against(self, path: str, *, folders_too: bool = False) -> str:
        """Return the reason to skip an image, under which it is counted; "" if it is included.

        With `folders_too` its parent folders are checked as well, which a walk has done already.
        """
        ends = [at for at, character in enumerate(path) if character == "/"] if folders_too and self.any else []
        if any(self.excludes(path[: end + 1]) for end in ends) or self.excludes(path):
            return "excluded"
        return "not_included" if self._include is not None and not _matches(self._include, path) else ""


def _matches(spec: Any, path: str) -> bool:
    # The wildcards of pathspec do not match newlines. No pattern holds one, so another character serves as well.
    return spec is not None and bool(spec.match_file(path.replace("\n", "\r")))


def _compile(flag: str, patterns: tuple[str, ...]) -> Any:
    """Return a pathspec, or None without patterns."""
    if not patterns:
        return None
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise UsageError(f"{flag}: pathspec is not installed. Run: pip install pathspec") from error
    matching = [_matches_paths(GitIgnoreSpec, flag, pattern) for pattern in patterns]
    if not any(matching):
        raise UsageError(f"{flag} {patterns[0]}: `!` re-includes what other patterns match, and there is no other.")
    # The other backends, which pathspec prefers if they are installed, accept only names in UTF-8.
    return GitIgnoreSpec.from_lines(patterns, backend="simple")


def _matches_paths(spec: Any, flag: str, pattern: str) -> bool:
    """Return whether a pattern matches paths, or (`!`) re-includes them. Raises UsageError if it does neither."""
    try:
        (compiled,) = spec.from_lines([pattern], backend="simple").patterns
    except (ValueError, re.error) as error:
        raise UsageError(f"{flag} {pattern}: not a pattern. {_HELP}") from error
    if compiled.include is None or "\n" in pattern:  # a comment, only spaces, or two lines
        raise UsageError(f"{flag} {pattern}: matches nothing. {_HELP}")
    return bool(compiled.include)
