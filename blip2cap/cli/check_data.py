"""`blip2cap check-data`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.cli.progress import choose_progress
from blip2cap.cli.report import print_json
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import cell, count, page
from blip2cap.errors import InputError, UsageError
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.train.options.data import DataOptions

if TYPE_CHECKING:
    from blip2cap.train.data.example import Data, Problem
    from blip2cap.train.data.report import Report

_NUM_PLACES = 3
"""Number of places that the table names for each reason."""
_DETAIL = 60
"""Longest example in the table, in characters."""


@with_options(
    without=[
        "data",
        "skip_bad",
        *("dtype", "quantize", "device", "device_map", "random_weights", "max_pixels"),
        *("decode", "allow_http", "timeout"),  # `train` reads images without them
        "dry_run",
        "verbose",
    ],
    model=None,
)
def check_data(
    data: DataOptions,
    model: ModelOptions | None,
    decode: DecodeOptions,
    report: ReportOptions,
    file: Annotated[
        list[str], option("FILE", "Images with texts, or with questions and answers, as `train` takes.", panel="Input")
    ],
    task: Annotated[
        str | None,
        option("--task NAME", "caption or vqa. If left out, vqa for files with questions and answers.", panel="Input"),
    ] = None,
) -> None:
    """List what is wrong with data for training.

    Every image and every text is read. Ends with 0 if a training could start, also with warnings, and with 2 if not.
    With --model, texts are measured with its tokenizer: those that are truncated, and those that do not fit.
    """
    if task not in (None, "caption", "vqa"):
        raise UsageError(f"--task {task}: must be caption or vqa.")
    from blip2cap.train.data.check import check
    from blip2cap.train.data.collate import make_collator
    from blip2cap.train.data.read import read_data
    from blip2cap.train.data.text_base import read_tokenizers

    options = replace(data, data=tuple(file))
    with stop_on_signal(quiet=report.quiet):
        collate = None if model is None else make_collator(read_tokenizers(model), options)
        read = read_data(options, cast(Any, task))
        with _progress(read, quiet=report.quiet) as progress:
            found = check(read, decode, collate=collate, progress=progress)
    if report.as_json:
        print_json(_facts(read, found))
    else:
        _print(read, found)
    if found.num_errors:
        raise typer.Exit(InputError.exit_code)
    if not read.train.examples:
        raise InputError(f"{', '.join(file)}: no example in it.")


@contextmanager
def _progress(data: Data, *, quiet: bool) -> Iterator[Any]:
    sets = [data.train] if data.val is None else [data.train, data.val]
    total = len({each.path for one in sets for each in one.examples})
    progress = choose_progress(quiet=quiet, rows_on_terminal=False, count=lambda stopped: total)
    try:
        yield progress.update
    finally:
        progress.close()


def _facts(data: Data, found: Report) -> dict[str, Any]:
    from blip2cap.train.data.reasons import ERRORS

    def listed(problems: tuple[Problem, ...], name: str) -> list[dict[str, Any]]:
        return [
            {
                "set": name,
                "reason": each.reason,
                "error": each.reason in ERRORS,
                "where": each.where,
                "detail": each.detail,
            }
            for each in problems
        ]

    return {
        "examples": len(data.train.examples),
        "val_examples": len(data.val.examples) if data.val else None,
        "images": found.num_images,
        "columns": [*data.train.columns, *(data.val.columns if data.val else ())],
        "errors": found.num_errors,
        "warnings": found.num_warnings,
        "by_reason": dict(found.by_reason),
        "problems": [*listed(found.train, "train"), *listed(found.val, "val")],
    }


def _print(data: Data, found: Report) -> None:
    """Print the columns, a table with a row for each reason, and what to do."""
    from rich.table import Table

    from blip2cap.train.data.reasons import ERRORS, WARNINGS

    problems = (*found.train, *found.val)
    with page() as console:
        for line in (*data.train.columns, *(data.val.columns if data.val else ())):
            console.print(cell(line), soft_wrap=True)
        table = Table(show_lines=True)
        for name in ("reason", "count", "where", "for example"):
            table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
        for reason, number in found.by_reason.items():
            same = [each for each in problems if each.reason == reason]
            places = [cell(each.where) for each in same[:_NUM_PLACES] if each.where]
            places += ["..."] if number > _NUM_PLACES else []
            kind = "error" if reason in ERRORS else "warning"
            table.add_row(f"{kind}: {reason}", str(number), "\n".join(places), _short(same[0].detail))
        if problems:
            console.print(table)
        for reason in found.by_reason:
            console.print(cell(f"{reason}: {ERRORS.get(reason) or WARNINGS[reason]}"), soft_wrap=True)
        val = f", {count(len(data.val.examples), 'example')} for validation" if data.val else ""
        console.print(
            f"{count(len(data.train.examples), 'example')}{val}, {count(found.num_images, 'image')}: "
            f"{count(found.num_errors, 'error')}, {count(found.num_warnings, 'warning')}"
        )


def _short(text: str) -> str:
    return cell(text if len(text) <= _DETAIL else f"{text[:_DETAIL]}...")
