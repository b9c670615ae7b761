"""Regions in texts: labels and places that a model writes as tokens, as in `car<loc_52><loc_334><loc_932><loc_774>`."""

from __future__ import annotations

import re
from typing import Any

_LABEL_AND_PLACES = re.compile(r"(.*?)((?:<loc_\d+>)+)", re.DOTALL)
_POLYGONS = re.compile(r"[^<>]*(<poly>.*?(</poly>|$))+", re.DOTALL)
"""A label with its polygons; the last may be cut off."""
_PLACE = re.compile(r"<loc_(\d+)>")
_NUM_PLACES = 1000
"""Number of places along each side of the image."""
_WITH_CORNERS = "<OCR_WITH_REGION>"
"""Prompt whose regions are four corners each, not two."""


def find_regions(text: str, prompt: str, *, width: int, height: int) -> tuple[dict[str, Any], ...]:
    """Return the regions of a text: `label`, and `box`, left, top, right and bottom in pixels.

    A label with several boxes makes several regions; one whose places were cut off makes none, nor do polygons. Of four
    corners, the box encloses all.
    """
    size = 8 if prompt.startswith(_WITH_CORNERS) else 4
    regions = []
    for label, places in _LABEL_AND_PLACES.findall(_POLYGONS.sub("", text)):
        numbers = [int(place) for place in _PLACE.findall(places)]
        for at in range(0, len(numbers) - size + 1, size):
            # The middle of a place, as the model's own processor has it.
            xs = [(number + 0.5) * width / _NUM_PLACES for number in numbers[at : at + size : 2]]
            ys = [(number + 0.5) * height / _NUM_PLACES for number in numbers[at + 1 : at + size : 2]]
            box = [round(value, 2) for value in (min(xs), min(ys), max(xs), max(ys))]
            regions.append({"label": label.strip(), "box": box})
    return tuple(regions)
