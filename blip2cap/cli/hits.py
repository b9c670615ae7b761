"""The results of `search`, `duplicates` and `evaluate`: a table, JSON lines, paths for xargs, a contact sheet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from blip2cap.cli.terminal import cell, clean, count, page, say, write_bytes
from blip2cap.errors import UsageError
from blip2cap.escapes import json_line
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.urls import scheme, without_password

if TYPE_CHECKING:
    from blip2cap.index.hits import Hit
    from blip2cap.index.places import Places
    from blip2cap.index.sheet import Card, Section

_DIGITS = 6


def check_targets(out: str | None, html: str | None, *, null: bool, overwrite: bool) -> None:
    """Check, before anything is loaded, that results can be written where they are to go.

    Raises UsageError for names with other suffixes, existing files and options that exclude each other, OutputError for
    what is no file.
    """
    if null and out is not None:
        raise UsageError("-0 and --out exclude each other: -0 prints paths on standard output. Leave one out.")
    if null and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("-0 prints paths for a program, as they are: send them to one, e.g. `| xargs -0 ls -l`.")
    from blip2cap.index.target import HTML, check_target

    if out not in (None, "-"):
        check_target(out, flag="--out", suffixes=(".jsonl",), overwrite=overwrite)
    if html is not None:
        check_target(html, flag="--html", suffixes=HTML, overwrite=overwrite)


@contextmanager
def json_lines(out: str) -> Iterator[JsonLines]:
    """Yield a writer of JSON lines to standard output (`-`), or to a file that appears when it is complete."""
    if out == "-":
        yield JsonLines(None)
        return
    from blip2cap.index.target import writing

    with writing(out, flag="--out") as stream:
        yield JsonLines(stream)


class JsonLines:
    """Writes objects, one per line, in UTF-8."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def write(self, facts: Iterable[dict[str, Any]]) -> None:
        """Write some objects; on standard output they can be read at once."""
        data = "".join(map(json_line, facts)).encode()
        if self._stream is None:
            write_bytes(data)
        else:
            self._stream.write(data)


def hit_facts(hit: Hit) -> dict[str, Any]:
    """Return a hit as JSON holds it. A path that is not UTF-8 has escapes, and its bytes in `path_b64`."""
    shown = without_password(hit.path)
    path, path_b64 = ImageRef(path=shown, name=shown).names
    facts: dict[str, Any] = {"file_name": hit.file_name, "path": path, "path_b64": path_b64}
    facts["score"] = round(hit.score, _DIGITS)
    if hit.itm is not None:
        facts["itm"] = round(hit.itm, _DIGITS)
    return facts


def print_table(hits: Sequence[Hit], *, heading: str = "") -> None:
    """Print hits as a table, the best first."""
    from rich.table import Table

    with_itm = any(hit.itm is not None for hit in hits)
    table = Table()
    for name in ("score", *(["itm"] if with_itm else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("file_name", overflow="fold")
    for hit in hits:
        itm = ["" if hit.itm is None else f"{hit.itm:.3f}"] if with_itm else []
        table.add_row(f"{hit.score:.3f}", *itm, cell(hit.file_name))
    with page() as console:
        if heading:
            console.print(cell(heading))
        console.print(table if hits else "no image found")


def print_paths(hits: Iterable[Hit]) -> int:
    """Print the path of each file once, ended by NUL; return the number of hits that are no files."""
    from blip2cap.index.places import member_of

    paths, num_others = dict[str, None](), 0
    for hit in hits:
        if scheme(hit.path) or member_of(hit)[1]:
            num_others += 1
        else:
            paths[hit.path] = None
    write_bytes(b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in paths))
    return num_others


def make_section(
    heading: str, hits: Sequence[Hit], places: Places, *, note: str = "", queries: Sequence[ImageRef] = ()
) -> Section:
    """Return a section of a sheet: the images that were searched with, then the hits."""
    from blip2cap.index.sheet import Card, Section

    def card(hit: Hit) -> Card:
        itm = "" if hit.itm is None else f" · itm {hit.itm:.3f}"
        return Card(ref=places.ref(hit), scores=f"{hit.score:.3f}{itm}")

    asked = tuple(Card(ref=ref, scores="searched with", is_query=True) for ref in queries)
    return Section(heading=heading, note=note, cards=(*asked, *map(card, hits)))


def write_html(
    html: str, sections: Iterable[Section], *, title: str, note: str, decode: DecodeOptions, quiet: bool
) -> int:
    """Write a sheet and say so; return the number of images without a picture."""
    from blip2cap.index.sheet import write_sheet

    counts = write_sheet(html, sections, title=title, note=note, decode=decode)
    if not quiet:
        missing = f", {counts.num_missing} of them could not be read" if counts.num_missing else ""
        say(f"{clean(html)}: {count(counts.num_images, 'image')}{missing}")
    return counts.num_missing
