"""How an output was made: its manifest, wherever that kind of output keeps it."""

from __future__ import annotations

import os
from pathlib import Path

from blip2cap.sink.journal import manifest_path
from blip2cap.sink.manifest import Manifest


def read_manifest(given: str) -> Manifest | None:
    """Return the manifest of an output, None if it has none. Raises OutputRefusedError if that is damaged."""
    path = Path(os.path.normpath(given))
    if "://" in given or path.is_dir():
        from blip2cap.sink.parts_plan import NAME, read_plan
        from blip2cap.sink.store import open_store

        store = open_store(given if given.endswith("/") else f"{given}/")
        plan = read_plan(store) if store.exists(NAME) else None
        return plan.manifest if plan else None
    if path.suffix.lower() == ".parquet":
        from blip2cap.sink.parquet import embedded_manifest

        return embedded_manifest(path)
    return Manifest.read(manifest_path(path))
