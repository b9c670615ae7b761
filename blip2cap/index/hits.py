"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One image that was found."""

    file_name: str
    """Name in the index, valid UTF-8: undecodable bytes as backslash escapes."""
    path: str
    """Path of the file (undecodable bytes as surrogate escapes), or a URL; of a member, that of its archive."""
    score: float
    """Maximum cosine of any of its rows with any vector of the query, minus the same for negative queries."""
    itm: float | None = None
    """Probability of the match head, where the best were ranked again; else None."""
