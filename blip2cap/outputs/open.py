"""What belongs to an output, wherever that kind of output keeps it: its manifest, its plan, its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from blip2cap.outputs.files import behind
from blip2cap.outputs.journal import manifest_path
from blip2cap.outputs.manifest import Manifest
from blip2cap.outputs.parquet import embedded_manifest, journal_path

if TYPE_CHECKING:
    from blip2cap.outputs.parts.plan import PartsPlan


def read_manifest(given: str) -> Manifest | None:
    """Return the manifest of an output, None if it has none. Raises OutputRefusedError if that is damaged."""
    if "://" in given or os.path.isdir(given):
        plan = find_plan(given)
        return plan.manifest if plan else None
    path = Path(given)
    if _is_parquet(path):
        return embedded_manifest(path) or Manifest.read(manifest_path(journal_path(behind(path))))
    return Manifest.read(manifest_path(path))


def find_plan(folder: str) -> PartsPlan | None:
    """Return the plan of a folder or bucket of parts, None if it has none. Raises what `read_plan` does."""
    from blip2cap.outputs.parts.plan import NAME, read_plan
    from blip2cap.outputs.parts.store import open_store

    store = open_store(folder if folder.endswith("/") else f"{folder}/")
    return read_plan(store) if store.exists(NAME) else None


def paths_of(given: str) -> tuple[Path, ...]:
    """List what belongs to a local output, there or not yet; a folder stands for all that is in it."""
    path = Path(given)
    if path.is_dir():
        return (path,)
    if _is_parquet(path):
        journal = journal_path(behind(path))
        return path, journal, manifest_path(journal)
    return path, manifest_path(path)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"
