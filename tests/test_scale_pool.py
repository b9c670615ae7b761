"""Actors of an imitated Ray: their resources, their calls, and reports about their deaths."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import blip2cap
from blip2cap.errors import ClusterError
from blip2cap.scale.death import cause_of, last_lines
from blip2cap.scale.events import Assignment, Died, Placed, Ready
from blip2cap.scale.pool import RayPool
from tests.imitated_ray import LostCallError, Ray, TooLateError, imitated_pool, imitated_ray


def test_an_actor_that_fits_only_into_two_nodes_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imitated_pool(monkeypatch, imitated_ray(6, 8), 8).check(lambda line: None)
    with pytest.raises(ClusterError, match=r"no node .* large enough for an actor: 2 nodes .* 12 CPU .* needs 8 CPU"):
        imitated_pool(monkeypatch, imitated_ray(6, 6), 8).check(lambda line: None)


def test_an_actor_that_never_starts_ends_the_choice_of_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    anything: Any = SimpleNamespace()

    def get(ref: Any, timeout: float) -> Any:
        raise TooLateError

    ray = imitated_ray(8, get=get)
    pool = imitated_pool(monkeypatch, ray, 8)
    with pytest.raises(ClusterError, match=r"moved for 7 s, .* the first actor has not started\. 1 node with .* 8 CPU"):
        pool.choose_dtype(anything, anything)
    assert ray.timeouts == [7]


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: make_actor_class.<locals>.Actor
\tactor_id: a10ca895ddbc3c6a2276e1a501000000
\tpid: 11121
\tip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was ..."""


def test_a_cause_of_death_has_no_ids_and_no_guesses() -> None:
    assert cause_of(DIED) == (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file."
    )
    assert cause_of("It was killed.") == "It was killed."


def test_last_lines_are_those_that_explain() -> None:
    assert last_lines(":job_id:01000000\n:actor_name:Worker\n\nKilled\n") == ["Killed"]
    lines = [f"line {number}" for number in range(100)]
    assert last_lines("\n".join(lines)) == lines[-8:]
    crash = ["Fatal Python error: Segmentation fault", "Stack (most recent call first):", *lines]
    assert last_lines("\n".join(["*** SIGSEGV received", *lines, *crash]))[2:5] == [*crash[:2], "line 0"]


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> tuple[Ray, RayPool]:
    """A pool with one actor, which makes a part."""
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    pool = RayPool(ray, {"CPU": 1.0}, grows=False, stall_s=7)  # type: ignore[arg-type]
    number = pool.start()
    facts = {"node_id": "n1", "node": "10.0.0.2", "stderr": "/tmp/e", "version": blip2cap.__version__}
    ray.done[ray.ref("describe_node")] = facts
    assert [type(event) for event in pool.wait(0)] == [Placed]
    ray.done[ray.ref("set_up")] = "tiny: float32 on cpu"
    assert [type(event) for event in pool.wait(0)] == [Ready]
    pool.assign(number, Assignment(index=0))
    return ray, pool


def test_a_death_is_reported_with_its_stderr_once_that_is_read(making: tuple[Ray, RayPool]) -> None:
    ray, pool = making
    ray.done[ray.ref("make")] = LostCallError(DIED)
    assert pool.wait(0) == []
    assert pool.wait(0) == []
    ray.done[ray.ref("read")] = "Killed by a test\n"
    (death,) = pool.wait(0)
    assert isinstance(death, Died)
    assert death.report.endswith("Last lines of its stderr: Killed by a test")
    assert len(ray.killed) == 1
    assert pool.wait(0) == []


def test_a_death_whose_stderr_cannot_be_read_is_reported_without(
    making: tuple[Ray, RayPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip2cap.scale.death._PATIENCE_S", -1.0)
    ray, pool = making
    ray.done[ray.ref("make")] = LostCallError(DIED)
    (death,) = pool.wait(0)
    assert isinstance(death, Died)
    assert death.report.startswith("On node 10.0.0.2: ")
    assert "stderr" not in death.report


def test_all_calls_of_an_actor_that_died_are_one_death(making: tuple[Ray, RayPool]) -> None:
    ray, pool = making
    pool.stop(0)
    ray.done |= {ray.ref("make"): LostCallError(DIED), ray.ref("stop"): LostCallError(DIED)}
    ray.nodes = lambda: []  # type: ignore[method-assign]
    (death,) = pool.wait(0)
    assert isinstance(death, Died)
    assert death.node_lost
