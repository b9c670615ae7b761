"""Files that appear under their name when they are complete, and not before."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import BinaryIO


class WholeFile:
    """A file under a temporary name in the folder of `path`, until `commit`. Raises OSError.

    A reader of the folder sees the old file or the new one: an empty caption file would read as a caption.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Short, as `path` may have the longest name there is; without the suffix, which readers of folders go by.
        self._temporary = os.path.join(os.path.dirname(path), f".blip2cap-{secrets.token_hex(8)}.tmp")
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        try:
            descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error  # nobody knows the temporary name
        self.file: BinaryIO = open(descriptor, "w+b")  # noqa: SIM115  closed by commit or discard

    def rename(self) -> None:
        """Give the file its name once its content is safe; a power cut may take the name back."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self._temporary, self.path)

    def commit(self) -> None:
        """Give the file its name, and return when both are safe."""
        self.rename()
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Remove what there is, unless it has been committed."""
        with contextlib.suppress(OSError):  # a full disk: what is buffered cannot be written at closing either
            self.file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)


def write_whole(path: str, content: bytes) -> None:
    """Write a file whole or not at all; one whose name a power cut takes back is written again. Raises OSError."""
    whole = WholeFile(path)
    try:
        whole.file.write(content)
        whole.rename()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        whole.discard()
