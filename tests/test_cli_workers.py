"""Commands with several worker processes: the same rows, whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.commands import draw_scenes, environment, num_lines

pytestmark = pytest.mark.timeout(600)
CAPTION = ("caption", "images", "--model", "tiny", "--dtype", "float32", "--batch-size", "4", "--threads", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return draw_scenes(tmp_path_factory.mktemp("images"), 240)


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The rows of one process."""
    folder = folder_with(images, tmp_path_factory.mktemp("undisturbed"))
    run(folder, *CAPTION, "--workers", "1")
    return (folder / "captions.jsonl").read_bytes()


def folder_with(images: Path, folder: Path) -> Path:
    (folder / "images").symlink_to(images)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "blip2cap", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(folder: Path, *arguments: str, code: int = 0) -> tuple[bytes, str]:
    with start(folder, *arguments) as process:
        out, err = process.communicate()
    assert process.returncode == code, err.decode()
    return out, err.decode()


def wait_for_rows(process: subprocess.Popen[bytes], path: Path, count: int) -> None:
    while not (path.exists() and num_lines(path) >= count):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children()
    return children


@pytest.mark.long
def test_two_workers_make_the_rows_of_one_process(images: Path, undisturbed: bytes, tmp_path: Path) -> None:
    folder = folder_with(images, tmp_path)
    out, said = run(folder, *CAPTION, "--workers", "2", "-o", "-")
    assert out == undisturbed
    assert "tiny: float32 on 2 workers (cpu), 4 at once" in said


@pytest.mark.long
def test_an_index_is_the_same_too(images: Path, tmp_path: Path) -> None:
    folder = folder_with(images, tmp_path)
    index = ("index", "images", "--model", "tiny-itm", "--dtype", "float32", "--batch-size", "4", "--threads", "1")
    for workers in ("1", "2"):
        run(folder, *index, "--workers", workers, "-o", f"{workers}.index")
    for name in ("vectors.npy", "images-1.arrow"):
        one, two = (next((folder / f"{workers}.index").rglob(name)).read_bytes() for workers in "12")
        assert one == two, name


@pytest.mark.long
def test_a_folder_of_parts_is_the_same_too(images: Path, tmp_path: Path) -> None:
    folder = folder_with(images, tmp_path)
    for workers in ("1", "2"):
        run(folder, *CAPTION, "--workers", workers, "-o", f"parts{workers}/", "--part-size", "50")
    one, two = (sorted((folder / f"parts{workers}").glob("part-*")) for workers in "12")
    assert len(one) == len(two) == 5
    for first, second in zip(one, two, strict=True):
        assert first.name == second.name
        run(folder, "export", "--to", "jsonl", str(first), "-o", f"{first.stem}-1.jsonl")
        run(folder, "export", "--to", "jsonl", str(second), "-o", f"{first.stem}-2.jsonl")
        assert (folder / f"{first.stem}-1.jsonl").read_bytes() == (folder / f"{first.stem}-2.jsonl").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_twice_is_finished_and_leaves_no_process(
    images: Path, undisturbed: bytes, tmp_path: Path, number: signal.Signals
) -> None:
    folder = folder_with(images, tmp_path)
    out = folder / "captions.jsonl"
    for num_rows in (1, 120):
        with start(folder, *CAPTION, "--workers", "2") as process:
            wait_for_rows(process, out, num_rows)
            workers = workers_of(process)
            process.send_signal(number)
            _, err = process.communicate()
        assert process.returncode == (-number if number is signal.SIGKILL else 128 + number), err
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        assert undisturbed.startswith(out.read_bytes().rpartition(b"\n")[0])
        assert num_lines(out) < 240
    run(folder, *CAPTION, "--workers", "2")
    assert out.read_bytes() == undisturbed


@pytest.mark.long
def test_a_worker_that_is_killed_costs_nothing(images: Path, undisturbed: bytes, tmp_path: Path) -> None:
    folder = folder_with(images, tmp_path)
    with start(folder, *CAPTION, "--workers", "2") as process:
        wait_for_rows(process, folder / "captions.jsonl", 1)
        for _ in range(2):
            workers_of(process)[0].kill()
            time.sleep(0.1)
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert (folder / "captions.jsonl").read_bytes() == undisturbed
    assert b"was ended by SIGKILL; its images are given to another" in err
