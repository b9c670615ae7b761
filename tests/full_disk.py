"""A disk that is full, as far as a process can tell: files beyond a size cannot be written."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Limit the size of the files that this process writes, and those that it starts.

    Modules are not compiled to files meanwhile: Python 3.11 would leave a file that is cut off, and fail to import it
    ever after.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mock.patch.object(sys, "dont_write_bytecode", True), mock.patch.dict(os.environ, PYTHONDONTWRITEBYTECODE="1"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
