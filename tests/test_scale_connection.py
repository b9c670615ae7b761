"""Connecting to a cluster and losing it, with an imitated Ray."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from blip2cap.errors import Blip2CapError, ClusterError, UsageError
from blip2cap.scale.connection import _as_ours, _own_signals, connected
from tests.imitated_ray import LostCallError, imitated_pool, imitated_ray


@pytest.mark.parametrize(
    ("address", "error", "kind", "message"),
    [
        (
            "auto",
            ConnectionError("Could not find any running Ray instance."),
            UsageError,
            "no Ray cluster runs on this",
        ),
        (
            "10.0.0.1:6379",
            RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.0.0"),
            ClusterError,
            "has another version of Ray or Python than this process: Version mismatch: .* Ray: 2.0.0 Install the same",
        ),
        (
            "ray://10.0.0.1:10001",
            RuntimeError("Python minor versions differ, and must match"),
            ClusterError,
            "another version",
        ),
        ("10.0.0.1:6379", RuntimeError("Authentication token is missing"), ClusterError, "refuses this process"),
        (
            "10.0.0.1:6379",
            RuntimeError("no raylet"),
            ClusterError,
            r"RuntimeError: no raylet HOST:PORT works on machines",
        ),
        ("local", RuntimeError("no raylet"), ClusterError, r"Ray cannot connect: RuntimeError: no raylet$"),
    ],
)
def test_errors_of_ray_become_ours(address: str, error: Exception, kind: type[Blip2CapError], message: str) -> None:
    ours = _as_ours(address, error)
    assert type(ours) is kind
    with pytest.raises(kind, match=message):
        raise ours


def test_a_connection_keeps_our_signal_handlers_and_ends_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:

    def handle(number: int, frame: Any) -> None:
        heard.append(number)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, handle)
    calls: list[Any] = []

    def init(**settings: Any) -> None:
        calls.append(settings)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    ray: Any = SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    try:
        with connected("local"):
            assert signal.getsignal(signal.SIGTERM) is handle
        with _own_signals():
            raise SystemExit(signal.SIGTERM)  # as Ray does for a signal while it starts
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls[0]["log_to_driver"] is False
    assert calls[0]["include_dashboard"] is False
    assert calls[-1] == "shutdown"


@pytest.mark.parametrize("error", [LostCallError("rpc\nfailed"), ConnectionError("rpc failed")])
def test_a_cluster_that_is_lost_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def lose(handle: Any) -> None:
        raise error

    ray = imitated_ray(8)
    ray.init, ray.shutdown, ray.kill = lambda **settings: None, lambda: None, lose
    pool = imitated_pool(monkeypatch, ray, 1)
    pool.start()
    expected = r"ray local: lost the cluster: \w+: rpc failed Finished parts are safe: run the same command again"
    with pytest.raises(ClusterError, match=expected), connected("local"):
        try:
            raise error
        finally:
            pool.close()


def test_a_pipe_that_was_closed_is_no_lost_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = imitated_ray(8)
    ray.init, ray.shutdown = lambda **settings: None, lambda: None
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(BrokenPipeError), connected("local"):
        raise BrokenPipeError
