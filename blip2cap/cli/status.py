"""`blip2cap status`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from blip2cap.cli.guard import handle_errors
from blip2cap.cli.report import print_json
from blip2cap.cli.terminal import clean, write_out
from blip2cap.errors import InputError, UsageError
from blip2cap.outputs.open import find_plan

_NOT_ALL_OK = 3
_SHOWN = ("command", "model", "dtype", "quantize", "prompt", "template")


@handle_errors
def status(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A .jsonl or .parquet output, or a folder of parts.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count the rows of an output that are ok, failed or missing.

    Ends with 0 if every row is there and ok, and with 3 if not. What a .jsonl or .parquet file misses, only its inputs
    could tell: ask the command that made it, with --dry-run.
    """
    suffix = Path(out).suffix.lower()
    if "://" in out or os.path.isdir(out):
        facts = _parts_facts(out)
    elif not (os.path.exists(out) or (suffix == ".parquet" and os.path.exists(f"{out}.jsonl"))):
        raise InputError(f"{out}: no such file or folder. Expected an output of caption or vqa.")
    elif suffix in (".jsonl", ".parquet"):
        facts = _journal_facts(Path(out))
    else:
        raise UsageError(f"{out}: expected a .jsonl or .parquet output, or a folder of parts.")
    if as_json:
        print_json(facts)
    else:
        write_out(_page(facts))
    if facts["rows_failed"] or facts["rows_missing"] or facts["torn_bytes"]:
        raise typer.Exit(_NOT_ALL_OK)


def _parts_facts(out: str) -> dict[str, Any]:
    from blip2cap.outputs.parts.counts import done_parts, read_counts, total
    from blip2cap.outputs.parts.part import num_rows_in_work

    plan = find_plan(out)
    if plan is None:
        raise InputError(f"{out}: no plan of parts is there. Expected a folder that caption or vqa has written to.")
    store = plan.store
    done = done_parts(store, plan)
    there = total(read_counts(store, plan, sorted(done)).values())
    settings = plan.manifest.settings
    num_rows = plan.num_images * len(settings.get("questions") or (None,))
    return _facts(out, there.num_ok, there.failed, settings, plan.manifest.created) | {
        "rows_missing": num_rows - there.num_rows,
        "rows_in_work": num_rows_in_work(store, plan, done),
        "images": plan.num_images,
        "parts": plan.num_parts,
        "parts_there": len(done),
        "skipped": dict(plan.skipped),
    }


def _journal_facts(path: Path) -> dict[str, Any]:
    from blip2cap.outputs import journal, parquet

    read_output = parquet.read_output if path.suffix.lower() == ".parquet" else journal.read_output
    manifest, there = read_output(path)
    settings, created = (manifest.settings, manifest.created) if manifest else ({}, "")
    facts = _facts(str(path), there.num_ok, there.failed, settings, created)
    return facts | {"torn_bytes": there.torn_bytes}


def _facts(
    out: str, num_ok: int, failed: Mapping[str, int], settings: Mapping[str, Any], created: str
) -> dict[str, Any]:
    return {
        "out": out,
        "rows_ok": num_ok,
        "rows_failed": sum(failed.values()),
        "failed_by_error": dict(failed),
        "rows_missing": None,
        "torn_bytes": 0,
        "created": created,
        "settings": dict(settings),
    }


def _page(facts: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count} {clean(error)}" for error, count in facts["failed_by_error"].items())
    counts = [f"{facts['rows_ok']} ok", f"{facts['rows_failed']} failed" + (f" ({kinds})" if kinds else "")]
    if facts["torn_bytes"]:
        counts.append("a torn last line, which the next run does again")
    if facts["rows_missing"] is None:
        counts.append("missing: not known from the file alone")
    else:
        counts.append(f"{facts['rows_missing']} missing")
        if facts["rows_in_work"]:
            counts[-1] += f" ({facts['rows_in_work']} of them in work)"
        counts.append(f"{facts['parts_there']} of {facts['parts']} parts")
    settings = [f"{name} {clean(str(facts['settings'][name]))}" for name in _SHOWN if facts["settings"].get(name)]
    lines = [f"{clean(facts['out'])}: {', '.join(counts)}", f"made with {', '.join(settings)}" if settings else ""]
    return "".join(f"{line}\n" for line in lines if line)
