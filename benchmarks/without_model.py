"""The real command with a model that is never called: everything around a model.

    python -m benchmarks.without_model caption FOLDER --model tiny --json

The images must be unreadable, as empty files are. Prints one JSON object: `summary`, the output of the command;
`first_row_s`, from the model being ready to the first rows on the disk, where any were written; `peak_mb`, the peak
resident memory; `cpu_s`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from types import ModuleType, SimpleNamespace
from typing import Any

from blip2cap.bench.programs import peak_rss_mb
from blip2cap.cli import app
from blip2cap.errors import SOME_FAILED
from blip2cap.models.checkpoint import Checkpoint
from blip2cap.outputs.journal import JournalSink
from blip2cap.rows import Row


class NoTexts:
    """The decoder of a model that is never called."""

    capacity = 128
    num_pending = num_ahead = 0

    def encode(self, images: Sequence[Any]) -> Any:
        """An image could be read after all."""
        raise SystemExit("an image could be read: expected none, there is no model for it")

    def close(self) -> None:
        """Do nothing."""

    def advance(self) -> list[Any]:
        """Nothing is ever ready."""
        return []


class NoModel:
    """The model of a run without readable images."""

    fallback_reason = ""
    remark = ""
    on_cpu = True
    dtype = "torch.float32"
    device = SimpleNamespace(type="cpu")

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def wait(self) -> None:
        """Nothing to wait for."""

    def start_texts(self, options: object, *, capacity: int | None) -> NoTexts:
        """Start the decoder of a run."""
        return NoTexts()

    def check(self, options: object, prompts: object = ()) -> None:
        """Every option fits."""


def main() -> None:
    """Run the command, and print what was measured."""
    times: dict[str, float] = {}
    write = JournalSink.write

    def load(checkpoint: Checkpoint, options: object) -> NoModel:
        times["ready"] = time.monotonic()
        return NoModel(checkpoint)

    def timed_write(sink: JournalSink, rows: Iterable[Row]) -> None:
        write(sink, rows)
        times.setdefault("first_row", time.monotonic())

    loader = ModuleType("blip2cap.models.blip2.load")
    loader.__dict__["load"] = load
    sys.modules[loader.__name__] = loader
    JournalSink.write = timed_write  # type: ignore[method-assign]
    sys.stderr.isatty = lambda: True  # type: ignore[method-assign]  # for the progress bar
    printed = io.StringIO()
    with redirect_stdout(printed):
        try:
            app()
        except SystemExit as ended:
            if ended.code not in (0, SOME_FAILED):  # nothing to do, or all failed, as they should
                raise
    facts = {"cpu_s": round(time.process_time(), 2), "peak_mb": peak_rss_mb()}
    if "first_row" in times:
        facts["first_row_s"] = times["first_row"] - times["ready"]
    print(json.dumps({**facts, "summary": json.loads(printed.getvalue())}))


if __name__ == "__main__":
    main()
