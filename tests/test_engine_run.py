from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2cap.decode.image import Pixels
from blip2cap.engine.run import Engine, RunStats, run
from blip2cap.errors import ImageError, OutputError
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.options import BatchOptions, DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.source.inputs import Source
from blip2cap.tasks.base import Worklist
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.vqa import Vqa
from tests.commands import draw_scenes, names_below
from tests.fakes import FakeModel, FakeSession, ListSink


def do(
    folder: Path,
    model: FakeModel,
    *,
    prompt: str = "a",
    questions: tuple[str, ...] | None = None,
    sink: ListSink | None = None,
    generate: GenerateOptions | None = None,
    **settings: Any,
) -> tuple[list[Row], RunStats]:
    """Run `model` over a folder; return the rows and the summary."""
    on_batch, stopped = settings.pop("on_batch", lambda summary: None), settings.pop("stopped", lambda: False)
    options = generate or GenerateOptions()
    task: Caption | Vqa = Caption(template=prompt, generate=options, text=settings.pop("text", TextOptions()))
    if questions is not None:
        task = Vqa(template="{question}", questions=questions, generate=options, text=task.text)
    engine = Engine(
        model=model,
        task=task,
        decode=DecodeOptions(num_threads=2),
        batch=BatchOptions(batch_size=settings.pop("batch_size", 4)),
        **settings,
    )
    sink = sink or ListSink()
    source = Source(SourceOptions(inputs=(str(folder),)))
    requests = Worklist(task).requests(source.stream(), sink.finished)
    return sink.rows, run(engine, engine.read_ahead(requests), sink, on_batch, stopped)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_scenes(tmp_path / "images", 10, size=(32, 24))


@pytest.fixture
def folder_with_bad_ones(folder: Path) -> Path:
    (folder / "000b.jpg").write_bytes(b"no image")
    (folder / "004b.jpg").write_bytes(b"")
    (folder / "zzz.jpg").write_bytes((folder / "000.png").read_bytes()[:400])
    return folder


def is_white(pixels: Pixels) -> bool:
    return bool(pixels.min() == 255)


@pytest.fixture
def folder_with_white(folder: Path) -> Path:
    Image.new("RGB", (32, 24), "white").save(folder / "005a.png")
    return folder


def test_every_input_has_one_row_in_the_order_of_the_inputs(folder: Path) -> None:
    rows, _ = do(folder, FakeModel())
    assert [row.file_name for row in rows] == names_below(folder)
    assert {(row.status, row.width, row.height, row.num_tokens) for row in rows} == {("ok", 32, 24, 3)}
    assert len({row.text for row in rows}) == len(rows)


def test_bad_images_become_failed_rows_between_good_ones_and_change_no_text(folder_with_bad_ones: Path) -> None:
    rows, _ = do(folder_with_bad_ones, FakeModel())
    assert [row.file_name for row in rows] == sorted(path.name for path in folder_with_bad_ones.iterdir())
    errors = {row.file_name: row.error for row in rows if row.status == "failed"}
    assert errors == {"000b.jpg": "not_an_image", "004b.jpg": "truncated", "zzz.jpg": "truncated"}
    assert {(row.width, row.height) for row in rows if row.status == "failed"} == {(0, 0)}
    for path in folder_with_bad_ones.glob("*.jpg"):
        path.unlink()
    good_rows, _ = do(folder_with_bad_ones, FakeModel())
    assert good_rows == [row for row in rows if row.status == "ok"]


@pytest.mark.parametrize("batch_size", [1, 3, 13, 100])
def test_rows_do_not_depend_on_the_batch_size(folder_with_bad_ones: Path, batch_size: int) -> None:
    assert do(folder_with_bad_ones, FakeModel(), batch_size=batch_size)[0] == do(folder_with_bad_ones, FakeModel())[0]


def test_a_folder_of_bad_images_never_reaches_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    model = FakeModel()
    rows, summary = do(tmp_path, model)
    assert [row.error for row in rows] == ["not_an_image"]
    assert (model.encode_sizes, summary.num_failed) == ([], 1)


def test_running_out_of_memory_halves_the_failing_batch_only(folder: Path) -> None:
    model = FakeModel(max_images=3)
    rows, summary = do(folder, model, batch_size=6)
    assert rows == do(folder, FakeModel())[0]
    assert model.encode_sizes == [6, 3, 3, 4, 2, 2]
    assert (summary.num_ok, summary.capacity) == (10, 6)


