"""`blip2cap duplicates`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from blip2cap.cli.hits import check_targets, hit_facts, json_lines, make_section, write_html
from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import clean, count, say
from blip2cap.errors import SOME_FAILED, UsageError
from blip2cap.options import DecodeOptions

if TYPE_CHECKING:
    from blip2cap.index.sheet import Section

_MIN_SCORE = 0.97


@with_options(only=["threads", "allow_http", "timeout", "isolate", "quiet"])
def duplicates(
    decode: DecodeOptions,
    report: ReportOptions,
    index: Annotated[str, option("INDEX", "Folder that `blip2cap index` made.", panel="Input")],
    min_score: Annotated[
        float,
        option(
            "--min-score S",
            "Images are near-equal if the cosine of their mean vectors is at least S; equal images have 1.",
            panel="Output",
        ),
    ] = _MIN_SCORE,
    max_groups: Annotated[
        int | None, option("--max-groups N", "At most N groups, those with the highest scores.", panel="Output")
    ] = None,
    out: Annotated[
        str | None,
        option(
            "-o, --out PATH",
            "A .jsonl file, or `-` for standard output. If left out, standard output, unless --html is given.",
            panel="Output",
            once=False,
        ),
    ] = None,
    html: Annotated[
        str | None, option("--html FILE", "Write a page with the images.", panel="Output", once=False)
    ] = None,
    overwrite: Annotated[
        bool, option("--overwrite", "Replace existing files of --out and --html.", panel="Output", once=False)
    ] = False,
) -> None:
    """Find groups of near-equal images, as JSON lines or a page.

    A group is a line with its images; each has its highest score with another one of the group.
    """
    check_targets(out, html, null=False, overwrite=overwrite)
    if max_groups is not None and max_groups < 1:
        raise UsageError(f"--max-groups {max_groups}: must be 1 or more. Leave it out for all groups.")
    if out is None and html is None:
        out = "-"
    from blip2cap.index.index import Index
    from blip2cap.index.places import Places

    num_groups = num_images = num_missing = 0
    with stop_on_signal(quiet=report.quiet):
        opened = Index.open(index)
        places = Places(opened.settings.get("image_column"))
        with nullcontext() if out is None else json_lines(out) as lines:

            def sections() -> Iterator[Section]:
                nonlocal num_groups, num_images
                for group in islice(opened.duplicates(min_score), max_groups):
                    num_groups += 1
                    num_images += len(group)
                    if lines is not None:
                        lines.write([{"group": num_groups, "images": [*map(hit_facts, group)]}])
                    if html is not None:
                        yield make_section(f"Group {num_groups}", group, places, note=count(len(group), "image"))

            if html is None:
                for _ in sections():
                    pass
            else:
                note = f"Near-equal images: a score of {min_score:g} or more"
                title = f"Duplicates in {index}"
                num_missing = write_html(html, sections(), title=title, note=note, decode=decode, quiet=report.quiet)
    if not report.quiet:
        say(f"{clean(index)}: {count(num_groups, 'group')}, {count(num_images, 'image')} in them")
    if num_missing:
        raise typer.Exit(SOME_FAILED)
