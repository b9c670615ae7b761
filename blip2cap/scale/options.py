"""Options of a run on a Ray cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag

LOCAL, AUTO, CLIENT = "local", "auto", "ray://"
_ADDRESS = re.compile(rf"{LOCAL}|{AUTO}|({CLIENT})?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{{1,5}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """The cluster that makes the parts of an output."""

    PANEL: ClassVar = "Cluster"

    address: str | None = flag(
        None,
        "--ray ADDRESS",
        "Make the parts of --out FOLDER/ or s3://BUCKET/FOLDER/ on a Ray cluster: local (on this machine, for this "
        "run), auto (the one running on this machine), HOST:PORT or ray://HOST:PORT.",
    )
    cpus: int | None = flag(
        None,
        "--ray-cpus N",
        "CPUs of each actor, which then uses no GPU. If left out, an actor has one GPU, or without GPUs in the "
        "cluster all CPUs of its smallest node.",
        least=1,
        hint="Leave it out for one GPU an actor.",
    )
    stall_s: int = flag(
        600,
        "--ray-timeout S",
        "Seconds without any progress after which the run ends with an error.",
        least=1,
        hint="Use 600 or more where models take long to load.",
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            raise UsageError(
                f"--ray {self.address}: must be local, auto, HOST:PORT like 10.0.0.1:6379, or ray://HOST:PORT like "
                "ray://10.0.0.1:10001."
            )
        if self.address is None and self.cpus is not None:
            raise UsageError(f"--ray-cpus {self.cpus} has no effect without --ray. Add --ray, or leave it out.")
