"""Imitations of Ray, without processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from blip2cap.scale.pool import RayPool


class LostCallError(Exception):
    """Stands for the base class of the errors of Ray."""


class TooLateError(LostCallError):
    """Stands for a call of Ray that did not return in time."""


class Call:
    """A method of a remote class, or the class itself: returns what is called."""

    def remote(self, *given: Any) -> Any:
        return SimpleNamespace(describe_node=Call(), choose_dtype=Call())


def imitated_ray(*cpus: float, get: Callable[..., Any] = lambda ref, timeout: None) -> Any:
    """Return a cluster whose nodes have these CPUs, all free."""

    def get_and_note(ref: Any, timeout: float) -> Any:
        ray.timeouts.append(timeout)
        return get(ref, timeout)

    ray: Any = SimpleNamespace(
        timeouts=[],
        killed=[],
        get=get_and_note,
        kill=lambda handle: ray.killed.append(handle),
        remote=lambda **options: lambda worker: Call(),
        method=lambda concurrency_group: lambda method: method,
        nodes=lambda: [{"Alive": True, "NodeID": "n", "Resources": {"CPU": num}} for num in cpus],
        cluster_resources=lambda: {"CPU": sum(cpus)},
        available_resources=lambda: {"CPU": sum(cpus)},
        exceptions=SimpleNamespace(RayError=LostCallError, GetTimeoutError=TooLateError),
    )
    return ray


def imitated_pool(monkeypatch: pytest.MonkeyPatch, ray: Any, num_cpus: float) -> RayPool:
    monkeypatch.setitem(sys.modules, "ray", ray)
    return RayPool(ray, {"CPU": num_cpus}, grows=True, stall_s=7)


class Ray:
    """A cluster of one node, which computes nothing: calls return when the test says so."""

    def __init__(self) -> None:
        self.done: dict[Any, Any] = {}
        """Results of calls that have returned; an exception is raised."""
        self.calls: list[Any] = []
        self.killed: list[Any] = []
        self.exceptions = SimpleNamespace(RayError=LostCallError, RayTaskError=TooLateError)
        strategy = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node_id, soft: None)
        self.util = SimpleNamespace(scheduling_strategies=strategy)

    def remote(self, **options: Any) -> Any:
        return lambda what: SimpleNamespace(remote=lambda *given: self._call(what.__name__))

    def method(self, concurrency_group: str) -> Any:
        return lambda method: method

    def _call(self, name: str) -> Any:
        if name == "Actor":
            names = ("describe_node", "set_up", "make", "report", "stop")
            methods = {each: SimpleNamespace(remote=lambda *given, name=each: self._call(name)) for each in names}
            return SimpleNamespace(**methods)
        self.calls.append(ref := f"{name} {len(self.calls)}")
        return ref

    def ref(self, name: str) -> Any:
        return next(ref for ref in reversed(self.calls) if ref.startswith(name))

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref in self.done][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Any, timeout: float = 0.0) -> Any:
        if ref not in self.done:
            raise LostCallError("too late")
        if isinstance(self.done[ref], Exception):
            raise self.done[ref]
        return self.done[ref]

    def kill(self, handle: Any) -> None:
        self.killed.append(handle)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "n1", "Resources": {"CPU": 2.0}}]

    def put(self, value: Any) -> Any:
        return value
