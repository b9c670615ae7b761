"""Actors of a Ray cluster: starts them, calls them, and says what has happened to them.

An actor goes through these calls: `describe_node` (its process runs), `set_up` (the model is loaded), then `make` for
each part, with `report` from time to time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import blip2cap
from blip2cap.errors import Blip2CapError, ClusterError
from blip2cap.jobs.job import Job
from blip2cap.models.base import Checkpoint
from blip2cap.scale.actor import make_actor_class
from blip2cap.scale.death import Death, find_death, finish_report
from blip2cap.scale.events import Assignment, Died, Event, Failed, Made, Placed, Ready, Refused, Reported, Work

_REPORT_EVERY_S = 0.5
_REPORTS_PER_S = 100
"""Number of reports per second of all actors, at most."""
_FREE_S = 30.0
"""Longest wait for resources that a run has held until just now."""


@dataclass(kw_only=True, slots=True)
class _Actor:
    handle: Any
    node_id: str = ""
    node: str = "?"
    """Address of its node."""
    stderr: str = ""
    """File on its node that its stderr goes to."""
    calls: dict[str, Any] = field(default_factory=dict)
    """Calls that have not returned, by method."""
    reported: float = 0.0
    """Time of the last call of `report`."""
    death: Death | None = None
    """Its end, while the last lines of its stderr are being read."""


class RayPool:
    """The actors of one run."""

    def __init__(self, ray: ModuleType, needs: Mapping[str, float], *, grows: bool, stall_s: float) -> None:
        self.ray, self.needs, self.grows, self.stall_s = ray, dict(needs), grows, stall_s
        self._work: Any = None
        """Reference to the job of all actors, which is sent to each node once."""
        options = {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "max_restarts": 0}
        self._actor_class = ray.remote(concurrency_groups={"aside": 1}, **options)(make_actor_class())
        self._actors: dict[int, _Actor] = {}
        self._num_started = 0
        self._early: int | None = None
        """An actor that was started to choose a dtype, for the first `start`."""

    def choose_dtype(self, job: Job, checkpoint: Checkpoint) -> str:
        """Return the dtype that `auto` stands for on a node of the cluster. Raises Blip2CapError."""
        number = self._start()
        actor = self._actors[number]
        try:
            self._described(actor, self.ray.get(actor.calls.pop("describe_node"), timeout=self.stall_s))
            said = self.ray.get(actor.handle.choose_dtype.remote(job, checkpoint), timeout=self.stall_s)
        except self.ray.exceptions.GetTimeoutError as error:
            raise ClusterError(
                f"nothing has moved for {self.stall_s:g} s, the limit of --ray-timeout: the first actor has "
                f"{'started, but has not answered' if actor.node_id else 'not started'}. {self.describe()} Fix the "
                "cause, or raise --ray-timeout, and run the same command again."
            ) from error
        except self.ray.exceptions.RayError as error:
            report = finish_report(self.ray, self._death(actor, error))
            raise ClusterError(f"an actor could not start. {report}") from error
        if isinstance(said, Blip2CapError):
            raise said
        self._early = number
        return str(said)

    def set_work(self, work: Work) -> None:
        """Set the job of all actors, before the first `start`."""
        self._work = self.ray.put(work)

    def close(self) -> None:
        """End all actors; those of a cluster that is lost end with it."""
        with suppress(self.ray.exceptions.RayError, ConnectionError):
            for number in list(self._actors):
                self.kill(number)

    def num_free(self) -> int:
        """Return how many actors the free resources are enough for."""
        free = self.ray.available_resources()
        fits = (math.floor(free.get(name, 0.0) / need + 1e-6) for name, need in self.needs.items())
        return int(min(fits)) + (self._early is not None)

    def _fits(self, resources: Mapping[str, float]) -> bool:
        return all(resources.get(name, 0.0) >= need for name, need in self.needs.items())

    def check(self, say: Callable[[str], None]) -> None:
        """Raise ClusterError if no node is large enough for an actor, or if none is free now and for half a minute."""
        until, said = time.monotonic() + _FREE_S, False
        if not any(node["Alive"] and self._fits(node["Resources"]) for node in self.ray.nodes()):
            raise ClusterError(
                f"--ray: no node of the cluster is large enough for an actor: {self.describe()} Add such nodes, or ask "
                "for less with --ray-cpus N."
            )
        while self.num_free() < 1:
            if time.monotonic() > until:
                raise ClusterError(
                    f"--ray: the cluster has no free resources for an actor: {self.describe()} Wait for other work to "
                    "end, add nodes, or ask for less with --ray-cpus N."
                )
            if not said:
                say(f"waiting up to {_FREE_S:g} s for free resources: {self.describe()}")
                said = True
            time.sleep(0.5)

    def describe(self) -> str:
        """Return what the cluster has, what is free, and what an actor needs."""
        total, free = self.ray.cluster_resources(), self.ray.available_resources()
        has = ", ".join(
            f"{total.get(name, 0.0):g} {name} ({total.get(name, 0.0) - free.get(name, 0.0):g} in use)"
            for name in ("GPU", "CPU")
        )
        needs = " and ".join(f"{need:g} {name}" for name, need in self.needs.items())
        num_nodes = sum(bool(node["Alive"]) for node in self.ray.nodes())
        return f"{num_nodes} node{'s' if num_nodes != 1 else ''} with {has}; an actor needs {needs}."

    def start(self) -> int:
        """Ask for one more actor; return its number."""
        number, self._early = self._early, None
        if number is None:
            return self._start()
        actor = self._actors[number]
        actor.calls["describe_node"] = actor.handle.describe_node.remote()
        return number

    def _start(self) -> int:
        number = self._num_started
        self._num_started += 1
        actor = _Actor(handle=self._actor_class.remote())
        actor.calls["describe_node"] = actor.handle.describe_node.remote()
        self._actors[number] = actor
        return number

    def assign(self, actor: int, assignment: Assignment) -> None:
        """Let a ready actor make a part."""
        one = self._actors[actor]
        one.calls["make"], one.reported = one.handle.make.remote(assignment), time.monotonic()

    def stop(self, actor: int) -> None:
        """Tell an actor to stop after its current batch."""
        self._actors[actor].calls["stop"] = self._actors[actor].handle.stop.remote()

    def kill(self, actor: int) -> None:
        """End the process of an actor."""
        one = self._actors.pop(actor, None)
        if one is not None:
            self.ray.kill(one.handle)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what has happened since the last call; wait for the first event, at most this long."""
        self._ask_for_reports()
        events = self._deaths()
        calls = {ref: (number, what) for number, one in self._actors.items() for what, ref in one.calls.items()}
        if events:
            timeout_s = 0
        if not calls:
            time.sleep(timeout_s)
            return events
        done, rest = self.ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        if rest:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        # A last report comes before the end of its part, which sets the counts back.
        for ref in sorted(done, key=lambda ref: calls[ref][1] == "make"):
            number, what = calls[ref]
            if number in self._actors:
                events += self._event(number, what, ref)
        return events

    def _ask_for_reports(self) -> None:
        now = time.monotonic()
        every_s = max(_REPORT_EVERY_S, len(self._actors) / _REPORTS_PER_S)
        for one in self._actors.values():
            if "make" in one.calls and "report" not in one.calls and now - one.reported >= every_s:
                one.calls["report"], one.reported = one.handle.report.remote(), now

    def _event(self, number: int, what: str, ref: Any) -> list[Event]:
        actor = self._actors[number]
        if actor.calls.pop(what, None) is None:
            return []  # another call has shown that it is dead
        if actor.death is not None:
            return self._deaths()
        try:
            said = self.ray.get(ref)
            if isinstance(said, Blip2CapError):
                if what == "make":
                    return [Failed(actor=number, node=actor.node, error=said)]
                return [Refused(actor=number, error=type(said)(f"node {actor.node} {said.message}"))]
            return self._answer(number, what, said)
        except Blip2CapError as error:
            return [Refused(actor=number, error=error)]
        except self.ray.exceptions.RayError as error:
            actor.death = self._death(actor, error)
            # Calls of a dead actor fail, too; reading its stderr must not keep the others waiting.
            actor.calls = {} if actor.death.reading is None else {"stderr": actor.death.reading}
            return self._deaths()

    def _deaths(self) -> list[Event]:
        """Return the deaths whose reports are complete, or take too long."""
        events: list[Event] = []
        for number, actor in list(self._actors.items()):
            death, now = actor.death, time.monotonic()
            if death is not None and ("stderr" not in actor.calls or now > death.until):
                self.kill(number)
                events.append(Died(actor=number, report=finish_report(self.ray, death), node_lost=death.node_lost))
        return events

    def _answer(self, number: int, what: str, said: Any) -> list[Event]:
        actor = self._actors[number]
        match what:
            case "describe_node":
                self._described(actor, said)
                actor.calls["set_up"] = actor.handle.set_up.remote(self._work, self._num_threads(actor))
                return [Placed(actor=number)]
            case "set_up":
                return [Ready(actor=number, line=f"{said}, node {actor.node}")]
            case "report":
                return [Reported(actor=number, progress=said)]
            case "make":
                return [Reported(actor=number, progress=said[1]), Made(actor=number, result=said[0])]
        return []

    def _described(self, actor: _Actor, facts: Mapping[str, str]) -> None:
        """Note where an actor runs. Raises ClusterError if blip2cap is missing there, or another version."""
        actor.node_id, actor.node, actor.stderr = facts["node_id"], facts["node"], facts["stderr"]
        if facts["version"] != blip2cap.__version__:
            found = f"has blip2cap {facts['version']}" if facts["version"] else f"has no blip2cap ({facts['error']})"
            raise ClusterError(
                f"node {actor.node} {found}, this process has {blip2cap.__version__}. Install the same version on all "
                f"nodes, for {facts['python']}: in their image, or with setup_commands."
            )

    def _num_threads(self, actor: _Actor) -> int:
        """Return how many threads an actor may decode with: its share of the cores of its node."""
        if "GPU" not in self.needs:
            return int(self.needs["CPU"])
        for node in self.ray.nodes():
            if node["NodeID"] == actor.node_id:
                cores, gpus = node["Resources"].get("CPU", 1.0), node["Resources"].get("GPU", 1.0)
                return max(1, int(cores / max(1.0, gpus)))
        return 1

    def _death(self, actor: _Actor, error: Exception) -> Death:
        return find_death(self.ray, error, node=actor.node, node_id=actor.node_id, stderr=actor.stderr)
