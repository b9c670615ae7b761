"""Results to export, their images, and short functions that export them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip2cap.outputs.existing_rows import manifest_path
from blip2cap.outputs.export.formats import make_writer
from blip2cap.outputs.export.item import Item, Items
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.outputs.export.run import ExportCounts, export
from blip2cap.outputs.files import OS_FILES, Files, OsFiles
from blip2cap.outputs.manifest import Manifest
from blip2cap.outputs.open import open_rows
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from tests.files import Killed
from tests.pictures import photo
from tests.rows import text_row


class CrashAtSync(OsFiles):
    """Files of a process that crashes when it syncs its nth file, after writing it."""

    def __init__(self, num_before: int = 0) -> None:
        self.num_before = num_before

    def fsync(self, file: int) -> None:
        """Crash, or sync."""
        if self.num_before == 0:
            raise Killed
        self.num_before -= 1
        super().fsync(file)


HOSTILE = [
    "a cat",
    "two\nlines\r\nand a third",
    "line\u2028separator\u2029paragraph\x85next",
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@sum",
    "\ttab",
    "\rreturn",
    'quotes " and \' and ""',
    "comma, semicolon; tab\there",
    "emoji \U0001f408\u200d\U0001f7eb and кот",
    "<&> ]]> <!-- x -->",
    "bell \x07 escape \x1b[31m null \x00 end",
    "not characters \ufffe\uffff",
    "\ufeffmark",
    "long " * 20_000 + "end",
]
"""Captions that break a format whose writer does not quote."""


def caption(name: str, text: str = "a cat", **columns: Any) -> Row:
    """Make the row of an image; `name` may hold surrogate escapes."""
    ref = ImageRef(path=name, name=name)
    return text_row(
        file_name=ref.file_name, file_name_b64=ref.file_name_b64, text=text, **{"width": 4, "height": 3, **columns}
    )


def answer(name: str, question: str, text: str = "yes", **columns: Any) -> Row:
    return caption(name, text, question=question, **columns)


def failure(name: str, **columns: Any) -> Row:
    return caption(name, "", status="failed", error="truncated", **columns)


def make_images(folder: Path, *names: str) -> Path:
    """Put a picture under every name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(4, 3).save(folder / name, format="png")
    return folder


def write_results(path: Path, rows: Iterable[Row], root: Path | None = None) -> Path:
    """Write a journal as a run leaves it; without `root`, one without a manifest."""
    path.write_bytes(b"".join(row.as_json() for row in rows))
    if root is not None:
        Manifest(settings={"input_root": str(root), "model": "tiny"}).write(manifest_path(path))
    return path


def run(folder: Path, rows: Iterable[Row], to: str, *, root: Path | None = None, **options: Any) -> ExportCounts:
    """Export rows of images in `root`; the results lie in `folder`."""
    return run_named(folder, rows, to, root=root, **options)[0]


def run_named(
    folder: Path,
    rows: Iterable[Row],
    to: str,
    *,
    root: Path | None = None,
    dry_run: bool = False,
    files: Files = OS_FILES,
    **options: Any,
) -> tuple[ExportCounts, dict[str, str]]:
    """Export rows; return, too, which images were left out, and why."""
    path = write_results(folder / "results.jsonl", rows)
    given: dict[str, Any] = {name: str(value) if name == "out" else value for name, value in options.items()}
    asked = ExportOptions(to=to, **given)
    writer = make_writer(asked, str(root or ""), Manifest(settings={"model": "tiny"}, created="now"), files)
    names: dict[str, str] = {}

    def note(item: Item, reason: str, why: str) -> None:
        names[item.row.file_name] = reason

    summary = export(open_rows(str(path)), writer, Items(asked, writer.root), dry_run=dry_run, on_left_out=note)
    return summary, names


def names_in(folder: Path) -> list[str]:
    """List all files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
