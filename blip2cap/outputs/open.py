"""Functions that open each kind of output, for runs, dry runs, `status`, `show` and `export`."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blip2cap.errors import InputError, OutputError, OutputRefusedError
from blip2cap.options import SUFFIXES, Kind, OutputOptions
from blip2cap.outputs import existing_rows, parquet
from blip2cap.outputs.base import Output
from blip2cap.outputs.existing_rows import Journal, manifest_path
from blip2cap.outputs.files import behind
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.manifest import UNFINISHED, Manifest
from blip2cap.outputs.parquet import ParquetSink, journal_path
from blip2cap.outputs.parquet_table import embedded_manifest
from blip2cap.outputs.read import Results, part_order, readable, spool
from blip2cap.outputs.stream import StreamSink

if TYPE_CHECKING:
    from blip2cap.outputs.parts.plan import PartsPlan


def kind_of_existing(given: str) -> Kind:
    """Return the kind of an output to read; a file with any other suffix is expected to hold lines of JSON."""
    if given == "-":
        return Kind.STREAM
    if "://" in given or os.path.isdir(given):
        return Kind.PARTS
    return SUFFIXES.get(Path(given).suffix.lower(), Kind.JOURNAL)


def open_output(options: OutputOptions, stdout: BinaryIO | None) -> Output:
    """Open an output other than a folder of parts for a run: lock and read a file, or take `stdout` for `-`.

    Raises OutputLockedError, OutputRefusedError or OutputError.
    """
    kind = options.kind
    if kind is Kind.STREAM:
        if stdout is None:
            raise OutputError("--out -: standard output is closed.")
        return StreamSink(stdout)
    check_regular(options.out)
    sink = ParquetSink if kind is Kind.PARQUET else JournalSink
    return sink(Path(options.out), overwrite=options.overwrite, retry_failed=options.retries)


def check_regular(out: str) -> None:
    """Raise OutputRefusedError for a FIFO, a socket or a device: opening it may wait for ever, or replace it."""
    if os.path.exists(out) and not os.path.isfile(out) and not os.path.isdir(out):
        raise OutputRefusedError(
            f"{out}: a FIFO, a socket or a device, which keeps no rows. Use a new or regular file, or write to it "
            f"through standard output: --out - > {shlex.quote(out)}"
        )


def read_file(out: str, kind: Kind, *, retry_failed: bool = False) -> tuple[Manifest | None, Journal]:
    """Read a .jsonl or .parquet output without its lock: the manifest of its rows, None without rows, and its counts.

    Raises OutputRefusedError if it is damaged or has no manifest.
    """
    check_regular(out)
    read = parquet.read_output if kind is Kind.PARQUET else existing_rows.read_output
    return read(Path(out), retry_failed=retry_failed)


def read_manifest(given: str) -> Manifest | None:
    """Return the manifest of an output; None if it has none. Raises OutputRefusedError if it is damaged."""
    path = Path(given)
    match kind_of_existing(given):
        case Kind.STREAM:
            return None
        case Kind.PARTS:
            plan = find_plan(given)
            return plan.manifest if plan else None
        case Kind.PARQUET:
            return embedded_manifest(path) or Manifest.read(manifest_path(journal_path(behind(path))))
        case Kind.JOURNAL:
            return Manifest.read(manifest_path(path))


def is_unfinished(given: str) -> bool:
    """Return True if the last run into a .jsonl or .parquet output was stopped or killed, or is still writing.

    False where that is unknown: outputs of older releases, without a manifest or with a damaged one. Of a folder of
    parts, the missing parts tell.
    """
    path, kind = Path(given), kind_of_existing(given)
    if kind not in (Kind.JOURNAL, Kind.PARQUET):
        return False
    lines = journal_path(behind(path)) if kind is Kind.PARQUET else path
    with suppress(OutputRefusedError):
        manifest = Manifest.read(manifest_path(lines)) or (embedded_manifest(path) if kind is Kind.PARQUET else None)
        return manifest is not None and manifest.state == UNFINISHED
    return False


def find_plan(folder: str) -> PartsPlan | None:
    """Return the plan of a folder or bucket of parts; None if it has none. Raises what `read_plan` raises."""
    from blip2cap.outputs.parts.plan import NAME, read_plan
    from blip2cap.outputs.parts.store import open_store

    store = open_store(folder if folder.endswith("/") else f"{folder}/")
    return read_plan(store) if store.exists(NAME) else None


def exists(given: str) -> bool:
    """Return whether an output exists; the journal of a Parquet file is enough."""
    if kind_of_existing(given) is Kind.PARQUET and os.path.exists(journal_path(behind(Path(given)))):
        return True
    return "://" in given or os.path.exists(given)


def files_of(given: str) -> tuple[Path, ...]:
    """List the files of a local output, existing or not; for a folder of parts, the folder."""
    path = Path(given)
    match kind_of_existing(given):
        case Kind.STREAM:
            return ()
        case Kind.PARTS:
            return (path,)
        case Kind.PARQUET:
            journal_file = journal_path(behind(path))
            return path, journal_file, manifest_path(journal_file)
        case Kind.JOURNAL:
            return path, manifest_path(path)


def open_rows(given: str, stdin: BinaryIO | None = None) -> Results:
    """Open an output to read its rows. Raises InputError if there is nothing to read."""

    def manifest() -> Manifest | None:
        with suppress(OutputRefusedError):  # the rows may be whole although their manifest is not
            return read_manifest(given)
        return None

    kind = kind_of_existing(given)
    if kind is Kind.STREAM:
        return Results(given, stream=spool(stdin))
    if kind is Kind.PARTS:
        names, ignored = _part_names(given)
        return Results(given, tables=[f"{Path(given, name)}" for name in names], manifest=manifest, ignored=ignored)
    if os.path.exists(given) and not os.path.isfile(given):
        with readable(given), open(given, "rb") as pipe:  # such as <(...) of a shell
            return Results(given, stream=spool(pipe))
    lines = str(journal_path(behind(Path(given)))) if kind is Kind.PARQUET else given
    there = lines if kind is Kind.PARQUET and not os.path.exists(given) and os.path.exists(lines) else given
    with readable(there), open(there, "rb"):
        pass
    return Results(given, tables=(given,) if kind is Kind.PARQUET else (), journal=lines, manifest=manifest)


def _part_names(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the parts in a folder, in order, and those of other Parquet files, which are ignored."""
    if "://" in folder:
        raise InputError(
            f"{folder}: a URL. Expected a local output: copy it to a local folder and give that, or read its "
            "part-*.parquet with pyarrow or DuckDB. `blip2cap status` takes URLs too."
        )
    names, plan = {path.name for path in Path(folder).glob("*.parquet")}, None
    with suppress(OutputRefusedError):  # a copy of the parts has no plan
        plan = find_plan(folder)
    if plan is not None:
        from blip2cap.outputs.parts.counts import stray_files

        parts = names - {*stray_files(plan.store, plan)}
    else:
        parts = {name for name in names if re.fullmatch(r"part-[0-9]+\.parquet", name)}
    if not parts:
        raise InputError(f"{folder}: a folder without part-*.parquet. Expected an output of blip2cap.")
    return sorted(parts, key=part_order), sorted(names - parts)
