"""Options of the worker processes of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from blip2cap.errors import UsageError
from blip2cap.flags import flag


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """Processes that decode and run the model."""

    PANEL: ClassVar = "Speed"

    workers: str = flag(
        "auto",
        "--workers N",
        "Number of processes, each with its own model. auto: one for each GPU; on a CPU, one for each core if the "
        "model is small and images are many, else 1.",
    )
    devices: str | None = flag(
        None,
        "--devices LIST",
        "GPUs to use, one process each, by number among those that torch sees: 0,2. All of them if left out.",
    )

    def __post_init__(self) -> None:
        if self.workers != "auto" and not re.fullmatch("[1-9][0-9]{0,3}", self.workers):
            raise UsageError(f"--workers {self.workers}: must be auto, or a number from 1.")
        if self.devices is None:
            return
        if not re.fullmatch("[0-9]+(,[0-9]+)*", self.devices) or len({*self.gpus}) != len(self.gpus):
            raise UsageError(f"--devices {self.devices}: must be different numbers of GPUs, like 0,2.")
        if self.workers not in ("auto", str(len(self.gpus))):
            raise UsageError(
                f"--devices {self.devices} and --workers {self.workers} exclude each other: there is one process for "
                "each GPU. Leave --workers out."
            )

    @property
    def gpus(self) -> tuple[int, ...]:
        """Numbers of the GPUs that were given; () if none were."""
        return () if self.devices is None else tuple(map(int, self.devices.split(",")))

    @property
    def num_workers(self) -> int | None:
        """Number of processes; None for auto."""
        return None if self.workers == "auto" else int(self.workers)
