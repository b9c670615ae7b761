"""A histogram in the terminal: how many rows are in each range of a number, and what a cut-off there would keep."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NUM_BINS = 20
_LEAST = 1e-9
"""Least width of a bin, relative to the values: below, rounding decides where a value is."""
_MOST_DIGITS = 12
"""Most digits before or after the point that limits are written with."""
_BAR = 40
"""Width of the longest bar, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One range of values, from `low` to below `high`; the last range includes its end."""

    low: float
    high: float
    count: int
    num_kept: int
    """Number of values of `low` or more: what a cut-off there keeps."""


def bins(values: Sequence[float]) -> list[Bin]:
    """Count values in ranges with round limits, about 20 of them."""
    low, high = min(values), max(values)
    width = high / _NUM_BINS - low / _NUM_BINS  # the difference of both may overflow
    if width <= _LEAST * max(abs(low), abs(high)):
        return [Bin(low=low, high=high, count=len(values), num_kept=len(values))]
    step = _round_step(width)
    first = math.floor(low / step)
    last = max(first, math.ceil(high / step) - 1)
    num_digits = max(0, -math.floor(math.log10(step))) + 2
    counts = [0] * (last - first + 1)
    for value in values:
        counts[min(max(math.floor(value / step + 1e-9) - first, 0), last - first)] += 1
    found, num_kept = [], len(values)
    for index, count in enumerate(counts):
        edges = round((first + index) * step, num_digits), round((first + index + 1) * step, num_digits)
        found.append(Bin(low=edges[0], high=edges[1], count=count, num_kept=num_kept))
        num_kept -= count
    return found


def lines(values: array[float], *, name: str, num_failed: int) -> Iterator[str]:
    """Yield the lines of a histogram. There must be a value."""
    found = bins(values)
    longest = max(each.count for each in found)
    edges = _edges(found)
    width = max(map(len, edges))
    ranges = [f"{low:>{width}} to {high:>{width}}" for low, high in itertools.pairwise(edges)]
    column = max(len(ranges[0]), len(name))
    numbers = max(7, len(f"{len(values):,}"))
    yield f"{name:<{column}}  {'rows':>{numbers}}  {'from here up':>{numbers + 9}}"
    for text, each in zip(ranges, found, strict=True):
        kept = f"{each.num_kept:>{numbers},} {each.num_kept / len(values):>7.1%}"
        yield f"{text:<{column}}  {each.count:>{numbers},}  {kept:>{numbers + 9}}  {_bar(each.count, longest)}".rstrip()
    ordered = sorted(values)
    below = ((share, ordered[int(share * (len(ordered) - 1))]) for share in (0.05, 0.25, 0.5))
    quantiles = ", ".join(f"{share:.0%} below {value:.4g}" for share, value in below)
    failed = f", {num_failed:,} failed and not counted" if num_failed else ""
    yield f"{len(values):,} rows{failed}; lowest {ordered[0]:.4g}, {quantiles}, highest {ordered[-1]:.4g}"


def _edges(found: Sequence[Bin]) -> list[str]:
    """Return the limits of bins as text, with as many digits as tell them apart."""
    limits = [each.low for each in found] + [found[-1].high]
    step = limits[1] - limits[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else _MOST_DIGITS + 1
    if digits > _MOST_DIGITS or max(map(abs, limits)) >= 10.0**_MOST_DIGITS:
        return [f"{limit:.6g}" for limit in limits]
    return [f"{limit:.{digits}f}" for limit in limits]


def _bar(count: int, longest: int) -> str:
    """Return a bar; at least one character, so that no row is invisible."""
    return "#" * max(round(_BAR * count / longest), count > 0)


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
