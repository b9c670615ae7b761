"""The folder of a training: its lock, the recipe that it belongs to, and what is in it.

RUN/recipe.toml      options that were really used, and what they stood for
RUN/metrics.jsonl    losses, a row for each log line and evaluation
RUN/samples.jsonl    captions or answers about images of the validation set, at each evaluation
RUN/loss.png, .svg   losses over the steps, at the end
RUN/checkpoints/     the last checkpoint and the best: parameters that train, optimiser, schedule, random numbers
RUN/config.json ...  the finished model, as a checkpoint in the form of the hub
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2cap.errors import OutputError, OutputRefusedError, UsageError
from blip2cap.outputs.files import OS_FILES, Files, holding_lock, sync_folder, write_whole
from blip2cap.train.checkpoints import Checkpoints
from blip2cap.train.logs import RowFile
from blip2cap.train.model.finished import CONFIGS
from blip2cap.train.recipe_file import FOUND, RECIPE, differences, read_recipe, toml
from blip2cap.train.write_errors import write_errors

_LOCK = ".lock"
_FREE = frozenset({"device", "num-workers", "log-every", "checkpoint-every", "num-samples", "report-to"})
"""Options that may change when a training is resumed: its result does not depend on them."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that a training may write."""

    path: Path

    @property
    def recipe(self) -> Path:
        """File of the recipe."""
        return self.path / RECIPE

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def metrics(self) -> RowFile:
        """Rows of losses."""
        return RowFile(self.path / "metrics.jsonl")

    @property
    def samples(self) -> RowFile:
        """Rows of captions or answers."""
        return RowFile(self.path / "samples.jsonl")

    @property
    def is_finished(self) -> bool:
        """True if the finished model is there."""
        return any((self.path / name).is_file() for name in CONFIGS)

    def check(self, recipe: Mapping[str, Any]) -> None:
        """Raise OutputRefusedError if the folder has other files, or a training with another recipe.

        `recipe` may lack the section of what was found. Raises OutputError for a folder that cannot be made.
        """
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                raise OutputRefusedError(f"{self.path}: a file. Expected a folder for the training; use another --out.")
            if not self.path.absolute().parent.is_dir():
                raise OutputError(
                    f"{self.path} cannot be created: its parent folder does not exist. Create that first."
                )
            return
        if not self.recipe.is_file():
            other = {path.name for path in self.path.iterdir()} - {_LOCK, f"{RECIPE}.tmp"}
            if other:
                raise OutputRefusedError(
                    f"{self.path}: a folder with other files, such as {min(other)}, and no {RECIPE}. Use a new or "
                    "empty folder as --out."
                )
            return
        try:
            old = read_recipe(self.recipe)
        except UsageError as error:
            raise OutputRefusedError(f"{error.message} Restore it, or use another --out.") from error
        if FOUND not in recipe:
            old.pop(FOUND, None)
        changed = differences(old, recipe, without=_FREE)
        if changed:
            raise OutputRefusedError(
                f"{self.path} is a training with another recipe: {'; '.join(changed)}. Resume it with the same "
                "options, or use another --out."
            )

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Check the whole recipe and write it, unless it is there. Raises OutputError."""
        self.check(recipe)
        if not self.recipe.is_file():
            with write_errors(self.recipe):
                write_whole(OS_FILES, self.recipe, toml(recipe).encode())

    @contextmanager
    def locked(self, files: Files = OS_FILES) -> Iterator[None]:
        """Make the folder, unless it exists, and hold its lock.

        Raises OutputLockedError while another process has it, OutputError if the folder cannot be written.
        """
        try:
            if not self.path.is_dir():
                self.path.mkdir()
                sync_folder(files, self.path.absolute().parent)
            file = files.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}. Use another --out.") from error
        busy = f"{self.path}: another process trains in it. Wait for it, or use another --out."
        with holding_lock(files, file, self.path, busy=busy):
            yield
