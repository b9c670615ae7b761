"""A real Ray cluster of several nodes on this machine, and commands that use it, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ray_worker import settings

ROOT = Path(__file__).parent.parent
_MOST_S = 600
"""Time limit of a command: these tests start hundreds of processes, on a machine that may be busy."""
COMMAND = ("--model", "tiny", "--dtype", "float32", "--batch-size", "1", "--threads", "1")


def environment(folder: Path, **worker: Any) -> dict[str, str]:
    """Return an environment for drivers and nodes, whose workers have stand-ins; `folder` has a short name."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("BLIP2CAP_", "RAY_"))},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'ray_site'}",
        "RAY_TEST_WORKER": settings(**worker),
        "RAY_TMPDIR": str(folder),
        "HOME": str(folder),  # Ray keeps a token of its clusters there
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 4}',
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder whose name is short enough for the sockets of Ray."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """Nodes of a cluster: a head without CPUs, and others that may go."""

    def __init__(self, folder: Path, **worker: Any) -> None:
        self.env = environment(folder, **worker)
        del self.env["RAY_OVERRIDE_RESOURCES"]
        with self._environment():
            from ray.cluster_utils import Cluster

            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        self.address = str(self.cluster.address)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray, in this process
            for name, value in self.env.items():
                patch.setenv(name, value)
            yield

    def add(self, num_cpus: int = 2) -> None:
        """Add a node."""
        with self._environment():
            self.nodes.append(self.cluster.add_node(num_cpus=num_cpus))

    def remove(self) -> None:
        """Kill all processes of the oldest node."""
        with self._environment():
            self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def actors(self) -> list[psutil.Process]:
        """Return the processes of all actors."""
        found = []
        for node in self.nodes:
            for info in node.all_processes.get("raylet", ()):
                found += actors_below(info.process.pid)
        return found

    def close(self) -> None:
        """End all processes."""
        with self._environment():
            self.cluster.shutdown()


def actors_below(pid: int) -> list[psutil.Process]:
    """Return the actors among the descendants of a process."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] == ["ray::Actor"] or process.name().startswith("ray::Actor"):
                    found.append(process)
    return found


def start(*args: str | Path, cwd: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    program = [sys.executable, "-m", "blip2cap", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(program, cwd=cwd, env=env, stdout=pipe, stderr=pipe, process_group=0)


def run(*args: str | Path, cwd: Path, env: dict[str, str]) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed to stdout and stderr."""
    with start(*args, cwd=cwd, env=env) as process:
        try:
            stdout, stderr = process.communicate(timeout=_MOST_S)
        except BaseException:
            process.kill()
            raise
    return process.returncode, stdout.decode(), stderr.decode()


def wait_for(condition: Any, seconds: float = 120) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition does not hold"
        time.sleep(0.05)
