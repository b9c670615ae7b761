"""Runs on a real Ray cluster on this machine: kills, signals and errors. The logic alone is in test_scale_scheduler."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import crashing
from tests.buckets import s3_server
from tests.commands import draw_scenes, names_below
from tests.ray_cluster import COMMAND, Nodes, actors_below, environment, run, short_folder, start, wait_for
from tests.test_cli_parts import contents, in_work, names_in, rows_in

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
LOCAL = ("--ray", "local", "--ray-cpus", "1")


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes, whose model takes some time for an image."""
    with short_folder() as folder:
        nodes = Nodes(folder, stub={"encode_s": 0.1}, misbehave=True)
        nodes.add()
        nodes.add()
        yield nodes
        nodes.close()


def draw(folder: Path, count: int) -> Path:
    return draw_scenes(folder, count, size=(48, 36))


def caption(images: Path, out: str = "captions/", *flags: str) -> tuple[str, ...]:
    return ("caption", str(images), *COMMAND, "--part-size", "5", "-o", out, *flags)


def check_all(images: Path, out: Path) -> None:
    assert names_in(out) == names_below(images)
    assert in_work(out) == []


def test_a_run_on_a_local_cluster_makes_what_a_plain_run_makes(scenes: Path, here: Path, folder: Path) -> None:
    tiny = ("--model", "tiny", "--dtype", "float32", "--part-size", "2")
    for out, flags in (("plain/", ()), ("ray/", ("--ray", "local"))):
        code, stdout, stderr = run(
            "caption", scenes, *tiny, "-o", out, *flags, "--json", cwd=here, env=environment(folder)
        )
        assert code == 0, stderr
        facts = json.loads(stdout)
        assert (facts["rows_ok"], facts["parts_there"]) == (5, 3)
    assert rows_in(here / "ray") == rows_in(here / "plain")
    assert "an actor needs 4 CPU" in stderr
    assert in_work(here / "ray") == []
    code, _, stderr = run("caption", scenes, *tiny, "-o", "ray/", "--ray", "local", cwd=here, env=environment(folder))
    assert code == 0
    assert "nothing to do" in stderr
    assert "Ray" not in stderr


@pytest.mark.parametrize("command", [("vqa", "-q", "what?"), ("match", "--text", "a boat"), ("embed",)])
def test_every_command_that_runs_a_job_runs_on_a_cluster(
    scenes: Path, here: Path, folder: Path, command: tuple[str, ...]
) -> None:
    model = "tiny" if command[0] == "vqa" else "tiny-itm"
    settings = (command[0], str(scenes), *command[1:], "--model", model, "--dtype", "float32", "--part-size", "2")
    for out, flags in (("plain/", ()), ("ray/", ("--ray", "local"))):
        code, _, stderr = run(*settings, "-o", out, *flags, cwd=here, env=environment(folder))
        assert code == 0, stderr
    assert rows_in(here / "ray") == rows_in(here / "plain")


def test_failed_rows_are_retried_and_shards_are_kept(here: Path, folder: Path) -> None:
    images, env = draw(here / "images", 12), environment(folder, stub={})
    (images / "003.png").write_bytes(b"no image")
    code, _, stderr = run(*caption(images, "captions/", *LOCAL, "--shard", "1/2"), cwd=here, env=env)
    assert code == 3
    assert "003.png: not_an_image" in stderr
    assert set(contents(here / "captions")) == {"part-00000.parquet", "part-00002.parquet"}
    draw_scenes(images, 1, first_seed=3, size=(48, 36))
    code, _, stderr = run(*caption(images, "captions/", *LOCAL, "--retry-failed"), cwd=here, env=env)
    assert code == 0, stderr
    check_all(images, here / "captions")


