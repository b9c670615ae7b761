"""Copies between host and device that make neither wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def to_device(values: Any, device: torch.device) -> torch.Tensor:
    """Return a tensor of integers on a device; the copy takes its turn after the work that the device was given."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.long, device=device)
    # torch reuses the pinned memory only when the device has read it.
    return torch.tensor(values, dtype=torch.long, pin_memory=True).to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor on its way to the host: it begins at once, and `tolist` waits for its end."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values.clone()
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def numpy(self) -> np.ndarray[Any, Any]:
        """Wait for the copy, and return the values as an array."""
        if self._event is not None:
            self._event.synchronize()
        values: np.ndarray[Any, Any] = self._values.numpy()
        return values

    def tolist(self) -> list[Any]:
        """Wait for the copy, and return the values."""
        if self._event is not None:
            self._event.synchronize()
        values: list[Any] = self._values.tolist()
        return values
