"""`blip2cap search`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from blip2cap.cli.hits import (
    check_targets,
    hit_facts,
    json_lines,
    make_section,
    print_paths,
    print_table,
    write_html,
)
from blip2cap.cli.options import ReportOptions, option, option_of, with_options
from blip2cap.cli.report import Failures
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import clean, count, say
from blip2cap.errors import SOME_FAILED, InputError, UsageError
from blip2cap.options import DecodeOptions, ModelOptions, SourceOptions
from blip2cap.records import ImageRef

if TYPE_CHECKING:
    from blip2cap.index.hits import Hit
    from blip2cap.index.query import Query
    from blip2cap.index.searcher import Searcher
    from blip2cap.index.sheet import Section


@with_options(
    only=["dtype", "device", "decode", "threads", "allow_http", "timeout", "isolate", "quiet", "verbose"],
)
def search(
    decode: DecodeOptions,
    model: ModelOptions,
    report: ReportOptions,
    index: Annotated[str, option("INDEX", "Folder that `blip2cap index` made.", panel="Input")],
    texts: Annotated[
        list[str] | None,
        option("QUERY", "Texts to search for, each by itself; `-` reads one per line.", panel="Input", once=False),
    ] = None,
    images: Annotated[
        list[str] | None,
        option("--image FILE", "Search for images like this file; repeatable.", panel="Input", once=False),
    ] = None,
    like: Annotated[
        list[str] | None,
        option("--like NAME", "Search for images like this image of the index; repeatable.", panel="Input", once=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        option("--not TEXT", "Lower the score of images that show this; repeatable.", panel="Input", once=False),
    ] = None,
    include: Annotated[list[str] | None, option_of(SourceOptions, "include")] = None,
    k: Annotated[
        int | None, option("-k, --max-hits N", "At most N images for each query; 20 if left out.", panel="Output")
    ] = None,
    min_score: Annotated[
        float | None, option("--min-score S", "Only images with at least this score.", panel="Output")
    ] = None,
    exact: Annotated[
        bool, option("--exact", "Compute the scores of all images, also in a large index.", panel="Speed")
    ] = False,
    rerank: Annotated[
        int | None,
        option("--rerank N", "Sort the best N again: the match head reads the text with each of them.", panel="Output"),
    ] = None,
    out: Annotated[
        str | None,
        option(
            "-o, --out PATH",
            "JSON lines instead of a table: a .jsonl file, `-` for standard output.",
            panel="Output",
            once=False,
        ),
    ] = None,
    null: Annotated[
        bool, option("-0, --null", "Print paths that end with NUL instead, for xargs -0.", panel="Output")
    ] = False,
    html: Annotated[
        str | None,
        option("--html FILE", "Write a page with the images instead of a table.", panel="Output", once=False),
    ] = None,
    overwrite: Annotated[
        bool, option("--overwrite", "Replace existing files of --out and --html.", panel="Output", once=False)
    ] = False,
    model_name: Annotated[
        str | None,
        option(
            "-m, --model NAME",
            "The model of the index, if it is in another folder now. Others are refused.",
            panel="Model",
            once=False,
        ),
    ] = None,
) -> None:
    """Find images by text or by image.

    The score of an image is the largest cosine of any of its 32 vectors with that of the text, or with any of the 32 of
    an image. Text and images together look for what resembles both.
    """
    check_targets(out, html, null=null, overwrite=overwrite)
    queries = _queries(tuple(texts or ()), tuple(images or ()), tuple(like or ()), tuple(without or ()))
    from blip2cap.index.index import Index
    from blip2cap.index.searcher import Searcher

    def tell(line: str) -> None:
        if not report.quiet:
            say(clean(line))

    failures = Failures(say, verbose=report.verbose, quiet=report.quiet)
    with stop_on_signal(quiet=report.quiet), ExitStack() as stack:
        opened = Index.open(index)
        searcher = Searcher(opened, name=model_name, model=model, decode=decode, say=tell)
        found = searcher.search(
            queries,
            k=k,
            include=tuple(include or ()),
            min_score=min_score,
            exact=exact or None,
            rerank=rerank,
            on_failure=failures.add,
        )
        lines = None if out is None else stack.enter_context(json_lines(out))
        every: list[Hit] = []
        sections: list[Section] = []
        for query, hits in found:
            if lines is not None:
                lines.write({"query": query.label, "rank": rank, **hit_facts(hit)} for rank, hit in enumerate(hits, 1))
            if null:
                every += hits
            if html is not None:
                sections.append(_section(searcher, query, hits))
            if not null and html is None and out is None:
                print_table(hits, heading=query.label if len(queries) > 1 else "")
        num_left_out = print_paths(every) if null else 0
        num_missing = 0
        if html is not None:
            note = f"{count(opened.num_images, 'image')}, {opened.settings.get('model', '')}"
            num_missing = write_html(
                html, sections, title=f"Search in {index}", note=note, decode=decode, quiet=report.quiet
            )
    failures.close()
    if num_left_out:
        tell(f"{count(num_left_out, 'hit')} left out: in archives or behind URLs, not files")
    if failures.count or num_missing or num_left_out:
        raise typer.Exit(SOME_FAILED)


def _queries(
    texts: tuple[str, ...], images: tuple[str, ...], like: tuple[str, ...], without: tuple[str, ...]
) -> tuple[Query, ...]:
    """Make a query of each text, with all images and --not texts in each. Raises UsageError."""
    from blip2cap.index.query import Query

    if texts.count("-") > 1:
        raise UsageError("`-` given more than once: standard input can be read once.")
    every: list[str | None] = []
    for text in texts:
        every += _lines() if text == "-" else [text]
    if texts and not every:
        raise InputError("standard input has no query. Expected one per line.")
    return tuple(Query(text=text, images=images, like=like, without=without) for text in every or [None])


def _lines() -> list[str]:
    """Read queries from standard input, one per line. Raises InputError."""
    if sys.stdin is None:
        raise InputError("-: standard input is closed. Expected queries on it, one per line.")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("-: standard input is not valid UTF-8. Expected queries, one per line.") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(f"-: line {number} of standard input is empty. Expected a query on each line.")
    return lines


def _section(searcher: Searcher, query: Query, hits: list[Hit]) -> Section:
    asked = [ImageRef(path=path, name=path) for path in query.images]
    asked += [searcher.ref_of(name) for name in query.like]
    return make_section(query.label, hits, searcher.places, note=count(len(hits), "image"), queries=asked)