def test_a_bucket_takes_parts_from_actors_and_status_tells_meanwhile(
    here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, gate = draw(here / "images", 40), here / "gate"
    with s3_server(monkeypatch, here / "cache") as url:
        names = [name for name in os.environ if name.startswith(("AWS_", "XDG_CACHE_HOME"))]
        env = environment(folder, stub={"gate": str(gate)}) | {name: os.environ[name] for name in names}
        status = ("status", f"{url}captions/", "--json")
        gate.touch()
        code, _, stderr = run(*caption(images, f"{url}captions/", *LOCAL, "--shard", "1/2"), cwd=here, env=env)
        assert code == 0, stderr
        gate.unlink()
        process = start(*caption(images, f"{url}captions/", *LOCAL), cwd=here, env=env)
        wait_for(lambda: actors_below(process.pid))
        code, stdout, _ = run(*status, cwd=here, env=env)
        facts = json.loads(stdout)
        assert (code, facts["rows_ok"], facts["rows_missing"], facts["parts_there"]) == (3, 20, 20, 4)
        assert process.poll() is None
        gate.touch()
        stderr = process.communicate()[1].decode()
        assert process.returncode == 0, stderr
        code, stdout, _ = run(*status, cwd=here, env=env)
        facts = json.loads(stdout)
    assert (code, facts["rows_ok"], facts["rows_missing"], facts["parts_there"]) == (0, 40, 0, 8)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_kills", [6, 50])
def test_kills_of_actors_drivers_and_nodes_lose_no_row_and_double_none(
    here: Path, nodes: Nodes, num_kills: int
) -> None:
    images = draw(here / "images", 40 * num_kills)
    command, chance = caption(images, "captions/", "--ray", nodes.address, "--ray-cpus", "1"), random.Random(num_kills)
    out = here / "captions"
    killed: dict[str, int] = {"actor": 0, "driver": 0, "node": 0}
    process = start(*command, cwd=here, env=nodes.env)
    kinds = [*killed] * (num_kills // 3) + ["actor"] * (num_kills % 3)
    chance.shuffle(kinds)
    for kind in kinds:
        before = len(contents(out))
        until = time.monotonic() + 300
        while process.poll() is None and not (nodes.actors() and len(contents(out)) > before):
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.5))
        if process.poll() is not None:  # done, or a part was given up: three of these kills met it
            assert process.returncode in (0, 1), process.communicate()[1].decode()
        elif kind == "actor" and (actors := nodes.actors()):
            chance.choice(actors).kill()
            killed[kind] += 1
        elif kind == "node":
            nodes.remove()
            nodes.add()
            killed[kind] += 1
        elif kind == "driver":
            process.kill()
            killed[kind] += 1
        if kind == "driver" or process.poll() is not None:
            process.communicate()
            process = start(*command, cwd=here, env=nodes.env)
    stderr = process.communicate()[1].decode()
    if process.returncode == 1:
        code, _, stderr = run(*command, cwd=here, env=nodes.env)
        assert code == 0, stderr
    else:
        assert process.returncode == 0, stderr
    assert sum(killed.values()) >= 2 * num_kills // 3, killed
    check_all(images, out)
    assert not any(row["error"] for row in rows_in(out))


def test_actors_are_added_when_a_node_joins(here: Path, nodes: Nodes) -> None:
    images = draw(here / "images", 300)
    process = start(*caption(images, "captions/", "--ray", nodes.address, "--ray-cpus", "1"), cwd=here, env=nodes.env)
    wait_for(lambda: len(nodes.actors()) >= 4)
    nodes.add()
    try:
        wait_for(lambda: len(nodes.actors()) >= 6)
    finally:
        stderr = process.communicate()[1].decode()
        nodes.remove()
    assert process.returncode == 0, stderr
    check_all(images, here / "captions")


@pytest.mark.parametrize("width", [crashing.SEGFAULT, crashing.KILLED])
def test_an_image_that_kills_its_process_costs_one_actor_and_becomes_a_failed_row(
    here: Path, nodes: Nodes, width: int
) -> None:
    images = draw(here / "images", 12)
    (images / "007.png").write_bytes(crashing.picture(width))
    command = caption(images, "captions/", "--ray", nodes.address, "--ray-cpus", "1")
    code, stdout, stderr = run(*command, cwd=here, env=nodes.env)
    assert code == 3, stderr
    assert stdout == ""
    assert stderr.count("its actor died") == 1
    assert "part-00001.parquet: an earlier run died while decoding" in stderr
    assert "worker process has died" in stderr
    assert ("Segmentation fault" in stderr) == (width == crashing.SEGFAULT)
    rows = rows_in(here / "captions")
    assert {row["file_name"]: row["error"] for row in rows if row["error"]} == {"007.png": "decoder_crashed"}
    assert [row["file_name"] for row in rows] == names_below(images)


