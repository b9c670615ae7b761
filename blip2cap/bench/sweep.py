"""Images/s by batch size: 1, 2, 4, ... until more is of no use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blip2cap.bench.stages import Setup, median, run_once
from blip2cap.models.blip2.model import Blip2
from blip2cap.options import BatchOptions
from blip2cap.records import ImageRef

_LARGEST = {"cpu": 64, "cuda": 1024}
_PASS_S = 1.5
_LONG_S, _TOO_LONG_S = 5.0, 60.0
"""A batch that takes longer is measured once; one that takes much longer is the last."""
_WORSE = 0.85
"""A batch size that reaches less of the best rate than this, and the one before it too, ends the sweep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One batch size."""

    batch_size: int
    images_per_s: float
    lowest: float
    highest: float


def sweep(
    model: Blip2,
    setup: Setup,
    refs: Sequence[ImageRef],
    folder: Path,
    *,
    repeats: int,
    on_point: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Measure whole runs, from files to rows; each batch size is warmed up first.

    A size for which the memory is too small for any image ends the sweep.
    """
    points: list[Point] = []
    batch_size = 1
    while batch_size <= min(len(refs), _LARGEST[model.device.type]):
        sized = replace(setup, batch=BatchOptions(batch_size=batch_size))
        warm = run_once(model, sized, refs[:batch_size], folder)
        if not warm.num_images:
            break
        is_long = warm.seconds > _LONG_S
        num_batches = 1 if is_long else max(2, int(_PASS_S / warm.seconds))
        taken = refs[: min(num_batches, len(refs) // batch_size) * batch_size]
        passes = [run_once(model, sized, taken, folder) for _ in range(1 if is_long else repeats)]
        rates = sorted(one.images_per_s for one in passes)
        points.append(
            Point(
                batch_size=batch_size,
                images_per_s=median(passes).images_per_s,
                lowest=rates[0],
                highest=rates[-1],
            )
        )
        on_point(points[-1])
        best = max(point.images_per_s for point in points)
        worse = len(points) > 1 and all(point.images_per_s < _WORSE * best for point in points[-2:])
        if worse or warm.seconds > _TOO_LONG_S:
            break
        batch_size *= 2
    return points
