"""Workers: rows are those of one process, in order, whatever happens to the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import ImageError, InputError, ModelError, WorkerError
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.records import Held, ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Request
from blip2cap.tasks.caption import Caption
from blip2cap.workers.messages import Setup
from blip2cap.workers.pool import WorkerPool
from tests.worker_fakes import BAD, Fake, LoadedFake

TASK = Caption(template="a", generate=GenerateOptions())
DECODE, BATCH = DecodeOptions(num_threads=2), BatchOptions(batch_size=4)


@pytest.fixture
def requests(tmp_path: Path) -> list[Request]:
    """Sixty pictures that are all different."""
    (tmp_path / "images").mkdir()
    for number in range(60):
        Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(tmp_path / "images" / f"{number:02}.png")
    return [request_of(path) for path in sorted((tmp_path / "images").iterdir())]


def request_of(path: Path) -> Request:
    return Request(ref=ImageRef(path=str(path), name=path.name), labels=(None,))


class Run:
    """One run of a pool, and what it has said."""

    def __init__(self, folder: Path, *devices: str, silence_s: float = 600.0, **faults: str) -> None:
        (folder / "faults").mkdir(exist_ok=True)
        self.folder = folder / "faults"
        self.said: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.stats = RunStats()
        loader = Fake(folder=self.folder, fails_on=faults)
        setups = [
            Setup(loader=loader, device=device, dtype="auto", task=TASK, decode=DECODE, batch=BATCH)
            for device in devices
        ]
        self.pool = WorkerPool(
            setups,
            environment={},
            on_failure=lambda ref, error: self.failed.append((ref.name, error.code)),
            say=self.said.append,
            silence_s=silence_s,
        )

    def rows(self, requests: Iterable[Request], stopped: Callable[[], bool] = lambda: False) -> list[Row]:
        """Make the rows, and end the workers."""
        with closing(self.pool):
            images = self.pool.read_ahead(requests)
            assert self.pool.wait().dtype == "float32"
            return [row for rows in self.pool.row_batches(images, self.stats, stopped) for row in rows]

    @property
    def used(self) -> set[str]:
        """Devices whose models have encoded images."""
        return {path.name.split()[1] for path in self.folder.glob("used *")}


def expected(requests: Iterable[Request], folder: Path) -> list[Row]:
    """Return the rows that one process makes."""
    model = LoadedFake("", folder, "cpu", "auto")
    engine = Engine(model=model, task=TASK, decode=DECODE, batch=BATCH)
    rows = engine.row_batches(engine.read_ahead(requests), RunStats())
    return [row for batch in rows for row in batch]


def test_rows_are_those_of_one_process_in_order(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "second", first="slow")
    assert run.rows(requests) == expected(requests, tmp_path)
    assert (run.stats.num_images, run.stats.num_ok, run.stats.batch_size) == (60, 60, 4)
    assert run.used == {"first", "second"}
    assert not run.said


def test_a_worker_that_dies_is_replaced_and_no_row_is_missing(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "first", first="crash once")
    assert run.rows(requests) == expected(requests, tmp_path)
    (said,) = run.said
    assert "worker 1 (first) was ended by SIGABRT (Fatal Python error: Aborted); its images are given" in said


@pytest.mark.long
def test_one_that_dies_again_and_again_is_given_up(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "good", "bad", good="slow", bad="raise")
    assert run.rows(requests) == expected(requests, tmp_path)
    assert any("failed: RuntimeError: an error of a driver" in line for line in run.said)
    assert run.said[-1].endswith("after 2 that died too; the run continues with 1")


def test_without_a_worker_the_run_ends_with_what_was_seen(requests: list[Request], tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"worker 1 .* SIGABRT .* No worker is left. The rows so far are safe"):
        Run(tmp_path, "bad", bad="crash").rows(requests)


def test_an_image_that_ends_its_process_is_one_failed_row(requests: list[Request], tmp_path: Path) -> None:
    bad = tmp_path / "images" / "30bad.png"
    bad.write_bytes(BAD)
    requests.insert(31, request_of(bad))
    run = Run(tmp_path, "first", "second")
    rows = run.rows(requests)
    assert [row.file_name for row in rows] == [request.ref.name for request in requests]
    assert {row.file_name: row.error for row in rows if row.error} == {"30bad.png": "decoder_crashed"}
    assert run.failed == [("30bad.png", "decoder_crashed")]
    assert len(run.said) == 1


def test_a_model_that_cannot_be_loaded_ends_the_run(requests: list[Request], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model on bad"):
        Run(tmp_path, "bad", "good", bad="load").rows(requests)


@pytest.mark.long
def test_a_second_model_that_cannot_be_loaded_does_not(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "good", "bad", good="slow", bad="load")
    assert run.rows(requests) == expected(requests, tmp_path)
    assert run.said == ["worker 2 (bad) cannot load the model: no model on bad; the run continues with 1"]


def test_a_first_worker_that_only_dies_leaves_the_run_to_the_next(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "bad", "good", bad="load crash")
    assert run.rows(requests) == expected(requests, tmp_path)
    assert run.used == {"good"}


@pytest.mark.long
def test_it_also_does_before_there_are_images(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "bad", "good", bad="load crash")
    with closing(run.pool):
        run.pool.wait()
        batches = run.pool.row_batches(run.pool.read_ahead(requests), run.stats)
        assert [row for rows in batches for row in rows] == expected(requests, tmp_path)


def test_rows_that_are_ready_leave_though_all_workers_die_of_a_stop(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "first", first="slow")

    def stopped() -> bool:
        if run.stats.num_images:
            for process in run.pool._crew.running():
                process.kill()
        return run.stats.num_images > 0

    rows = run.rows(requests, stopped)
    assert 0 < len(rows) < 60
    assert rows == expected(requests, tmp_path)[: len(rows)]


def test_a_silent_worker_is_killed_and_replaced(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "first", silence_s=1.5, first="hang once")
    assert run.rows(requests) == expected(requests, tmp_path)
    assert "silent for 1.5 s" in run.said[0]
    assert "SIGKILL" in run.said[1]


def test_a_stop_completes_what_is_in_the_models_and_rows_have_no_gap(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "second", first="slow", second="slow")
    rows = run.rows(requests, stopped=lambda: run.stats.num_images > 0)
    assert 0 < len(rows) < 60
    assert rows == expected(requests, tmp_path)[: len(rows)]


def test_bytes_that_only_the_parent_has_are_sent(requests: list[Request], tmp_path: Path) -> None:
    def gone() -> bytes:
        raise ImageError("vanished", "no such row")

    held = [
        Request(ref=ImageRef(path="", name=each.ref.name, load=Held(Path(each.ref.path).read_bytes())), labels=(None,))
        for each in requests
    ]
    held.append(Request(ref=ImageRef(path="", name="gone", load=gone), labels=(None,)))
    rows = Run(tmp_path, "first", first="crash once").rows(held)
    assert rows[:-1] == expected(requests, tmp_path)
    assert (rows[-1].file_name, rows[-1].error) == ("gone", "vanished")


def test_an_error_of_the_source_comes_after_the_rows_before_it(requests: list[Request], tmp_path: Path) -> None:
    def broken() -> Iterator[Request]:
        yield from requests[:9]
        raise InputError("the list ends here")

    run = Run(tmp_path, "first")
    with pytest.raises(InputError, match="the list ends here"):
        run.rows(broken())
    assert run.stats.num_images == 9


def test_one_stream_of_requests_after_the_other(requests: list[Request], tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "second")
    with closing(run.pool):
        run.pool.wait()
        for part in (requests[:25], requests[25:]):
            batches = run.pool.row_batches(run.pool.read_ahead(part), run.stats)
            assert [row for rows in batches for row in rows] == expected(part, tmp_path)