def test_an_image_that_kills_its_process_is_found_in_a_bucket_from_another_machine(
    here: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    images = draw(here / "images", 12)
    (images / "007.png").write_bytes(crashing.picture(crashing.KILLED))
    with s3_server(monkeypatch, here / "cache") as url:
        access = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        # A folder of its own for every process, as on a machine of its own: no trace is found there.
        env = environment(folder, stub={}, misbehave=True, own_cache=True) | access
        code, _, stderr = run(*caption(images, f"{url}captions/", *LOCAL), cwd=here, env=env)
    assert code == 3, stderr
    assert stderr.count("its actor died") == 1
    assert "007.png: decoder_crashed" in stderr


def test_a_part_that_always_kills_its_actor_is_given_up_and_the_others_are_made(here: Path, folder: Path) -> None:
    images = draw(here / "images", 15)
    env = environment(folder, stub={}, deadly_part=1)
    code, _, stderr = run(*caption(images, "captions/", *LOCAL), cwd=here, env=env)
    assert code == 1, stderr
    assert stderr.count("its actor died") == 2
    assert "part-00001.parquet: given up after 3 deaths" in stderr
    assert (
        "blip2cap: given up after repeated deaths of their actors: part-00001.parquet. All other parts are finished."
        in stderr
    )
    assert "the last words of this actor" in stderr
    assert set(contents(here / "captions")) == {"part-00000.parquet", "part-00002.parquet"}
    code, _, stderr = run(*caption(images, "captions/", *LOCAL), cwd=here, env=environment(folder, stub={}))
    assert code == 0, stderr
    check_all(images, here / "captions")


def test_an_error_in_python_is_reported_with_its_traceback(here: Path, folder: Path) -> None:
    env = environment(folder, stub={}, raises=True)
    code, _, stderr = run(*caption(draw(here / "images", 5), "captions/", *LOCAL), cwd=here, env=env)
    assert code == 1
    assert "an error in Python" in stderr
    assert "ZeroDivisionError: a bug for this test" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_batch_and_the_same_command_resumes(
    here: Path, folder: Path, number: signal.Signals
) -> None:
    images, env = draw(here / "images", 40), environment(folder, stub={"encode_s": 0.2})
    command = caption(images, "captions/", *LOCAL)
    process = start(*command, cwd=here, env=env)
    wait_for(lambda: contents(here / "captions"))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does; the processes of Ray block it
    else:
        process.send_signal(number)  # a local cluster ends at once on it, and with it the process that started it
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + number, stderr
    assert "Stopped. The rows so far are safe. To resume: " in stderr
    assert "its actor died" not in stderr
    wait_for(lambda: not processes_in(folder))
    code, _, stderr = run(*command, cwd=here, env=env)
    assert code == 0, stderr
    check_all(images, here / "captions")


def test_a_signal_before_the_first_row_stops_at_once(here: Path, folder: Path) -> None:
    env = environment(folder, stub={"load_s": 600})
    process = start(*caption(draw(here / "images", 5), "captions/", *LOCAL), cwd=here, env=env)
    wait_for(lambda: actors_below(process.pid))
    time.sleep(1)
    process.terminate()
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143, stderr
    assert "Stopped before the first row" in stderr
    wait_for(lambda: not processes_in(folder))


def test_a_driver_that_is_killed_takes_its_local_cluster_along(here: Path, folder: Path) -> None:
    process = start(
        *caption(draw(here / "images", 40), "captions/", *LOCAL),
        cwd=here,
        env=environment(folder, stub={"encode_s": 0.2}),
    )
    wait_for(lambda: contents(here / "captions"))
    assert processes_in(folder)
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_in(folder))


