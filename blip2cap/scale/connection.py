"""Connects this process to a Ray cluster, and turns what goes wrong into our errors. The only place that starts Ray."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from blip2cap.errors import ClusterError, UsageError
from blip2cap.scale.options import AUTO, CLIENT, LOCAL

_LOCAL_STORE_BYTES = 100 << 20
"""Memory for objects of a local cluster. Ray's own default is a third of the machine; nothing large travels here."""
_PROBE_S = 5.0
"""Time limit for reaching an address. Ray itself tries for a minute or more."""
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the new behaviour, without Ray's warning about the old one
}
_LOCAL_VARIABLES = {
    "RAY_gcs_server_request_timeout_seconds": "5",  # else its helpers end 60 s after a driver that was killed
    "RAY_prestart_worker_first_driver": "0",  # else the driver waits for as many processes as there are cores
}
"""For a local cluster."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def import_ray() -> ModuleType:
    """Import Ray. Raises UsageError if it is not installed."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(f"--ray: Ray cannot be imported ({error}). Run: pip install 'blip2cap[ray]'.") from error


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Yield Ray, connected to a cluster; at the end disconnect, and end a local cluster.

    Raises UsageError for an address where no cluster answers, and ClusterError for one that cannot be used, or that is
    lost later.
    """
    ray = import_ray()
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        for name, value in _LOCAL_VARIABLES.items():
            os.environ.setdefault(name, value)
        settings |= {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
    elif address != AUTO:
        _probe(address)
    try:
        with _own_signals():
            try:
                ray.init(address=address, **settings)
            except Exception as error:
                raise _as_ours(address, error) from error
        _silence()
        yield ray
    except SystemError as error:
        # What a signal handler raises comes out of Ray's C code like this.
        if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise
    except BrokenPipeError:
        raise  # of our own stdout or stderr
    except (ray.exceptions.RayError, ConnectionError) as error:
        said = " ".join(str(error).split())
        raise ClusterError(
            f"--ray {address}: lost the cluster: {type(error).__name__}: {said} Finished parts are safe: run the same "
            "command again."
        ) from error
    finally:
        with _own_signals():
            ray.shutdown()


def _probe(address: str) -> None:
    """Raise UsageError if nothing listens at an address."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_S):
            pass
    except (OSError, OverflowError) as error:
        number = "10001 of the head node, unless it was started with --ray-client-server-port"
        raise UsageError(
            f"--ray {address}: nothing answers there ({error}). Check the address and the firewall; the port is "
            f"{number if address.startswith(CLIENT) else '6379 of the head node, unless it was started with --port'}."
        ) from error


def _as_ours(address: str, error: Exception) -> UsageError | ClusterError:
    said = " ".join(str(error).split())
    if "ersion mismatch" in said or ("ersions" in said and "match" in said):
        return ClusterError(
            f"--ray {address}: the cluster has another version of Ray or Python than this process: {said} Install the "
            "same versions of ray, python and blip2cap on all machines."
        )
    if address == AUTO and isinstance(error, ConnectionError):
        return UsageError(
            "--ray auto: no Ray cluster runs on this machine. Start one with `ray start --head`, use --ray local, or "
            "give the address of a cluster."
        )
    if "oken" in said and "uth" in said:
        return ClusterError(
            f"--ray {address}: the cluster refuses this process: {said} Give it the token of the cluster, which "
            "`ray get-auth-token` prints there: https://docs.ray.io/en/latest/ray-security/token-auth.html"
        )
    own = (
        ""
        if address.startswith(CLIENT) or address in (LOCAL, AUTO)
        else (" HOST:PORT works on machines of the cluster only; from elsewhere, use ray://HOST:10001.")
    )
    return ClusterError(f"--ray {address}: Ray cannot connect: {type(error).__name__}: {said}{own}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers: Ray sets its own for SIGTERM, which ends the process with exit code 15."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ended_by = 0
    try:
        yield
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        ended_by = signal.SIGTERM
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
    if ended_by:
        os.kill(os.getpid(), ended_by)


def _silence() -> None:
    """Keep Ray from printing what happens to its processes, to stdout: our own messages say it."""
    worker = sys.modules.get("ray._private.worker")
    with suppress(AttributeError):
        if callable(worker.print_to_stdstream):  # type: ignore[union-attr]
            worker.print_to_stdstream = lambda *given, **named: None  # type: ignore[union-attr]
