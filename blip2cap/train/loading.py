"""Batches by step number, prepared in advance by worker processes."""

from __future__ import annotations

from torch.utils.data import DataLoader, Dataset

from blip2cap.train.recipe import BatchT


def load_batches(data: Dataset[BatchT], steps: range, num_workers: int) -> DataLoader[BatchT]:
    """Load the batches of `steps` in order; each is a function of its step alone, so a resumed run gets the same."""
    return DataLoader(
        data,
        batch_size=None,
        sampler=list(steps),
        num_workers=num_workers,
        prefetch_factor=8 if num_workers else None,
    )
