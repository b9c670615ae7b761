"""The status of an output: number of rows by status, and of missing rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from blip2cap.errors import InputError, UsageError
from blip2cap.options import Kind, OutputOptions
from blip2cap.outputs.manifest import Manifest
from blip2cap.outputs.open import (
    exists,
    files_of,
    find_plan,
    is_unfinished,
    kind_of_existing,
    open_output,
    open_rows,
    read_file,
    read_manifest,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsStatus:
    """Progress of a folder of parts."""

    num_missing: int
    """Number of rows that no finished part has."""
    num_in_progress: int
    """Number of these rows in unfinished parts on this machine."""
    num_images: int
    num_parts: int
    num_existing: int
    skipped: Mapping[str, int]
    strays: Sequence[str]
    """Names of Parquet files in the folder that are not among the parts of the plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Counts of an output."""

    out: str
    num_ok: int
    failed: Mapping[str, int]
    """Number of failed rows, by error."""
    manifest: Manifest | None = None
    """None if the settings of the rows are unknown."""
    torn_bytes: int = 0
    unfinished: bool = False
    """True if its last run has not ended: it was stopped or killed, or is still writing."""
    parts: PartsStatus | None = None
    """None for other outputs, whose missing rows only their inputs could tell."""

    @property
    def complete(self) -> bool:
        """True if no row is known to have failed or to be missing."""
        missing = self.torn_bytes or self.unfinished or (self.parts and self.parts.num_missing)
        return not (missing or sum(self.failed.values()))


def read_status(out: str) -> Status:
    """Count the rows of an output. Raises InputError if there is none, OutputRefusedError if it is damaged."""
    kind = kind_of_existing(out)
    if kind is Kind.PARTS:
        return _parts_status(out)
    if kind is Kind.STREAM or not exists(out):
        raise InputError(f"{out}: no such file or folder. Expected an output of blip2cap.")
    if kind is Kind.JOURNAL and Path(out).suffix.lower() != ".jsonl":
        raise UsageError(f"{out}: expected a .jsonl or .parquet output, or a folder of parts.")
    has_rows = any(os.path.exists(path) and os.path.getsize(path) > 0 for path in files_of(out))
    if has_rows and read_manifest(out) is None:
        return _counted(out)
    manifest, journal = read_file(out, kind)
    return Status(
        out=out,
        num_ok=journal.num_ok,
        failed=journal.failed,
        manifest=manifest,
        torn_bytes=journal.torn_bytes,
        unfinished=is_unfinished(out),
    )


def prune(out: str) -> int:
    """Remove all failed rows of a .jsonl or .parquet output; return their number.

    Their images are new to the next run that is given them. Raises what `read_status` raises, OutputLockedError while
    a run is writing, and UsageError for outputs that cannot lose rows.
    """
    found = read_status(out)
    if found.parts is not None:
        raise UsageError(
            f"--prune {out}: a folder of parts has a row for every input of its plan, so none is removed. Retry failed "
            "images: run its command again with --retry-failed."
        )
    if found.manifest is None:
        raise UsageError(f"--prune {out}: has no manifest. Expected the output of a run, not an export.")
    if found.unfinished:
        raise UsageError(f"--prune {out}: its last run has not ended. Run its command again first, to the end.")
    if found.torn_bytes:
        raise UsageError(f"--prune {out}: ends with a torn line. Run its command again first, to the end.")
    with closing(open_output(OutputOptions(out=out, retry_failed=True), None)) as sink:
        if num_failed := len(sink.failed_keys):
            sink.begin(sink.made_with or {})
            sink.finish(stopped=False)
    return num_failed


def _counted(out: str) -> Status:
    """Count the rows of a file without a manifest, such as an export."""
    num_ok, failed, rows = 0, Counter[str](), open_rows(out)
    for row in rows:
        if row.status == "ok":
            num_ok += 1
        else:
            failed[row.error] += 1
    return Status(out=out, num_ok=num_ok, failed=failed, torn_bytes=rows.torn_bytes)


def _parts_status(out: str) -> Status:
    from blip2cap.outputs.parts.counts import done_parts, read_counts, stray_files, total
    from blip2cap.outputs.parts.part import num_rows_in_progress

    plan = find_plan(out)
    if plan is None:
        raise InputError(f"{out}: has no plan of parts. Expected a folder that blip2cap has written to.")
    done = done_parts(plan.store, plan)
    existing = total(read_counts(plan.store, plan, sorted(done)).values())
    return Status(
        out=out,
        num_ok=existing.num_ok,
        failed=existing.failed,
        manifest=plan.manifest,
        parts=PartsStatus(
            num_missing=plan.num_rows - existing.num_rows,
            num_in_progress=num_rows_in_progress(plan.store, plan, done),
            num_images=plan.num_images,
            num_parts=plan.num_parts,
            num_existing=len(done),
            skipped=plan.skipped,
            strays=stray_files(plan.store, plan),
        ),
    )
