"""Each seam has a second user here: a task with numbers and vectors, and a family that takes the bytes of files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest

from blip2cap.column_types import FLOAT, Vector
from blip2cap.decode.inputs import BytesInput, ImageInput
from blip2cap.errors import ImageError, OutputRefusedError, UsageError
from blip2cap.jobs.job import Job, Listener, Outcome
from blip2cap.jobs.run import dry_run, run_job
from blip2cap.models.base import Checkpoint, Family
from blip2cap.models.registry import FAMILIES
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, OutputOptions, SourceOptions
from blip2cap.outputs.open import open_rows
from blip2cap.outputs.status import read_status
from blip2cap.records import ImageRef, Prompt
from blip2cap.rows import Column, Row, Schema, make_schema
from blip2cap.tasks.base import SameLabels
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.registry import TASKS, TaskEntry
from tests.commands import draw_scenes, invoke, names_below

SCHEMA = make_schema(
    Column("text"),
    Column("score", FLOAT),
    Column("small", Vector((3,), "float16")),
    Column("large", Vector((4,), "float32")),
    key="text",
)
WORDS = ("dog", "cat")
NUM_IMAGES = 14
"""Number of good images; there is a bad one too."""


@dataclass(frozen=True, kw_only=True)
class Score(SameLabels):
    """A stub task: a score and two vectors for every image and word."""

    words: tuple[str, ...] = WORDS
    name: str = "score"
    schema: Schema = SCHEMA
    deterministic: bool = True

    @property
    def labels(self) -> Sequence[str | None]:
        return self.words

    def settings(self) -> dict[str, Any]:
        return {"exponent": 2}

    def model_settings(self) -> dict[str, Any]:
        return {}

    def for_checkpoint(self, checkpoint: Checkpoint, family: Family) -> Self:
        return self

    def check(self, model: Any) -> None:
        assert isinstance(model, Scorer)

    def start(self, model: Any, *, capacity: int | None) -> Scores:
        return Scores(model)

    def prompt(self, ref: ImageRef, label: str | None) -> str:
        return label or ""

    def finish(self, result: float) -> float:
        return result**2

    def row(self, ref: ImageRef, label: str | None, result: Any, *, width: int, height: int) -> Row:
        names = {"file_name": ref.file_name, "file_name_b64": ref.file_name_b64, "text": label}
        if isinstance(result, ImageError):
            return SCHEMA.row(**names, status="failed", error=result.code)
        vectors = {"small": np.full(3, result, np.float16), "large": np.full(4, result, np.float32)}
        return SCHEMA.row(**names, **vectors, score=result, status="ok", width=width, height=height)


class Scores:
    """A session whose results come out of order, three at a time."""

    capacity, num_ahead = 5, 0

    def __init__(self, model: Scorer) -> None:
        self.model = model
        self.waiting: list[tuple[int, float]] = []
        self.num_added = 0

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    def encode(self, images: Sequence[bytes]) -> list[float]:
        return self.model.encode(images)

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        tickets = list(range(self.num_added, self.num_added + len(prompts)))
        self.num_added += len(prompts)
        scores = [features[prompt.image] * len(prompt.text) / 3 for prompt in prompts]
        self.waiting += zip(tickets, scores, strict=True)
        return tickets

    def close(self) -> None:
        """Do nothing."""

    def advance(self) -> list[Any]:
        done, self.waiting = self.waiting[:3][::-1], self.waiting[3:]
        return done


class Scorer:
    """A stub model of a family of its own, which takes the bytes of files; the feature of an image is their number."""

    checkpoint = Checkpoint(name="scorer", folder=Path(), commit="1", family="stub", config={})
    device: Any = "cpu"
    dtype: Any = "torch.float32"
    quantize: str | None = None
    on_cpu = True
    fallback_reason = ""
    remark = ""
    image_input: ImageInput = BytesInput()

    def encode(self, images: Sequence[bytes]) -> list[float]:
        assert all(image.startswith(b"\x89PNG") for image in images)
        return [len(image) / 1000 for image in images]

    def wait(self) -> None:
        pass


STUB = Family(
    name="stub",
    model_type="stub",
    tasks=("score",),
    image_input=lambda checkpoint, options: BytesInput(),
    load=lambda checkpoint, options: Scorer(),
)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "stub", STUB)
    monkeypatch.setitem(TASKS, "score", TaskEntry(schema_of=lambda settings: SCHEMA))


@pytest.fixture
def images(here: Path) -> Path:
    folder = draw_scenes(here / "images", NUM_IMAGES, size=(16, 12))
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def job(images: Path, out: str, **source: Any) -> Job:
    return Job(
        task=Score(),
        source=SourceOptions(inputs=(str(images),), **source),
        output=OutputOptions(out=out, part_size=2 if out.endswith("/") else None),
        model=ModelOptions(name="scorer"),
        decode=DecodeOptions(num_threads=1),
        batch=BatchOptions(batch_size=2),
    )


def run(one: Job, **options: Any) -> Outcome:
    return run_job(one, model=Scorer(), **options)


OUTS = ["scores.jsonl", "scores.parquet", "scores/"]


@pytest.mark.parametrize("out", OUTS)
def test_a_task_with_numbers_and_vectors_is_written_and_read_like_any(images: Path, out: str) -> None:
    outcome = run(job(images, out))
    assert (outcome.num_ok, dict(outcome.failed), outcome.complete) == (28, {"not_an_image": 2}, False)
    rows = list(open_rows(out))
    assert [(row.file_name, row["text"]) for row in rows] == [
        (name, word) for name in names_below(images) for word in WORDS
    ]
    for row in rows:
        assert (row["small"].dtype, row["large"].dtype) == (np.float16, np.float32)
        assert row["large"] == pytest.approx(row["score"])
        assert row["small"] == pytest.approx(row["score"], rel=1e-3)
        assert (row["score"] > 0) == (row.status == "ok")


@pytest.mark.parametrize("out", OUTS)
def test_its_run_is_resumed_after_a_stop_and_after_the_end(images: Path, out: str) -> None:
    class Stopper(Listener):
        num_images = 0

        def progress(self, stats: Any) -> None:
            self.num_images = stats.num_images

    stopper = Stopper()
    stopped = run(job(images, out), listener=stopper, stopped=lambda: stopper.num_images >= 2)
    assert stopped.stopped
    assert 0 < stopped.num_ok < 28
    rest = run(job(images, out))
    assert (rest.num_rows_before + rest.num_ok + rest.failed.total(), rest.stats is None) == (30, False)
    again = run(job(images, out))
    assert (again.stats, again.num_rows_before, again.num_failed_before) == (None, 30, 2)
    found = dry_run(replace(job(images, out), task=Score(words=(*WORDS, "bird")))) if out != "scores/" else None
    assert found is None or (found.num_images_to_do, found.num_rows_to_do) == (15, 15)


@pytest.mark.parametrize("out", OUTS)
def test_status_show_and_export_take_it(images: Path, here: Path, out: str) -> None:
    run(job(images, out))
    status = read_status(out)
    assert (status.num_ok, dict(status.failed)) == (28, {"not_an_image": 2})
    shown = invoke("show", out, "--limit", "1").stdout
    assert [name in shown for name in ("text", "score", "small", "[3]")] == [True] * 4
    assert invoke("export", out, "--to", "jsonl", "-o", "e.jsonl").exit_code == 0
    first = json.loads((here / "e.jsonl").read_text().splitlines()[0])
    assert list(first) == SCHEMA.names
    assert invoke("export", out, "--to", "parquet", "-o", "e.parquet").exit_code == 0
    assert pq.read_schema("e.parquet").remove_metadata().equals(SCHEMA.arrow())


def test_other_readers_find_the_same_numbers(images: Path) -> None:
    run(job(images, "scores.parquet"))
    expected = [row["large"].tolist() for row in open_rows("scores.parquet")]
    assert pandas.read_parquet("scores.parquet")["large"].map(list).tolist() == expected
    assert polars.read_parquet("scores.parquet")["large"].to_list() == expected
    found = duckdb.connect().execute("select large from 'scores.parquet'").fetchall()
    assert [list(each[0]) for each in found] == expected


def test_equal_pictures_are_scored_once_and_the_question_is_what_differs(images: Path) -> None:
    (images / "copy.png").write_bytes((images / "000.png").read_bytes())
    encoded: list[int] = []

    class Counting(Scorer):
        def encode(self, images: Sequence[bytes]) -> list[float]:
            encoded.append(len(images))
            return super().encode(images)

    run_job(job(images, "scores.jsonl"), model=Counting())
    assert sum(encoded) == NUM_IMAGES


def test_an_unfinished_part_of_it_is_one_open_file_of_rows(images: Path) -> None:
    from blip2cap.outputs.parts.part import Part
    from blip2cap.outputs.parts.plan import read_plan
    from blip2cap.outputs.parts.store import LocalStore

    run(job(images, "scores/"))
    plan = read_plan(LocalStore("scores/"))
    assert plan is not None
    with closing(Part(plan.store, plan, 7, again=True)) as part:
        assert (part.num_missing, len(part.finished)) == (2, 0)


def test_a_family_is_found_by_the_type_in_its_config_and_its_own_loader_is_called(images: Path, here: Path) -> None:
    folder = here / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "stub"}')
    (folder / "model.safetensors").touch()
    outcome = run_job(replace(job(images, "scores.jsonl"), model=ModelOptions(name=str(folder))))
    assert (outcome.num_ok, dict(outcome.failed)) == (2 * NUM_IMAGES, {"not_an_image": 2})
    assert {row.width for row in open_rows("scores.jsonl") if row.status == "ok"} == {16}


def test_a_task_that_a_family_cannot_do_is_refused_before_anything_is_loaded(images: Path) -> None:
    with pytest.raises(UsageError, match=r"model scorer: .* stub, which cannot caption\. It can: score"):
        run(replace(job(images, "captions.jsonl"), task=Caption()))
    assert not Path("captions.jsonl").exists()


@pytest.mark.parametrize("given", ["-", "scores/part-00000.parquet"])
def test_rows_are_known_by_a_manifest_or_not_at_all(images: Path, given: str) -> None:
    run(job(images, "scores/"))
    if given == "-":
        lines = b"".join(row.as_json() for row in open_rows("scores/"))
        with pytest.raises(OutputRefusedError, match="no column 'finish_reason'"):
            list(open_rows("-", io.BytesIO(lines)))
    else:
        assert [row["text"] for row in open_rows(given)] == [*WORDS, *WORDS]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1, "0.5", None])
def test_a_number_that_readers_cannot_read_is_not_made_a_row(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        SCHEMA.row(file_name="a", score=value)
    with pytest.raises((TypeError, ValueError)):
        SCHEMA.row(file_name="a", small=np.full(3, np.nan, np.float16))


def test_rows_are_equal_by_their_values_and_print_them() -> None:
    one, same, other = (SCHEMA.row(file_name="a", score=score, status="ok") for score in (0.5, 0.5, 0.25))
    assert (one == same, one == other, len({one, same, other})) == (True, False, 2)
    assert "score=0.5" in repr(one)
