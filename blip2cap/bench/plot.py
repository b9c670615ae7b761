"""Images/s by batch size as a picture, and as bars of text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[int, float]]
"""Batch size, images/s."""

_SIZE = (1000, 600)
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 110, 40, 80
"""Margins around the field of the plot."""
_INK, _GREY, _LIGHT = (30, 30, 36), (110, 110, 118), (226, 226, 230)
_COLOURS = ((20, 90, 200), (214, 96, 20), (40, 140, 70))
_NUM_TICKS = 6
_INSET = 26
"""Between the ends of the axis and the first and last value, so that their labels have room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """Where values lie on the picture: batch sizes by their logarithm, images/s from 0."""

    batch_sizes: tuple[int, ...]
    top: float
    """Images/s at the upper edge."""

    def x(self, batch_size: int) -> float:
        low, high = math.log2(self.batch_sizes[0]), math.log2(self.batch_sizes[-1])
        share = (math.log2(batch_size) - low) / (high - low) if high > low else 0.5
        inner = _SIZE[0] - _LEFT - _RIGHT - 2 * _INSET
        return _LEFT + _INSET + share * inner

    def y(self, rate: float) -> float:
        return _SIZE[1] - _BOTTOM - rate / self.top * (_SIZE[1] - _TOP - _BOTTOM)


def draw_plot(series: Mapping[str, Points], *, title: str, note: str) -> Image.Image:
    """Draw one line for each of `series`, with the value at every point; `note` says on what it was measured."""
    picture = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(picture)
    highest = max(rate for points in series.values() for _, rate in points)
    step = nice_step(highest * 1.12 / _NUM_TICKS)
    batch_sizes = sorted({batch_size for points in series.values() for batch_size, _ in points})
    field = _Field(batch_sizes=tuple(batch_sizes), top=step * max(1, math.ceil(highest * 1.12 / step)))
    pen.text((_LEFT, 22), title, fill=_INK, font=_font(24))
    pen.text((_LEFT, 56), note, fill=_GREY, font=_font(14))
    _draw_axes(pen, field, step)
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        others = [point for other, rest in series.items() if other != name for point in rest]
        _draw_line(pen, field, sorted(points), others, colour)
        if len(series) > 1:
            left = _LEFT + 260 * index
            pen.rectangle((left, 84, left + 22, 90), fill=colour)
            pen.text((left + 30, 87), name, fill=_INK, font=_font(15), anchor="lm")
    return picture


def _draw_axes(pen: ImageDraw.ImageDraw, field: _Field, step: float) -> None:
    right, bottom = _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM
    for tick in range(round(field.top / step) + 1):
        y = field.y(tick * step)
        pen.line((_LEFT, y, right, y), fill=_LIGHT if tick else _INK, width=1 if tick else 2)
        pen.text((_LEFT - 12, y), f"{tick * step:g}", fill=_INK, font=_font(15), anchor="rm")
    pen.line((_LEFT, _TOP, _LEFT, bottom), fill=_INK, width=2)
    for batch_size in field.batch_sizes:
        x = field.x(batch_size)
        pen.line((x, bottom, x, bottom + 6), fill=_INK, width=2)
        pen.text((x, bottom + 12), str(batch_size), fill=_INK, font=_font(15), anchor="mt")
    pen.text(((_LEFT + right) / 2, bottom + 44), "batch size", fill=_INK, font=_font(17), anchor="mt")
    label = Image.new("L", (200, 26), 0)
    ImageDraw.Draw(label).text((100, 13), "images/s", fill=255, font=_font(17), anchor="mm")
    upright = label.rotate(90, expand=True)
    pen.bitmap((12, (_TOP + bottom - upright.height) // 2), upright, fill=_INK)


def _draw_line(
    pen: ImageDraw.ImageDraw, field: _Field, points: Points, others: Points, colour: tuple[int, int, int]
) -> None:
    """Draw one line; its values stand above it, or below it where another line is above."""
    places = [(field.x(batch_size), field.y(rate)) for batch_size, rate in points]
    pen.line(places, fill=colour, width=3, joint="curve")
    for (x, y), (batch_size, rate) in zip(places, points, strict=True):
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour, outline="white", width=1)
        below = any(other == batch_size and higher >= rate for other, higher in others)
        place, anchor = ((x, y + 12), "mt") if below else ((x, y - 12), "mb")
        pen.text(place, short(rate), fill=_INK, font=_font(15), anchor=anchor, stroke_width=2, stroke_fill="white")


def bars(points: Points, *, width: int = 80, blocks: bool = True) -> str:
    """Draw a bar for each batch size in at most `width` columns; without `blocks`, in ASCII."""
    highest = max(rate for _, rate in points)
    labels = [short(rate) for _, rate in points]
    room = max(1, width - 10 - 2 - max(map(len, labels)) - 1)
    lines = ["batch size  images/s"]
    for (batch_size, rate), label in zip(points, labels, strict=True):
        length = max(1, round(room * rate / highest)) if highest else 1
        lines.append(f"{batch_size:>10}  {('█' if blocks else '#') * length} {label}")
    return "\n".join(lines) + "\n"


def nice_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * 0.999999)


def short(value: float) -> str:
    """Write a number with three digits that count: 0.0123, 1.23, 12.3, 123, 1,234."""
    value = float(f"{value:.3g}") if value < 100 else value
    if value >= 99.95:
        return f"{value:,.0f}"
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
