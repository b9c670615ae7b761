"""`blip2cap status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip2cap.cli.report import print_json
from blip2cap.cli.terminal import clean, say, write_out
from blip2cap.errors import SOME_FAILED

if TYPE_CHECKING:
    from blip2cap.outputs.status import Status

_SHOWN = ("command", "what", "precision", "model", "dtype", "quantize", "prompt", "template")


def status(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A .jsonl or .parquet output, or a folder of parts.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove all failed rows of a .jsonl or .parquet.")] = False,
) -> None:
    """Count the rows of an output that are ok, failed or missing.

    Ends with 0 if every row exists and is ok, and with 3 if not, or if the run that makes the rows has not ended. Only
    the inputs of a .jsonl or .parquet file could tell which rows are missing: ask the command that made it, with
    --dry-run.
    """
    from blip2cap.outputs import status as statuses

    if prune:
        num_removed = statuses.prune(out)
        say(f"{clean(out)}: {num_removed} failed row{'s' if num_removed != 1 else ''} removed")
    found = statuses.read_status(out)
    facts = _facts(found)
    if as_json:
        print_json(facts)
    else:
        write_out(_page(facts))
    if not found.complete:
        raise typer.Exit(SOME_FAILED)


def _facts(found: Status) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "out": found.out,
        "rows_ok": found.num_ok,
        "rows_failed": sum(found.failed.values()),
        "failed_by_error": dict(found.failed),
        "rows_missing": None,
        "torn_bytes": found.torn_bytes,
        "unfinished": found.unfinished,
        "created": found.manifest.created if found.manifest else "",
        "settings": dict(found.manifest.settings) if found.manifest else {},
    }
    if (parts := found.parts) is not None:
        facts |= {
            "rows_missing": parts.num_missing,
            "rows_in_work": parts.num_in_progress,
            "images": parts.num_images,
            "parts": parts.num_parts,
            "parts_there": parts.num_existing,
            "skipped": dict(parts.skipped),
            "ignored": [*parts.strays],
        }
    return facts


def _page(facts: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count} {clean(error)}" for error, count in facts["failed_by_error"].items())
    counts = [f"{facts['rows_ok']} ok", f"{facts['rows_failed']} failed" + (f" ({kinds})" if kinds else "")]
    if facts["torn_bytes"]:
        again = ", whose row the next run replaces" if facts["settings"] else ""
        counts.append(f"a torn last line{again}")
    if facts["unfinished"]:
        counts.append("unfinished: its run was stopped or is still writing; the same command continues it")
    elif facts["rows_missing"] is None:
        counts.append("missing: not known from the file alone")
    else:
        counts.append(f"{facts['rows_missing']} missing")
        if facts["rows_in_work"]:
            counts[-1] += f" ({facts['rows_in_work']} of them in progress)"
        counts.append(f"{facts['parts_there']} of {facts['parts']} parts")
    settings = [f"{name} {clean(str(facts['settings'][name]))}" for name in _SHOWN if facts["settings"].get(name)]
    made = f"made with {', '.join(settings)}\n" if settings else ""
    if not facts["settings"] and (facts["rows_ok"] or facts["rows_failed"] or facts["torn_bytes"]):
        made = "without a manifest: no run can resume it\n"
    if ignored := facts.get("ignored"):
        from blip2cap.outputs.read import ignored_message

        made += f"{clean(ignored_message(facts['out'], ignored))}\n"
    return f"{clean(facts['out'])}: {', '.join(counts)}\n{made}"
