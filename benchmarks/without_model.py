"""blip2cap with a model that is never asked: what surrounds a model, by itself.

    python benchmarks/without_model.py FACTS caption FOLDER --model tiny

Everything but the model is the real command; the images have to be such that cannot be read, as empty files. Writes to
the file FACTS, as JSON: `first_row_s`, from the model being ready to the first rows on the disk, where any were
written, and `peak_mb`, the most memory that was resident (Linux).
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from blip2cap.cli import app
from blip2cap.outputs.journal import JournalSink
from blip2cap.rows import Row


class NoTexts:
    """The text side of a model that has nothing to say."""

    capacity = 128
    num_pending = 0

    def add(self, features: Any, prompts: Sequence[Any]) -> list[int]:
        """Nothing is ever added: no image is encoded."""
        raise NotImplementedError

    def advance(self) -> list[Any]:
        """Nothing is ever ready."""
        return []


class NoModel:
    """What a command loads."""

    image_size = 224
    on_cpu = True
    dtype = "torch.float32"
    device = SimpleNamespace(type="cpu")

    def encode(self, images: Sequence[Any]) -> Any:
        """Say that an image could be read after all."""
        raise SystemExit("an image could be read: expected none, there is no model for it")

    def wait(self) -> None:
        """Nothing to wait for."""

    def start_texts(self, options: object, *, capacity: int | None) -> NoTexts:
        """Begin the text side of a run."""
        return NoTexts()

    def check(self, options: object) -> None:
        """Every option fits."""


def main() -> None:
    """Run the command, and write what was seen of it whatever its exit code."""
    facts = Path(sys.argv.pop(1))
    times: dict[str, float] = {}
    write = JournalSink.write

    def load(checkpoint: object, options: object) -> NoModel:
        times["ready"] = time.monotonic()
        return NoModel()

    def noted(sink: JournalSink, rows: Iterable[Row]) -> None:
        write(sink, rows)
        times.setdefault("first_row", time.monotonic())

    loader = ModuleType("blip2cap.models.blip2.load")
    loader.__dict__["load"] = load
    sys.modules[loader.__name__] = loader
    JournalSink.write = noted  # type: ignore[method-assign]
    try:
        app()
    finally:
        # Not ru_maxrss: that is at least what the parent had when it started us.
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        found = {"peak_mb": int(peak[1]) / 1e3} if peak else {}
        if "first_row" in times:
            found["first_row_s"] = times["first_row"] - times["ready"]
        facts.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
