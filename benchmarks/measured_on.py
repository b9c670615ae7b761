"""Date, machine and versions of a measurement, without torch."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from blip2cap import __version__


def measured_on(library: ModuleType) -> dict[str, Any]:
    """Return what was measured on, and with what; `library` is the one that matters besides blip2cap."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {"blip2cap": __version__, "python": platform.python_version()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": cpus[0] if cpus else platform.machine(),
            "num_cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
        },
        "versions": versions | {library.__name__: library.__version__},
    }
