"""Imported by every Python that has this folder on PYTHONPATH: worker processes of Ray get their stand-ins here."""

import os
import sys

if any(argument.endswith("default_worker.py") for argument in sys.orig_argv) and "RAY_TEST_WORKER" in os.environ:
    from tests.ray_worker import prepare

    prepare(os.environ["RAY_TEST_WORKER"])
