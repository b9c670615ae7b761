"""A contact sheet: one HTML file that needs no other, with thumbnails, names, scores and texts.

Names and texts are data. They are escaped, control and bidirectional characters as in a terminal, and the page forbids
itself everything but its own style sheet and the images inside it: no script, no frame, no form, no request.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from blip2cap.errors import ImageError
from blip2cap.escapes import clean
from blip2cap.index.target import writing
from blip2cap.index.thumbnails import Thumbnail, make_thumbnails
from blip2cap.options import DecodeOptions
from blip2cap.outputs.files import OS_FILES, Files
from blip2cap.records import ImageRef

_STYLE = """
:root { color-scheme: light dark; --page: #f4f4f1; --card: #fff; --frame: #e7e7e2; --ink: #1c1c1a; --dim: #62625c;
  --line: #dcdcd5; --accent: #0b6b53; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161715; --card: #20211f; --frame: #2b2c29; --ink: #ecece6; --dim: #a3a39a; --line: #343530;
    --accent: #6fd3b4; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header, section, footer { max-width: 1500px; margin: 0 auto; padding: 0 clamp(.75rem, 3vw, 2.5rem); }
header { padding-top: 1.75rem; }
h1 { margin: 0; font-size: 1.45rem; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .75rem; padding-bottom: .4rem; border-bottom: 1px solid var(--line); font-size: 1.1rem;
  font-weight: 600; overflow-wrap: anywhere; }
h2 small { margin-left: .5rem; color: var(--dim); font-size: .85rem; font-weight: 400; }
header p, footer p, section > p { margin: .25rem 0 0; color: var(--dim); overflow-wrap: anywhere; }
footer { padding-top: 2rem; padding-bottom: 2rem; font-size: .85rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11.5rem, 44%), 1fr)); gap: .85rem; margin: 0;
  padding: 0; list-style: none; }
li { display: flex; flex-direction: column; min-width: 0; overflow: hidden; border: 1px solid var(--line);
  border-radius: 8px; background: var(--card); }
li.query { border: 2px solid var(--accent); }
.picture { position: relative; display: grid; place-items: center; aspect-ratio: 1; background: var(--frame); }
.picture img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.missing { padding: .75rem; color: var(--dim); font-size: .85rem; text-align: center; overflow-wrap: anywhere; }
.missing b { display: block; color: var(--ink); }
.words { display: flex; flex-direction: column; gap: .15rem; padding: .5rem .65rem .6rem; }
.scores { color: var(--accent); font-size: .85rem; font-variant-numeric: tabular-nums; font-weight: 600; }
.name { font-size: .85rem; overflow-wrap: anywhere; }
.text { color: var(--dim); font-size: .85rem; overflow-wrap: anywhere; }
@media print { body { background: #fff; } li { break-inside: avoid; } }
"""
_POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One image of a sheet."""

    ref: ImageRef
    """The image and the place of its bytes."""
    scores: str = ""
    """Its scores, as they are to be shown."""
    text: str = ""
    """Its caption."""
    details: tuple[str, ...] = ()
    """More lines below the caption."""
    is_query: bool = False
    """True: the image that was searched with, which is marked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and the images below it."""

    heading: str
    note: str = ""
    """Words after the heading."""
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetCounts:
    """Numbers of images on a sheet."""

    num_images: int
    num_missing: int
    """Number of them that have a reason instead of a picture."""


def write_sheet(
    path: str,
    sections: Iterable[Section],
    *,
    title: str,
    note: str = "",
    decode: DecodeOptions,
    flag: str = "--html",
    files: Files = OS_FILES,
) -> SheetCounts:
    """Write a sheet under a temporary name and rename it; an existing file is replaced.

    Sections are taken one by one, and thumbnails are not kept: memory does not grow with the sheet. Raises OutputError
    if the file cannot be written; `target.check_target` tells before the search.
    """
    num_images = num_missing = 0
    with writing(path, flag=flag, files=files) as file:
        file.write(_head(title, note).encode())
        for part in _parts(sections, decode):
            if isinstance(part, _Picture):
                num_images += 1
                num_missing += isinstance(part.picture, ImageError)
                file.write(_card(part.card, part.picture).encode())
            else:
                file.write(part.encode())
        file.write(_foot(num_images, num_missing).encode())
    return SheetCounts(num_images=num_images, num_missing=num_missing)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Picture:
    card: Card
    picture: Thumbnail | ImageError


def _parts(sections: Iterable[Section], decode: DecodeOptions) -> Iterator[str | _Picture]:
    """Yield markup, and cards with their pictures; images are decoded ahead, also those of the next sections."""
    plan: deque[Card | str] = deque()

    def refs() -> Iterator[ImageRef]:
        for section in sections:
            plan.append(_heading(section))
            for card in section.cards:
                plan.append(card)
                yield card.ref
            plan.append("</ol>\n</section>\n" if section.cards else "</ol>\n<p>No image.</p>\n</section>\n")

    # Another thread adds to the plan, ahead of the pictures; this one takes from it, up to the card of each picture.
    for picture in make_thumbnails(refs(), decode):
        while isinstance(part := plan.popleft(), str):
            yield part
        yield _Picture(card=part, picture=picture)
    for part in plan:
        assert isinstance(part, str), "every card has had its picture"
        yield part


def _head(title: str, note: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_isolated(title)}</h1>" + (f"<p>{_isolated(note)}</p>" if note else "") + "</header>\n"
    )


def _foot(num_images: int, num_missing: int) -> str:
    images = f"{num_images:,} image{'' if num_images == 1 else 's'}"
    missing = f", {num_missing:,} of them without a picture" if num_missing else ""
    return f"<footer><p>{images}{missing}.</p></footer>\n</body>\n</html>\n"


def _heading(section: Section) -> str:
    note = f"<small>{_isolated(section.note)}</small>" if section.note else ""
    return f"<section>\n<h2>{_isolated(section.heading)}{note}</h2>\n<ol>\n"


def _card(card: Card, picture: Thumbnail | ImageError) -> str:
    name = card.ref.file_name
    if isinstance(picture, ImageError):
        shown = f'<div class="missing"><b>{_text(picture.code.replace("_", " "))}</b>{_isolated(picture.detail)}</div>'
    else:
        data = base64.b64encode(picture.jpeg).decode("ascii")
        shown = (
            f'<img src="data:image/jpeg;base64,{data}" width="{picture.width}" height="{picture.height}" '
            f'alt="{_text(name)}">'
        )
    words = "".join(
        f'<div class="{kind}">{_isolated(text)}</div>'
        for kind, text in (
            *(("scores", card.scores), ("name", name), ("text", card.text)),
            *(("text", detail) for detail in card.details),
        )
        if text
    )
    role = ' class="query"' if card.is_query else ""
    return f'<li{role}><div class="picture">{shown}</div><div class="words">{words}</div></li>\n'


def _text(text: str) -> str:
    return escape(clean(text), quote=True)


def _isolated(text: str) -> str:
    """Return escaped text whose direction does not reach what is beside it: a name may be in Arabic."""
    return f"<bdi>{_text(text)}</bdi>"
