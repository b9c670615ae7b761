"""Drawn scenes of people who stand or lie, and what a fall detector is asked about them.

`draw_fall` is a pure function of its arguments; fall_files.py writes what docs/fine-tuning.md starts from.

Covered: one person or nobody, in a room or outside, by day or by night.
Not covered: furniture, people who sit or bend, several people.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from blip2cap.tiny.scene_things import Colour
from blip2cap.tiny.scenes import COLOURS, PLACES, paint_background, vary

QUESTION = "is someone lying down?"

_SKINS: tuple[Colour, ...] = ((250, 214, 184), (224, 172, 132), (168, 112, 76), (104, 66, 46))
_HAIRS: tuple[Colour, ...] = ((40, 32, 30), (104, 64, 36), (222, 184, 104), (190, 190, 190), (170, 74, 36))
_WALLS: tuple[Colour, ...] = ((244, 232, 206), (206, 222, 232), (222, 232, 208), (236, 212, 212), (226, 226, 230))
_FLOORS: tuple[Colour, ...] = ((186, 134, 84), (146, 102, 66), (206, 178, 140), (150, 150, 154), (124, 138, 160))
_SHOES: Colour = (36, 34, 40)
_OUTLINE: Colour = (44, 40, 52)
_EMPTY_SHARE = 0.15
"""Share of scenes without a person, of those in which nobody lies down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FallScene:
    """A drawn scene with the pose of the person in it."""

    image: Image.Image
    """RGB, of the requested size."""
    pose: str
    """lying, standing, or empty if there is no person."""
    place: str
    """room, or a key of PLACES."""

    @property
    def answer(self) -> str:
        """Answer to QUESTION: yes or no."""
        return "yes" if self.pose == "lying" else "no"


def draw_fall(seed: int, size: tuple[int, int] = (640, 480)) -> FallScene:
    """Draw the scene of `seed` at `size` (width, height in pixels); someone lies in those of odd seeds."""
    rng = random.Random(f"fall {seed}")
    pose = "lying" if seed % 2 else "empty" if rng.random() < _EMPTY_SHARE else "standing"
    place = "room" if rng.random() < 0.5 else rng.choice([place for place in PLACES if place != "sea"])
    twice = size[0] * 2, size[1] * 2  # reduced at the end, which smooths the edges
    if place == "room":
        image = _paint_room(rng, twice)
    else:
        image = paint_background(rng, twice, place, "day" if rng.random() < 0.8 else "night", rng.random() < 0.5)
    if pose != "empty":
        _paint_person(rng, ImageDraw.Draw(image), image.size, lying=pose == "lying")
    return FallScene(image=image.reduce(2), pose=pose, place=place)


def _paint_room(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Paint wall and floor, and perhaps a window."""
    width, height = size
    edge = height * rng.uniform(0.5, 0.62)
    image = Image.new("RGB", size, vary(rng, rng.choice(_WALLS)))
    pen = ImageDraw.Draw(image)
    thick = max(1, min(size) // 130)
    floor = vary(rng, rng.choice(_FLOORS))
    pen.rectangle((0, edge, width, height), fill=floor)
    pen.rectangle((0, edge - height * 0.02, width, edge), fill=(250, 250, 250))
    left = width * rng.uniform(0.05, 0.4)
    if rng.random() < 0.6:
        box = left, height * 0.1, left + width * 0.2, height * 0.38
        pen.rectangle(box, fill=(150, 200, 240), outline=(250, 250, 250), width=3 * thick)
        pen.line(((box[0] + box[2]) / 2, box[1], (box[0] + box[2]) / 2, box[3]), fill=(250, 250, 250), width=2 * thick)
    return image


def _paint_person(rng: random.Random, canvas: ImageDraw.ImageDraw, size: tuple[int, int], *, lying: bool) -> None:
    """Paint a person in one of two poses."""
    centre = rng.uniform(0.45, 0.55)  # of the body, as a share of the width
    tall = min(size) * rng.uniform(0.6, 0.72)
    if lying:
        turn = math.radians(rng.choice((-1, 1)) * rng.uniform(76, 104))
        middle = centre * size[0], size[1] * rng.uniform(0.74, 0.84)
    else:
        turn = math.radians(rng.uniform(-9, 9))
        middle = centre * size[0], size[1] * rng.uniform(0.8, 0.94) - tall / 2

    def at(x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point of the upright body: y is 0 at the soles and 1 at the top of the head."""
        x, y = x * tall, (0.5 - y) * tall
        return middle[0] + x * math.cos(turn) - y * math.sin(turn), middle[1] + x * math.sin(turn) + y * math.cos(turn)

    def limb(points: list[tuple[float, float]], thick: float, colour: Colour) -> None:
        for grown, fill in ((2 * max(1, min(size) // 130), _OUTLINE), (0, colour)):
            width = thick * tall + grown
            canvas.line(points, fill=fill, width=round(width), joint="curve")
            for x, y in (points[0], points[-1]):
                canvas.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)

    skin, hair = rng.choice(_SKINS), rng.choice(_HAIRS)
    shirt, trousers = (vary(rng, rng.choice(list(COLOURS.values()))) for _ in range(2))
    for sign in (-1, 1):
        knee, foot = rng.uniform(0.05, 0.09), rng.uniform(0.05, 0.13)
        limb([at(sign * 0.05, 0.46), at(sign * knee, 0.25), at(sign * foot, 0.05)], 0.085, trousers)
        limb([at(sign * foot, 0.025), at(sign * foot + 0.03, 0.02)], 0.05, _SHOES)
    for sign in (-1, 1):
        out, up = rng.uniform(0.12, 0.26), rng.uniform(0.42, 0.6) if rng.random() < 0.75 else rng.uniform(0.8, 0.95)
        limb([at(sign * 0.1, 0.75), at(sign * out, (0.75 + up) / 2), at(sign * out * 1.05, up)], 0.06, skin)
    limb([at(0, 0.72), at(0, 0.5)], 0.19, shirt)
    x, y = at(0, 0.89)
    r = 0.1 * tall
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=hair, outline=_OUTLINE, width=max(1, min(size) // 130))
    x, y = at(0, 0.87)
    canvas.ellipse((x - 0.8 * r, y - 0.8 * r, x + 0.8 * r, y + 0.8 * r), fill=skin)
    for sign in (-1, 1):
        x, y = at(sign * 0.03, 0.88)
        canvas.ellipse((x - 0.1 * r, y - 0.1 * r, x + 0.1 * r, y + 0.1 * r), fill=_OUTLINE)
