"""Checkpoints of a training in a folder: written whole or not at all; the last and the best are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blip2cap.errors import OutputError
from blip2cap.outputs.files import OS_FILES, Files, sync_folder, sync_library_file
from blip2cap.train.write_errors import write_errors

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints in `folder`, one folder for each."""

    folder: Path
    files: Files = OS_FILES

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:06}"

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def temporary(self, step: int) -> Path:
        """Return the folder that a checkpoint is written to before it is complete."""
        return self.folder / f".step-{step:06}.tmp"

    @contextmanager
    def writing(self, step: int, *, writer: bool, wait: Callable[[], None]) -> Iterator[Path]:
        """Yield the folder for the files of a checkpoint; it gets its name when all processes have left the block.

        One process is the `writer`; `wait` returns in every process when all have called it. Raises OutputError, and
        leaves the checkpoints that were there.
        """
        temporary = self.temporary(step)
        try:
            with write_errors(self.path(step)):
                if writer:
                    shutil.rmtree(temporary, ignore_errors=True)  # a killed run may have left it
                    temporary.mkdir(parents=True)
                wait()
                yield temporary
                wait()
                if writer:
                    self._name(temporary, step)
        except OutputError:
            if writer:
                shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, it takes space that others need
            raise
        wait()

    def _name(self, temporary: Path, step: int) -> None:
        """Give a checkpoint its name, once all its files are on the disk."""
        for path in temporary.iterdir():
            sync_library_file(self.files, path)
        sync_folder(self.files, temporary)
        shutil.rmtree(self.path(step), ignore_errors=True)
        self.files.replace(temporary, self.path(step))
        sync_folder(self.files, self.folder)

    def keep(self, steps: set[int]) -> None:
        """Remove all checkpoints but those of `steps`, and what killed runs have left. Raises OutputError."""
        for step in self.steps():
            if step not in steps:
                # Renamed first: a kill in the middle would leave half a checkpoint under its name.
                with write_errors(self.path(step)):
                    self.files.replace(self.path(step), self.temporary(step))
        for path in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
