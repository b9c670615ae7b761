"""Seeds -> small picture-book scenes, each with its true caption and questions.

`draw` is a pure function of its arguments. The scenes train and test the embedded model, and replace photographs
wherever the project needs images of its own.

Covered: 6 places by day and by night, 8 kinds of things in 10 colours, one to three things.
Not covered: three different things in one scene, things that hide each other.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from blip2cap.tiny.scene_things import PAINTERS, Pen

PLACES = {
    "field": "in a field",
    "beach": "on the beach",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "on the sea",
    "mountains": "in the mountains",
}
"""Place -> its words in a caption, and the answer to "where is it?"."""

COLOURS = {
    "red": (222, 38, 38),
    "orange": (250, 140, 20),
    "yellow": (250, 224, 40),
    "green": (28, 150, 56),
    "blue": (36, 84, 226),
    "purple": (138, 44, 190),
    "pink": (255, 140, 195),
    "brown": (126, 74, 36),
    "black": (28, 28, 32),
    "white": (250, 250, 250),
}

PLURALS = {
    "house": "houses",
    "tree": "trees",
    "car": "cars",
    "boat": "boats",
    "balloon": "balloons",
    "flower": "flowers",
    "fish": "fish",
    "umbrella": "umbrellas",
}

NUMBERS = ("zero", "one", "two", "three")

LIGHTS = {
    ("day", True): "under the sun",
    ("day", False): "",
    ("night", True): "under the moon",
    ("night", False): "at night",
}
"""Time, and whether the sun or the moon is visible -> the last words of a caption."""

SAMPLE_SEEDS = range(0, 1_000)
"""Scenes in sample_images and the documentation."""
VALIDATION_SEEDS = range(1_000, 1_000_000)
TRAINING_SEEDS = range(1_000_000, 1_000_000_000)

_SKIES = {"day": ((110, 180, 240), (205, 230, 250)), "night": ((10, 14, 44), (40, 48, 96))}
_GROUNDS = {
    "field": (146, 204, 104),
    "beach": (242, 222, 166),
    "snow": (238, 243, 250),
    "desert": (224, 166, 92),
    "sea": (54, 132, 190),
    "mountains": (134, 146, 128),
}
_NIGHT_LIGHT = 0.42
_SMALL = 256
"""Below this height in pixels, a scene is drawn at twice its size and reduced, which smooths its edges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One thing in a scene."""

    kind: str
    """A key of PLURALS."""
    colour: str
    """A key of COLOURS."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the width and height of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about one scene, with its true answer."""

    type: str
    """colour, count, is_there, where or time."""
    text: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A drawn scene with its true caption and answers."""

    image: Image.Image
    """RGB, of the requested size."""
    caption: str
    questions: tuple[Question, ...]
    things: tuple[Thing, ...]
    """From left to right."""
    place: str
    """A key of PLACES."""
    time: str
    """day or night."""
    has_light: bool
    """The sun or the moon is visible."""


def draw(seed: int, size: tuple[int, int] = (640, 480)) -> Scene:
    """Draw the scene of `seed` at `size` (width, height in pixels); equal arguments give equal scenes."""
    rng = random.Random(seed)
    place = rng.choice(tuple(PLACES))
    time = "day" if rng.random() < 0.65 else "night"
    has_light = rng.random() < 0.5
    things = _choose_things(rng)
    scale = 2 if size[1] < _SMALL else 1
    image = paint_background(rng, (size[0] * scale, size[1] * scale), place, time, has_light)
    canvas = ImageDraw.Draw(image)
    for thing in things:
        colour = vary(rng, COLOURS[thing.colour])
        left, top, right, bottom = thing.box
        box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        PAINTERS[thing.kind](Pen(canvas, box, colour, min(image.size)))
    return Scene(
        image=image if scale == 1 else image.reduce(scale),
        caption=_caption(things, place, time, has_light),
        questions=_ask(rng, things, place, time),
        things=things,
        place=place,
        time=time,
        has_light=has_light,
    )


def noun(kind: str, count: int = 1, colour: str = "") -> str:
    """Return the words for `count` things of one kind: "an orange boat", "two fish"."""
    if count != 1:
        words = (NUMBERS[count], colour, PLURALS[kind])
    else:
        first = colour or kind
        words = ("an" if first[0] in "aeiou" else "a", colour, kind)
    return " ".join(word for word in words if word)


def groups_of(things: tuple[Thing, ...]) -> dict[tuple[str, str], int]:
    """Return the number of things of each kind and colour, in order from left to right."""
    groups: dict[tuple[str, str], int] = {}
    for thing in things:
        groups[thing.kind, thing.colour] = groups.get((thing.kind, thing.colour), 0) + 1
    return groups


def _choose_things(rng: random.Random) -> tuple[Thing, ...]:
    """Choose one or two groups of equal things, and a box for each thing, from left to right."""
    counts = rng.choices(((1,), (2,), (3,), (1, 1), (1, 2), (2, 1)), weights=(26, 16, 18, 26, 7, 7))[0]
    looks: list[tuple[str, str]] = []
    while len(looks) < len(counts):
        look = (rng.choice(tuple(PLURALS)), rng.choice(tuple(COLOURS)))
        if look not in looks:
            looks.append(look)
    order = [look for look, count in zip(looks, counts, strict=True) for _ in range(count)]
    slot = 1 / len(order)
    tallest = (0.5, 0.42, 0.36)[len(order) - 1]
    common = rng.uniform(0.26, tallest)
    things = []
    for index, (kind, colour) in enumerate(order):
        height = common * rng.uniform(0.9, 1.1)
        width = min(height * rng.uniform(0.72, 1.3), slot * 0.88)
        centre = slot * (index + 0.5) + (slot * 0.94 - width) * rng.uniform(-0.5, 0.5)
        highest = height + 0.04 if kind == "balloon" else max(height + 0.04, 0.6)
        bottom = rng.uniform(highest, 0.75 if kind == "balloon" else 0.96)
        box = (centre - width / 2, bottom - height, centre + width / 2, bottom)
        things.append(Thing(kind=kind, colour=colour, box=box))
    return tuple(things)


def vary(rng: random.Random, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Vary a colour slightly, so that its name stays the same."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1
    saturation = min(1, saturation * rng.uniform(0.9, 1.08))
    value = min(1, value * rng.uniform(0.88, 1.06))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def paint_background(rng: random.Random, size: tuple[int, int], place: str, time: str, has_light: bool) -> Image.Image:
    """Paint sky and ground of one of PLACES, without things; `time` is day or night."""
    width, height = size
    horizon = rng.uniform(0.38, 0.58) * height
    top, low = _SKIES[time]
    if place == "desert" and time == "day":
        top, low = (240, 190, 130), (252, 232, 200)
    sky = Image.new("RGB", (1, 2), vary(rng, top))
    sky.putpixel((0, 1), low)
    image = sky.resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    dim = _NIGHT_LIGHT if time == "night" else 1.0

    def tint(colour: tuple[int, int, int], factor: float = 1.0) -> tuple[int, int, int]:
        red, green, blue = (min(255, round(channel * dim * factor)) for channel in colour)
        return red, green, blue

    for _ in range(rng.randint(0, 3) if time == "day" else 14):
        x, y = rng.uniform(0, width), rng.uniform(0, horizon * 0.8)
        if time == "day":
            r = height * rng.uniform(0.02, 0.05)
            pen.ellipse((x - 3 * r, y - r, x + 3 * r, y + r), fill=(240, 246, 252))
        else:
            r = max(1.0, height * 0.004)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(230, 230, 210))
    if has_light:
        _paint_light(rng, pen, size, time)
    if place == "mountains":
        for _ in range(4):
            x, r = rng.uniform(0, width), width * rng.uniform(0.14, 0.26)
            peak = (x, horizon - height * rng.uniform(0.14, 0.28))
            pen.polygon(((x - r, horizon), peak, (x + r, horizon)), fill=tint((112, 106, 124)))
    ground = vary(rng, _GROUNDS[place])
    pen.rectangle((0, horizon, width, height), fill=tint(ground))
    if place == "beach":
        pen.rectangle((0, horizon, width, horizon + height * 0.08), fill=tint(_GROUNDS["sea"]))
    for _ in range({"field": 14, "snow": 5, "desert": 4, "sea": 16}.get(place, 0)):
        x, y, r = rng.uniform(0, width), rng.uniform(horizon, height), height * 0.03
        if place == "field":
            pen.line((x - r / 2, y - r, x, y, x + r / 2, y - r), fill=tint(ground, 0.8), width=max(1, height // 160))
        elif place == "sea":
            box = (x - r, y - r / 2, x + r, y + r / 2)
            pen.arc(box, 0, 180, fill=tint(ground, 1.35), width=max(1, height // 120))
        else:
            box = (x - 6 * r, y, x + 6 * r, y + 3 * r)
            pen.arc(box, 200, 340, fill=tint(ground, 0.87), width=max(1, height // 120))
    return image


def _paint_light(rng: random.Random, pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str) -> None:
    """Paint the sun with its glow in a corner of the sky by day, or a crescent moon by night."""
    width, height = size
    r = height * rng.uniform(0.055, 0.08)
    wide = r * rng.uniform(0.72, 1.25)
    x = width * (rng.uniform(0.08, 0.2) if rng.random() < 0.5 else rng.uniform(0.8, 0.92))
    y = height * rng.uniform(0.1, 0.16)
    if time == "day":
        pen.ellipse((x - 1.4 * wide, y - 1.4 * r, x + 1.4 * wide, y + 1.4 * r), fill=(255, 222, 110))
        pen.ellipse((x - wide, y - r, x + wide, y + r), fill=(255, 190, 20))
    else:
        pen.ellipse((x - wide, y - r, x + wide, y + r), fill=(245, 242, 200))
        pen.ellipse((x - 0.4 * wide, y - 1.1 * r, x + 1.5 * wide, y + 0.8 * r), fill=(14, 18, 50))


def _caption(things: tuple[Thing, ...], place: str, time: str, has_light: bool) -> str:
    subject = " next to ".join(noun(kind, count, colour) for (kind, colour), count in groups_of(things).items())
    return f"{subject} {PLACES[place]} {LIGHTS[time, has_light]}".rstrip()


def _ask(rng: random.Random, things: tuple[Thing, ...], place: str, time: str) -> tuple[Question, ...]:
    """Return questions of each type that the scene allows, with balanced answers."""
    groups = groups_of(things)
    kinds = sorted({kind for kind, _ in groups})
    absent = [kind for kind in PLURALS if kind not in kinds]
    questions = []
    for kind in kinds:
        colours = {colour for other, colour in groups if other == kind}
        count = sum(number for (other, _), number in groups.items() if other == kind)
        if len(colours) == 1:
            verb, name = ("is", kind) if count == 1 else ("are", PLURALS[kind])
            text = f"what {rng.choice(('color', 'colour'))} {verb} the {name}?"
            questions.append(Question(type="colour", text=text, answer=colours.pop()))
        questions.append(Question(type="count", text=_how_many(kind), answer=NUMBERS[count]))
    if rng.random() < 0.3:
        questions.append(Question(type="count", text=_how_many(rng.choice(absent)), answer="zero"))
    kind, colour = rng.choice(list(groups))
    wrong = rng.choice([other for other in COLOURS if (kind, other) not in groups])
    for answer, asked in (
        ("yes", rng.choice((noun(kind), noun(kind, colour=colour)))),
        ("no", rng.choice((noun(rng.choice(absent)), noun(kind, colour=wrong)))),
    ):
        questions.append(Question(type="is_there", text=f"is there {asked}?", answer=answer))
    questions.append(Question(type="where", text=f"where {rng.choice(('is it', 'is this'))}?", answer=PLACES[place]))
    questions.append(Question(type="time", text="is it day or night?", answer=time))
    return tuple(questions)


def _how_many(kind: str) -> str:
    return f"how many {PLURALS[kind]} are there?"