def test_an_image_that_never_fits_is_a_failed_row_and_its_neighbours_are_not(folder_with_white: Path) -> None:
    told: list[tuple[str, str]] = []
    rows, summary = do(
        folder_with_white,
        FakeModel(never_fits=is_white),
        batch_size=16,
        on_failure=lambda ref, error: told.append((ref.file_name, error.detail.rpartition(": ")[2])),
    )
    assert told == [("005a.png", "one image")]
    assert [row.file_name for row in rows] == names_below(folder_with_white)
    assert [(row.file_name, row.error) for row in rows if row.status != "ok"] == [("005a.png", "out_of_memory")]
    assert summary.failed == {"out_of_memory": 1}
    (folder_with_white / "005a.png").unlink()
    assert do(folder_with_white, FakeModel())[0] == [row for row in rows if row.status == "ok"]


def test_batches_after_an_image_that_never_fits_are_as_large_as_before_it(tmp_path: Path) -> None:
    folder = draw_scenes(tmp_path, 23, size=(32, 24))
    Image.new("RGB", (32, 24), "white").save(folder / "!.png")
    model = FakeModel(never_fits=is_white)
    do(folder, model, batch_size=None)
    assert model.encode_sizes == [8, 4, 2, 1, 1, 2, 4, 8, 8]


def test_batches_grow_while_they_are_quick_if_no_size_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("blip2cap.engine.flow.time.perf_counter", lambda: clock[0])

    class Costly(FakeModel):
        def encode(self, images: Sequence[Pixels]) -> list[str]:
            clock[0] += 0.01 * len(images)  # 16 images are quick, 32 are worth a measurement
            return super().encode(images)

    model = Costly()
    do(draw_scenes(tmp_path, 120, size=(32, 24)), model, batch_size=None)
    assert model.encode_sizes == [8, 16, 32, 32, 32]


def test_bad_images_are_no_obstacle_to_halving(folder_with_bad_ones: Path) -> None:
    rows, summary = do(folder_with_bad_ones, FakeModel(max_images=1), batch_size=16)
    assert rows == do(folder_with_bad_ones, FakeModel())[0]
    assert (summary.num_ok, summary.num_failed) == (10, 3)


def test_what_a_batch_held_when_memory_ran_out_is_let_go_before_its_halves_are_tried(folder: Path) -> None:
    held: list[weakref.ref[Any]] = []

    class Holding(FakeModel):
        def encode(self, images: Sequence[Pixels]) -> list[str]:
            assert all(reference() is None for reference in held)
            tensor = np.zeros(3)
            held.append(weakref.ref(tensor))
            return super().encode(images)

    rows, _ = do(folder, Holding(max_images=1))
    assert {row.status for row in rows} == {"ok"}


def test_several_questions_encode_each_image_once(folder: Path) -> None:
    model = FakeModel()
    rows, summary = do(folder, model, questions=("what?", "where?", "when?"))
    assert [(row.file_name, row.question) for row in rows] == [
        (name, question) for name in names_below(folder) for question in ("what?", "where?", "when?")
    ]
    assert (model.num_encoded, summary.num_images, summary.num_ok) == (10, 10, 30)


def test_only_missing_answers_are_asked_for_and_finished_images_are_not_encoded(folder: Path) -> None:
    sink = ListSink()
    do(folder, FakeModel(), questions=("what?",), sink=sink)
    sink.finished = {row.key for row in sink.rows[1:]}
    model = FakeModel()
    do(folder, model, questions=("what?",), sink=sink)
    assert model.num_encoded == 1
    assert [prompt.text for prompt in model.prompts] == ["what?"]


def test_every_prompt_has_a_name_of_its_own_that_does_not_depend_on_the_batch(folder: Path) -> None:
    names = []
    for batch_size in (1, 7):
        model = FakeModel()
        do(folder, model, questions=("what?", "where?"), batch_size=batch_size)
        names.append([prompt.name for prompt in model.prompts])
    assert names[0] == names[1]
    assert len(set(names[0])) == 20


def test_several_captions_go_into_one_row(folder: Path) -> None:
    rows, _ = do(folder, FakeModel(), generate=GenerateOptions(num_beams=2, num_captions=2))
    assert all(row.texts is not None and len(row.texts) == 2 and row.texts[0] == row.text for row in rows)


