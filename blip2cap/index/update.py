"""Builds an index, and brings it up to date: only new and changed images are embedded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blip2cap.index.job import IndexJob, IndexSummary

if TYPE_CHECKING:
    from blip2cap.jobs.job import Listener
    from blip2cap.models.base import Model


def update_index(
    job: IndexJob,
    *,
    listener: Listener | None = None,
    stopped: Callable[[], bool] = lambda: False,
    model: Model | None = None,
) -> IndexSummary:
    """Bring an index up to date with its inputs, or build it.

    `model` is a loaded model that replaces the one that `job.model` names. Raises Blip2CapError: InputError without any
    image, OutputLockedError while another process updates the index, OutputRefusedError if it was made with another
    model or other settings, or is damaged, OutputError if it cannot be written.
    """
    raise NotImplementedError
