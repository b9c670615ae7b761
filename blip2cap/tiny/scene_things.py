"""Painters of the things in a scene: flat shapes with an outline, inside one box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]

_DARK: Colour = (44, 40, 52)
_LIGHT: Colour = (214, 214, 222)
_WOOD: Colour = (112, 72, 40)


@dataclass(frozen=True, slots=True)
class Pen:
    """Paints in the unit square of one thing: (0, 0) is the top left of its box, (1, 1) the bottom right."""

    canvas: ImageDraw.ImageDraw
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    colour: Colour
    image_side: int
    """Shorter side of the image in pixels; the width of outlines is proportional to it."""

    @property
    def outline(self) -> Colour:
        """Colour of outlines: dark, but light around dark things, so that they are visible at night."""
        return _LIGHT if sum(self.colour) < 150 else _DARK

    @property
    def thickness(self) -> int:
        """Width of outlines in pixels."""
        return max(1, round(self.image_side / 130))

    def shade(self, factor: float) -> Colour:
        """Return the colour of the thing, darker below 1 and lighter above 1."""
        if factor <= 1:
            red, green, blue = (round(channel * factor) for channel in self.colour)
        else:
            red, green, blue = (round(channel + (255 - channel) * (factor - 1)) for channel in self.colour)
        return red, green, blue

    def polygon(self, *points: tuple[float, float], fill: Colour | None = None) -> None:
        """Fill a polygon with the colour of the thing, or with `fill`."""
        pixels = [self._at(*point) for point in points]
        self.canvas.polygon(pixels, fill=fill or self.colour, outline=self.outline, width=self.thickness)

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: Colour | None = None) -> None:
        """Fill an ellipse inside a box."""
        box = (*self._at(left, top), *self._at(right, bottom))
        self.canvas.ellipse(box, fill=fill or self.colour, outline=self.outline, width=self.thickness)

    def dome(self, left: float, top: float, right: float, bottom: float) -> None:
        """Fill the upper half of an ellipse inside a box."""
        box = (*self._at(left, top), *self._at(right, bottom))
        self.canvas.pieslice(box, 180, 360, fill=self.colour, outline=self.outline, width=self.thickness)

    def line(self, *points: tuple[float, float], fill: Colour | None = None, thick: float = 1.0) -> None:
        """Draw a line, `thick` outlines wide."""
        pixels = [self._at(*point) for point in points]
        self.canvas.line(pixels, fill=fill or self.outline, width=max(1, round(self.thickness * thick)))

    def _at(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return left + (right - left) * x, top + (bottom - top) * y


def _house(pen: Pen) -> None:
    pen.polygon((0.1, 0.4), (0.9, 0.4), (0.9, 1), (0.1, 1))
    pen.polygon((0, 0.42), (0.5, 0), (1, 0.42), fill=pen.shade(0.7))
    pen.polygon((0.42, 0.66), (0.6, 0.66), (0.6, 1), (0.42, 1), fill=_WOOD)
    pen.polygon((0.18, 0.54), (0.34, 0.54), (0.34, 0.7), (0.18, 0.7), fill=(250, 240, 170))
    pen.polygon((0.68, 0.54), (0.84, 0.54), (0.84, 0.7), (0.68, 0.7), fill=(250, 240, 170))


def _tree(pen: Pen) -> None:
    pen.polygon((0.42, 0.6), (0.58, 0.6), (0.6, 1), (0.4, 1), fill=_WOOD)
    pen.polygon((0.08, 0.74), (0.5, 0.28), (0.92, 0.74))
    pen.polygon((0.18, 0.46), (0.5, 0), (0.82, 0.46))


def _car(pen: Pen) -> None:
    pen.polygon((0.18, 0.55), (0.32, 0.22), (0.7, 0.22), (0.84, 0.55), fill=pen.shade(0.8))
    pen.polygon((0.36, 0.32), (0.5, 0.32), (0.5, 0.52), (0.28, 0.52), fill=(205, 232, 246))
    pen.polygon((0.54, 0.32), (0.67, 0.32), (0.75, 0.52), (0.54, 0.52), fill=(205, 232, 246))
    pen.polygon((0, 0.52), (1, 0.52), (1, 0.84), (0, 0.84))
    for left in (0.1, 0.66):
        pen.ellipse(left, 0.68, left + 0.25, 1, fill=(30, 30, 34))
        pen.ellipse(left + 0.08, 0.79, left + 0.17, 0.9, fill=(190, 190, 196))


def _boat(pen: Pen) -> None:
    pen.line((0.48, 0), (0.48, 0.7), fill=_WOOD, thick=1.6)
    pen.polygon((0.54, 0.04), (0.94, 0.6), (0.54, 0.6), fill=pen.shade(1.3))
    pen.polygon((0.42, 0.12), (0.42, 0.6), (0.14, 0.6), fill=pen.shade(1.3))
    pen.polygon((0, 0.68), (1, 0.68), (0.82, 1), (0.18, 1))


def _balloon(pen: Pen) -> None:
    pen.line((0.5, 0.66), (0.44, 0.8), (0.56, 0.9), (0.5, 1))
    pen.polygon((0.42, 0.7), (0.5, 0.6), (0.58, 0.7))
    pen.ellipse(0.14, 0, 0.86, 0.66)
    pen.canvas.ellipse((*pen._at(0.3, 0.12), *pen._at(0.44, 0.28)), fill=pen.shade(1.5))


def _flower(pen: Pen) -> None:
    pen.line((0.5, 0.4), (0.5, 1), fill=(50, 130, 50), thick=2)
    pen.ellipse(0.5, 0.7, 0.82, 0.86, fill=(70, 160, 70))
    for x, y in ((0.5, 0.14), (0.74, 0.3), (0.66, 0.52), (0.34, 0.52), (0.26, 0.3)):
        pen.ellipse(x - 0.2, y - 0.14, x + 0.2, y + 0.14)
    pen.ellipse(0.38, 0.26, 0.62, 0.46, fill=(250, 215, 80))


def _fish(pen: Pen) -> None:
    pen.polygon((0.66, 0.5), (1, 0.16), (0.94, 0.5), (1, 0.84), fill=pen.shade(0.8))
    pen.polygon((0.3, 0.26), (0.5, 0.02), (0.6, 0.28), fill=pen.shade(0.8))
    pen.ellipse(0, 0.18, 0.76, 0.82)
    pen.ellipse(0.12, 0.36, 0.24, 0.5, fill=(255, 255, 255))
    pen.line((0.36, 0.36), (0.42, 0.5), (0.36, 0.64))


def _umbrella(pen: Pen) -> None:
    pen.line((0.5, 0.06), (0.5, 0.9), (0.56, 0.98), (0.64, 0.98), (0.68, 0.88), fill=_WOOD, thick=1.8)
    pen.dome(0, 0.04, 1, 1)
    for x in (0.3, 0.7):
        pen.line((0.5, 0.06), (x, 0.5))


PAINTERS: dict[str, Callable[[Pen], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "balloon": _balloon,
    "flower": _flower,
    "fish": _fish,
    "umbrella": _umbrella,
}