def test_failed_rows_of_several_captions_have_an_empty_list(folder_with_bad_ones: Path) -> None:
    rows, _ = do(folder_with_bad_ones, FakeModel(), generate=GenerateOptions(num_beams=2, num_captions=2))
    assert {row.texts for row in rows if row.status == "failed"} == {()}


def test_a_prompt_that_the_model_refuses_fails_for_its_question_only(folder: Path) -> None:
    told: list[str] = []
    rows, summary = do(
        folder,
        FakeModel(refuses=lambda prompt: prompt.text == "long?"),
        questions=("what?", "long?"),
        on_failure=lambda ref, error: told.append(ref.file_name),
    )
    assert {(row.question, row.status, row.error, row.width) for row in rows} == {
        ("what?", "ok", "", 32),
        ("long?", "failed", "unsupported", 32),
    }
    assert (summary.num_ok, summary.num_failed, told) == (10, 10, names_below(folder))


def test_a_bad_image_is_told_once_however_many_questions_there_are(folder_with_bad_ones: Path) -> None:
    told: list[tuple[str, str]] = []

    def tell(ref: ImageRef, error: ImageError) -> None:
        told.append((ref.file_name, error.code))

    do(folder_with_bad_ones, FakeModel(), questions=("what?", "where?"), on_failure=tell)
    assert told == [("000b.jpg", "not_an_image"), ("004b.jpg", "truncated"), ("zzz.jpg", "truncated")]


def test_the_summary_counts_images_and_rows_and_its_times_add_up(folder_with_bad_ones: Path) -> None:
    _, summary = do(folder_with_bad_ones, FakeModel(), questions=("what?", "where?"))
    assert (summary.num_images, summary.num_ok, summary.num_failed) == (13, 20, 6)
    assert summary.failed == {"not_an_image": 2, "truncated": 4}
    assert min(summary.decode_s, summary.model_s, summary.write_s) > 0
    assert summary.decode_s + summary.model_s + summary.write_s == pytest.approx(summary.seconds)


def test_a_batch_is_told_of_when_its_rows_are_in_the_sink(folder: Path) -> None:
    sink, seen = ListSink(), []
    do(folder, FakeModel(), sink=sink, on_batch=lambda summary: seen.append((summary.num_images, len(sink.rows))))
    assert seen == [(4, 4), (8, 8), (10, 10)]


def test_a_run_that_is_stopped_ends_with_the_batch_and_counts_it(folder: Path) -> None:
    sink = ListSink()
    rows, summary = do(folder, FakeModel(), sink=sink, stopped=lambda: bool(sink.rows))
    assert [row.file_name for row in rows] == names_below(folder)[:4]
    assert (summary.num_images, summary.num_ok) == (4, 4)
    assert summary.decode_s + summary.model_s + summary.write_s == pytest.approx(summary.seconds)


def test_an_output_that_fails_ends_the_run_and_its_threads(folder: Path) -> None:
    class Full(ListSink):
        def write(self, rows: Iterable[Row]) -> None:
            raise OutputError("disk full")

    with pytest.raises(OutputError):
        do(folder, FakeModel(), sink=Full(), batch_size=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_gpu_begins_with_the_largest_batch(folder: Path) -> None:
    model = FakeModel()
    model.on_cpu = False
    _, summary = do(folder, model, batch_size=None)
    assert (summary.batch_size, model.encode_sizes) == (128, [10])


@pytest.mark.parametrize(("on_cpu", "num_pending"), [(True, [0, 0, 0, 0]), (False, [0, 3, 3, 3])])
def test_for_a_gpu_one_batch_is_encoded_before_there_is_capacity_for_its_texts(
    folder: Path, on_cpu: bool, num_pending: list[int]
) -> None:
    seen: list[int] = []

    class Watching(FakeModel):
        def encode(self, images: Sequence[Pixels]) -> list[str]:
            seen.append(len(self.session.waiting))
            return super().encode(images)

        def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
            self.session = super().start_texts(options, capacity=capacity)
            return self.session

    model = Watching(num_steps=lambda prompt: 5)
    model.on_cpu = on_cpu
    assert do(folder, model, batch_size=3)[0] == do(folder, FakeModel())[0]
    assert seen == num_pending
