"""Reports of a training: rows of metrics.jsonl and samples.jsonl, and log lines in the terms of LAVIS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2cap.outputs.files import OS_FILES, write_whole
from blip2cap.train.write_errors import write_errors


class RowFile:
    """A .jsonl file with a row for each event of a training; rows have a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row. Raises OutputError."""
        with write_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, without one that a kill or a full disk has cut."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def truncate(self, step: int) -> None:
        """Remove the rows after `step`: a training that is resumed there writes them again. Raises OutputError."""
        if self.path.exists():
            rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows() if row["step"] <= step]
            with write_errors(self.path):
                write_whole(OS_FILES, self.path, "".join(rows).encode())


def log_line(row: Mapping[str, Any], *, epoch: int, step: int, steps: int, eta_s: float) -> str:
    """Return a row as a log line; `step` of `steps` counts in this epoch, from 1."""
    losses = "  ".join(f"{name}: {value:.4f}" for name, value in row.items() if name.startswith("loss"))
    width = len(str(steps))
    return (
        f"Train: data epoch: [{epoch}]  [{step:{width}}/{steps}]  eta: {duration(eta_s)}  lr: {row['lr']:.8f}  "
        f"{losses}  time: {row['step_s']:.3f}  max mem: {row['max_memory_mb']:.0f}"
    )


def evaluation_line(row: Mapping[str, Any], *, best: bool) -> str:
    """Return the row of an evaluation as a log line."""
    metrics = "  ".join(f"{name}: {value:.4f}" for name, value in row.items() if name != "step")
    return f"Evaluation: step {row['step']}  {metrics}  {'best so far' if best else ''}".rstrip()


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
