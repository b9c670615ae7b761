"""The folder of a training belongs to one process at a time."""

import errno
import os

import pytest

from blip2cap.errors import OutputError, OutputLockedError
from blip2cap.train.run_folder import RunFolder
from tests.files import FastFiles


def test_another_process_is_refused(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked(), pytest.raises(OutputLockedError, match="another process trains in it"), second.locked():
        pytest.fail("two have the lock")
    with second.locked():
        pass


def test_a_file_system_without_locks_is_an_error_that_says_so(tmp_path):
    class WithoutLocks(FastFiles):
        def lock(self, file):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with pytest.raises(OutputError, match="cannot be locked"), RunFolder(tmp_path / "run").locked(WithoutLocks()):
        pytest.fail("there is no lock")
