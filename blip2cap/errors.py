"""Every error that blip2cap raises for its users, in one tree.

    Blip2CapError                      exit code
    |-- UsageError                     2   a wrong option or combination of options
    |   `-- InputError                 2   an input that does not exist, or no image in it
    |-- ClusterError                   1   a Ray cluster without free resources, or whose processes die
    |-- ModelError                     4   the model cannot be found, trusted or loaded
    |   `-- ServerError                4   the server that has the model cannot be used, or fails again and again
    |-- OutputRefusedError             5   the output was made with other settings, or is damaged
    |   `-- OutputLockedError          5   another run is writing it
    |-- OutputError                    6   the output cannot be written
    |   `-- OutputGoneError            6   its folder does not exist (any more)
    |-- UnreachableError               6   the server of the images cannot be reached any more
    |-- WorkerError                    1   the processes that do the work die again and again
    `-- ImageError                     -   one bad image: becomes a failed row, never ends a run

Each message says what was given, what was expected and what to do next. It names options by their flags; Python shows
it with their names there: `--batch-size` is `batch_size`.
"""

from __future__ import annotations

import re
from typing import ClassVar

SOME_FAILED = 3
"""Exit code of a command that is complete but for some images."""
_FLAG = re.compile(r"(?<![^\s`(])--([a-z][a-z0-9-]*[a-z0-9])")
OTHER_NAMES = {
    "decode": "mode",
    "threads": "num_threads",
    "timeout": "timeout_s",
    "request-timeout": "request_timeout_s",
}
"""Names in Python of flags that are called otherwise there."""


class Blip2CapError(Exception):
    """Base of all errors of this package."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        """The message, as the command line prints it."""

    def __str__(self) -> str:
        return _FLAG.sub(lambda found: OTHER_NAMES.get(found[1]) or found[1].replace("-", "_"), self.message)


class UsageError(Blip2CapError):
    """A wrong option, or options that exclude each other."""

    exit_code = 2


class InputError(UsageError):
    """An input that does not exist, or inputs without any image."""


class ClusterError(Blip2CapError):
    """A Ray cluster that has no free resources, whose processes die, or on which nothing moves."""


class ModelError(Blip2CapError):
    """A model that cannot be found, trusted or loaded."""

    exit_code = 4


class ServerError(ModelError):
    """A server that has a model and cannot be reached, refuses requests, or fails again and again."""


class OutputRefusedError(Blip2CapError):
    """An output that must not be written: made with other settings, locked or damaged."""

    exit_code = 5


class OutputLockedError(OutputRefusedError):
    """An output that another run is writing."""


class OutputError(Blip2CapError):
    """An output that cannot be written: disk full, I/O error."""

    exit_code = 6


class OutputGoneError(OutputError):
    """An output whose folder does not exist, or was removed."""


class UnreachableError(Blip2CapError):
    """A web server or bucket that gives no more images: the network or the server is down."""

    exit_code = 6


class WorkerError(Blip2CapError):
    """The processes that do the work of a run die again and again."""


class ImageError(Blip2CapError):
    """One image that cannot be captioned; `code` is one of `records.FAILURES`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.image = ""
        """Name of the image in Python: its path, or `images[3]`; "" in a run, whose rows name it."""

    def __str__(self) -> str:
        return f"{self.image}: {super().__str__()}" if self.image else super().__str__()
