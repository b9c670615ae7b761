"""True and false texts about a scene: its caption, shorter descriptions, and texts in which one word is wrong.

A text is true of a scene if the scene has everything that the text names; it need not name all. "A" means exactly one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from blip2cap.tiny.scenes import COLOURS, LIGHTS, PLACES, PLURALS, Scene, groups_of, noun

CHANGES = ("colour", "kind", "number", "place", "light")
"""Types of changed words."""
_COUNTS = ((1,), (2,), (3,), (1, 1), (1, 2), (2, 1))
"""Numbers of equal things in scenes. Changed captions have no others: only the image shows that they are false."""


@dataclass(frozen=True, slots=True)
class Group:
    """Equal things that a text names."""

    kind: str
    colour: str
    """Empty if the text does not name it."""
    count: int

    @property
    def text(self) -> str:
        """Words for the group: "two red cars"."""
        return noun(self.kind, self.count, self.colour)


@dataclass(frozen=True, slots=True)
class Statement:
    """Content of a text about a scene; the text does not mention empty fields."""

    groups: tuple[Group, ...]
    place: str
    """A key of PLACES."""
    light: str
    """A value of LIGHTS."""

    @property
    def text(self) -> str:
        """The statement in the words of captions."""
        parts = [" next to ".join(group.text for group in self.groups), PLACES.get(self.place, ""), self.light]
        return " ".join(part for part in parts if part)

    def is_true_of(self, scene: Scene) -> bool:
        """Return whether the scene has everything that the text names."""
        if self.place not in ("", scene.place):
            return False
        lights = {"", LIGHTS[scene.time, scene.has_light]} | ({"at night"} if scene.time == "night" else set())
        return self.light in lights and all(_has(scene, group) for group in self.groups)


def full(scene: Scene) -> Statement:
    """Return the statement of the scene's caption."""
    groups = tuple(Group(kind, colour, count) for (kind, colour), count in groups_of(scene.things).items())
    return Statement(groups, scene.place, LIGHTS[scene.time, scene.has_light])


def shorter(rng: random.Random, scene: Scene) -> Statement:
    """Return a true statement that leaves out some of the caption, as people search: "a boat on the sea"."""
    statement = full(scene)
    while True:
        groups = list(statement.groups)
        rng.shuffle(groups)
        kept = tuple(
            replace(group, colour=group.colour if rng.random() < 0.5 else "")
            for group in groups[: rng.randint(0 if rng.random() < 0.2 else 1, len(groups))]
        )
        place = statement.place if rng.random() < 0.6 else ""
        light = statement.light if rng.random() < 0.4 else ""
        part = Statement(kept, place, light)
        if part.text and part.is_true_of(scene):  # "a car" is false of a red and a blue one
            return part


def changed(
    rng: random.Random, statement: Statement, scene: Scene, changes: Sequence[str] = CHANGES
) -> tuple[Statement, str] | None:
    """Change one word of a true statement so that it is false; return it and the type of the change, one of `changes`.

    A place or a light exchanges its whole phrase: "in a field" for "on the beach". None if no word can change.
    """
    for change in rng.sample(changes, len(changes)):
        wrong = [other for other in _changes(statement, change) if not other.is_true_of(scene)]
        if wrong:
            return rng.choice(wrong), change
    return None


def _changes(statement: Statement, change: str) -> Iterator[Statement]:
    """Yield the statements that differ from `statement` by one change, true or not."""
    if change == "place" and statement.place:
        yield from (replace(statement, place=place) for place in PLACES if place != statement.place)
    if change == "light" and statement.light:
        lights = (light for light in LIGHTS.values() if light not in ("", statement.light))
        yield from (replace(statement, light=light) for light in lights)
    for index, group in enumerate(statement.groups):
        others: list[Group] = []
        if change == "colour" and group.colour:
            others = [replace(group, colour=colour) for colour in COLOURS if colour != group.colour]
        elif change == "kind":
            others = [replace(group, kind=kind) for kind in PLURALS if kind != group.kind]
        elif change == "number":
            others = [replace(group, count=count) for count in (1, 2, 3) if count != group.count]
        for other in others:
            groups = (*statement.groups[:index], other, *statement.groups[index + 1 :])
            looks = {(group.kind, group.colour) for group in groups}
            if len(looks) == len(groups) and tuple(group.count for group in groups) in _COUNTS:
                yield replace(statement, groups=groups)


def _has(scene: Scene, group: Group) -> bool:
    things = (thing for thing in scene.things if thing.kind == group.kind and group.colour in ("", thing.colour))
    return sum(1 for _ in things) == group.count