def test_a_driver_that_is_killed_leaves_no_actor_in_a_cluster(here: Path, nodes: Nodes) -> None:
    command = caption(draw(here / "images", 60), "captions/", "--ray", nodes.address, "--ray-cpus", "1")
    process = start(*command, cwd=here, env=nodes.env)
    wait_for(lambda: contents(here / "captions"))
    assert nodes.actors()
    process.kill()
    process.communicate()
    wait_for(lambda: not nodes.actors())


def test_a_run_on_which_nothing_moves_is_ended(here: Path, folder: Path) -> None:
    env = environment(folder, stub={"encode_s": 600})
    command = caption(draw(here / "images", 5), "captions/", *LOCAL, "--ray-timeout", "3")
    code, _, stderr = run(*command, cwd=here, env=env)
    assert code == 1
    # On a busy machine the actors may not even have started after three seconds.
    assert "nothing has moved for 3 s, the limit of --ray-timeout: of " in stderr
    wait_for(lambda: not processes_in(folder))


def test_a_cluster_without_free_resources_is_refused_with_its_numbers(here: Path, nodes: Nodes) -> None:
    command = caption(draw(here / "images", 5), "captions/", "--ray", nodes.address, "--ray-cpus", "64")
    code, _, stderr = run(*command, cwd=here, env=nodes.env)
    assert code == 1
    assert "no node of the cluster is large enough for an actor: 3 nodes with 0 GPU (0 in use), 4 CPU (0 in" in stderr
    assert "an actor needs 64 CPU. Add such nodes, or ask for less with --ray-cpus N." in stderr


@pytest.mark.parametrize(
    ("worker", "code", "message"),
    [
        (
            {"version": ""},
            1,
            r"node \S+ has no blip2cap \(.*\), this process has .* Install the same version on all nodes",
        ),
        ({"version": "0.0.1"}, 1, r"node \S+ has blip2cap 0\.0\.1, this process has"),
        ({"hidden": "store"}, 6, r"node \S+ does not see --out: there is no plan in .*captions/\. A folder must be"),
        ({"hidden": "model"}, 4, r"node \S+ cannot find the model: .*no such folder"),
        ({"hidden": "images"}, 2, r"node \S+ does not see the images: .*images: No such file or directory"),
    ],
)
def test_a_node_on_which_something_is_missing_is_named(
    here: Path, folder: Path, checkpoints: Any, worker: dict[str, str], code: int, message: str
) -> None:
    images = draw(here / "images", 5)
    model = checkpoints("opt")
    command = ["caption", images, "--model", model, "--dtype", "float32", "--part-size", "5", "-o", "captions/", *LOCAL]
    ended, _, stderr = run(*command, cwd=here, env=environment(folder, stub={}, **worker))
    assert ended == code, stderr
    assert re.search(message, stderr), stderr
    assert "Traceback" not in stderr


def test_another_version_of_ray_on_the_cluster_is_named(here: Path, nodes: Nodes) -> None:
    (here / "old").mkdir()
    (here / "old" / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.0.0'\n")
    env = nodes.env | {"PYTHONPATH": f"{here / 'old'}{os.pathsep}{nodes.env['PYTHONPATH']}"}
    command = caption(draw(here / "images", 5), "captions/", "--ray", nodes.address, "--ray-cpus", "1")
    code, _, stderr = run(*command, cwd=here, env=env)
    assert code == 1
    assert "the cluster has another version of Ray or Python than this process" in stderr
    assert "2.0.0" in stderr


def test_an_address_without_a_cluster_is_named_at_once(here: Path, folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        images = draw(here / "images", 5)
        for given in (address, f"ray://{address}"):
            code, _, stderr = run(*caption(images, "captions/", "--ray", given), cwd=here, env=environment(folder))
            assert code == 2
            assert f"blip2cap: --ray {given}: nothing answers there" in stderr


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of all processes of a local cluster, which keep their files in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        variables = process.info["environ"] or {}
        if variables.get("RAY_TMPDIR") == str(folder) and process.info["cmdline"]:
            found.append(" ".join(process.info["cmdline"])[:200])
    return found
