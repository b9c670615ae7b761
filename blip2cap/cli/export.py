"""`blip2cap export`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip2cap.cli.report import print_json
from blip2cap.cli.terminal import clean, discard, say
from blip2cap.errors import SOME_FAILED, OutputError, UsageError
from blip2cap.outputs.export.options import APPLY, EXISTING, ExportOptions, parse_affixes
from blip2cap.outputs.export.reasons import MEANINGS
from blip2cap.outputs.open import files_of, find_plan, is_unfinished, open_rows, read_manifest
from blip2cap.outputs.read import Results, ignored_message
from blip2cap.source.walk import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from blip2cap.outputs.export.item import Item
    from blip2cap.outputs.export.run import ExportCounts

_MAX_PRINTED = 20
_option = functools.partial(typer.Option, show_default=False)


def run_export(
    results: Annotated[
        str,
        typer.Argument(metavar="RESULTS", help="Output of a run: .jsonl, .parquet or a folder; `-` is stdin."),
    ],
    to: Annotated[str, _option("--to", metavar="FORMAT", help=f"{', '.join(APPLY)}.")],
    out: Annotated[
        str | None,
        _option(
            "-o",
            "--out",
            metavar="PATH",
            help="Output file or folder; `-` is stdout (csv, jsonl, coco, labelstudio). Default: beside the images "
            "(txt, xmp, imagefolder).",
        ),
    ] = None,
    images: Annotated[
        str | None,
        _option(
            "--images", metavar="DIR", help="Folder that the names of images are relative to. Default: that of the run."
        ),
    ] = None,
    existing: Annotated[
        str,
        typer.Option("--existing", metavar="ACTION", help=f"Action for existing files: {', '.join(EXISTING)}."),
    ] = "skip",
    separator: Annotated[
        str | None,
        _option("--separator", metavar="TEXT", help="Text between joined captions (append, prepend). Default: `, `."),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        _option(
            "--prefix", metavar="TEXT", help="Text before every caption, or FOLDER/=TEXT: below FOLDER. Repeatable."
        ),
    ] = None,
    suffix: Annotated[
        list[str] | None,
        _option("--suffix", metavar="TEXT", help="Text after every caption, or FOLDER/=TEXT."),
    ] = None,
    question: Annotated[
        str | None, _option("--question", metavar="TEXT", help="Only answers to this question.")
    ] = None,
    min_itm: Annotated[
        float | None, _option("--min-itm", metavar="N", help="Only rows of match with this itm or more.")
    ] = None,
    min_itc: Annotated[
        float | None, _option("--min-itc", metavar="N", help="Only rows of match with this itc or more.")
    ] = None,
    extension: Annotated[
        str | None, _option("--extension", metavar="EXT", help="txt: extension of the files. Default: .txt.")
    ] = None,
    column: Annotated[
        str | None, _option("--column", metavar="NAME", help="imagefolder, csv: name of the column with the text.")
    ] = None,
    full_path: Annotated[bool, typer.Option("--full-path", help="kohya: absolute paths as keys.")] = False,
    results_only: Annotated[
        bool, typer.Option("--results", help="coco: the results format of evaluations, without the list of images.")
    ] = False,
    shard_size: Annotated[
        int | None, _option("--shard-size", metavar="N", help="webdataset: images in one archive. Default: 10000.")
    ] = None,
    which: Annotated[
        str | None,
        _option(
            "--which",
            metavar="CAPTIONS",
            help="Of rows with several captions: first, all or random:SEED. Default: first; all for coco, labelstudio.",
        ),
    ] = None,
    url_prefix: Annotated[
        str | None,
        _option(
            "--url-prefix", metavar="URL", help="labelstudio: text before the names of images, which makes them URLs."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be written; write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")] = False,
) -> None:
    """Write captions, answers or scores for another tool."""
    options = ExportOptions(
        to=to,
        out=out,
        existing=existing,
        question=question,
        min_itm=min_itm,
        min_itc=min_itc,
        prefix=parse_affixes("--prefix", tuple(prefix or ())),
        suffix=parse_affixes("--suffix", tuple(suffix or ())),
        separator=separator,
        extension=extension,
        column=column,
        full_path=full_path,
        results_only=results_only,
        shard_size=shard_size,
        which=which,
        url_prefix=url_prefix,
    )
    if out == "-" and as_json:
        raise UsageError("--json and --out - exclude each other: rows go to standard output. Leave one out.")
    parts = _count_parts(results)  # before the rows are read: a run may add parts meanwhile
    rows = open_rows(results)
    manifest = read_manifest(results)
    settings = manifest.settings if manifest else {}
    from blip2cap.outputs.export.formats import make_writer  # late: importing all formats takes time
    from blip2cap.outputs.export.item import Items
    from blip2cap.outputs.export.run import export

    writer = make_writer(options, _root(images, str(settings.get("input_root", ""))), manifest)
    _keep_inputs(writer.out, extension, results)
    left_out = _LeftOut(quiet=quiet)
    items = Items(options, writer.root)
    try:
        counts = export(rows, writer, items, dry_run=dry_run, on_left_out=left_out.add)
    except OutputError:
        if out == "-" and sys.stdout is not None:
            discard(sys.stdout)  # Python would write what is left again at exit, and fail with code 120
        raise
    left_out.close()
    for folder in sorted(items.unmatched) if not quiet else ():
        say(f"{clean(folder)}/: has a --prefix or --suffix, and no image in it")
    facts = _facts(options, writer.out, rows, counts, dry_run=dry_run) | parts
    if is_unfinished(results):
        facts["unfinished"] = True
    if writer.num_extracted:
        facts["extracted"] = writer.num_extracted
    if counts.num_several and "which" in APPLY[to]:
        facts |= {"which": ":".join(filter(None, options.choice)), "captions": counts.num_captions}
    if as_json:
        print_json(facts)
    elif not quiet:
        _say_summary(facts, rows)
    if any(reason in MEANINGS for reason in counts.left_out) or _are_missing(parts) or "unfinished" in facts:
        raise typer.Exit(SOME_FAILED)


def _count_parts(results: str) -> dict[str, int]:
    """Count the parts of a folder with a plan; return nothing for other outputs."""
    plan = find_plan(results) if os.path.isdir(results) else None
    if plan is None:
        return {}
    from blip2cap.outputs.parts.counts import done_parts

    return {"parts": plan.num_parts, "parts_there": len(done_parts(plan.store, plan))}


def _are_missing(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("parts_there", 0) < facts.get("parts", 0))


def _root(images: str | None, input_root: str) -> str:
    """Return the folder of the images, "" if it is not known. Raises UsageError if --images does not exist."""
    if images is not None:
        if not os.path.isdir(images):
            raise UsageError(f"--images {images}: no such folder. Paths are relative to {os.getcwd()}.")
        return images
    return input_root if os.path.isdir(input_root) else ""


def _keep_inputs(out: str, extension: str | None, results: str) -> None:
    """Raise UsageError if --out would overwrite images or results, or be read as results later."""
    for flag, name in (("--extension", extension), ("--out", "" if os.path.isdir(out) else out)):
        if name and os.path.splitext(f"x{name}")[1].lower() in IMAGE_SUFFIXES:
            raise UsageError(f"{flag} {name}: the name of an image, and images are never written. Choose another.")
    for path in files_of(results) if out not in ("", "-") else ():
        if _is_in(out, path):
            raise UsageError(f"--out {out}: that is what is exported, or a part of it. Use another --out.")


def _is_in(out: str, path: Path) -> bool:
    """Return whether `out` is `path` or inside it, also through links; neither need exist."""
    if os.path.exists(out) and path.exists() and path.samefile(out):
        return True
    folder, name = os.path.split(os.path.abspath(out))
    names = Path(os.path.realpath(out)), Path(os.path.realpath(folder), name)
    return any(one.is_relative_to(os.path.realpath(path)) for one in names)


class _LeftOut:
    """Prints the rows that are left out; after the first few only their number."""

    def __init__(self, *, quiet: bool) -> None:
        self.limit = 0 if quiet else _MAX_PRINTED
        self.count = 0

    def add(self, item: Item, reason: str, why: str) -> None:
        """Print one row, the reason and its meaning."""
        if reason in MEANINGS:
            self.count += 1
            if self.count <= self.limit:
                say(f"{clean(item.row.file_name)}: {reason}: {clean(why)}")

    def close(self) -> None:
        """Print the number of rows that were not printed."""
        if self.count > self.limit > 0:
            say(f"... and {self.count - self.limit} more are left out.")


def _facts(options: ExportOptions, out: str, rows: Results, counts: ExportCounts, *, dry_run: bool) -> dict[str, Any]:
    below = {"below_cut_off": counts.num_below} if options.min_itm is not None or options.min_itc is not None else {}
    return {
        "to": options.to,
        "out": out,
        "rows": counts.num_rows,
        "to_write" if dry_run else "written": counts.num_written,
        "failed": counts.num_failed,
        "other_questions": counts.num_other_questions,
        **below,
        "left_out": dict(counts.left_out),
        "torn_bytes": rows.torn_bytes,
        "dry_run": dry_run,
    }


def _say_summary(facts: dict[str, Any], rows: Results) -> None:
    where = "standard output" if facts["out"] == "-" else clean(facts["out"]) or "beside the images"
    parts = [f"{facts['to_write']} to write" if facts["dry_run"] else f"{facts['written']} written"]
    if "which" in facts:
        which, _, seed = facts["which"].partition(":")
        chosen = {"all": f"{facts['captions']} captions", "first": "the first of several captions each"}
        parts.append(chosen.get(which, f"a random one of several captions each (seed {seed})"))
    if "extracted" in facts:
        parts.append(f"{facts['extracted']} image{'s' if facts['extracted'] != 1 else ''} extracted")
    parts += [f"{count} {reason.replace('_', ' ')}" for reason, count in facts["left_out"].items()]
    if facts["failed"]:
        parts.append(f"{facts['failed']} failed row{'s' if facts['failed'] != 1 else ''} left out")
    if "below_cut_off" in facts:
        parts.append(f"{facts['below_cut_off']} below the cut-off left out")
    if facts["other_questions"]:
        parts.append(f"{facts['other_questions']} for other questions left out")
    if _are_missing(facts):
        parts.append(f"only {facts['parts_there']} of {facts['parts']} parts exist")
    if "unfinished" in facts:
        parts.append("its run has not ended, rows may be missing")
    if rows.torn_bytes:
        say(f"{clean(rows.given)}: a torn last line of {rows.torn_bytes} bytes is left out")
    if rows.ignored:
        say(clean(ignored_message(rows.given, rows.ignored)))
    end = "; nothing was written" if facts["dry_run"] else ""
    say(f"{facts['to']}, {where}: {', '.join(parts)}{end}")
