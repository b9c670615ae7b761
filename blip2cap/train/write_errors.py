"""Failed writes of files, safetensors and torch as one error that says what to do."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from blip2cap.errors import OutputError

_NUMBER = re.compile(r"\(os error (\d+)\)")
"""Number of an error of the operating system in a message of safetensors."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise OutputError if the block cannot write `path`, or files in it."""
    try:
        yield
    except OSError as error:
        raise _failed(path, error.strerror or str(error)) from error
    except SafetensorError as error:
        number = _NUMBER.search(str(error))
        raise _failed(path, os.strerror(int(number[1])) if number else str(error)) from error
    except RuntimeError as error:
        if type(error) is not RuntimeError or not _is_of_torch_save(error):
            raise
        raise _failed(path, "torch could not write a whole file") from error


def _is_of_torch_save(error: RuntimeError) -> bool:
    """Its messages do not say the error of the operating system, and differ with the byte at which a file ends."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "torch.serialization" for frame in frames)


def _failed(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {reason}. Free disk space or repair the disk, then run the same command again: it "
        "continues at the last checkpoint, if there is one."
    )
