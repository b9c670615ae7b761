"""Parts: a plan, one object for each of its parts, and leftovers of processes that died."""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from blip2cap.decode.image import Decoded
from blip2cap.decode.isolate import Isolation
from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import ImageError, OutputError, OutputLockedError, OutputRefusedError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.jobs.part_queue import PartQueue
from blip2cap.jobs.parts import run_part, run_parts
from blip2cap.options import BatchOptions, DecodeOptions, SourceOptions
from blip2cap.outputs.parts import plan as parts_plan
from blip2cap.outputs.parts.counts import done_parts, read_counts, total
from blip2cap.outputs.parts.part import Part, num_rows_in_progress, sweep
from blip2cap.outputs.parts.plan import PartsPlan, make_plan, part_name, read_plan
from blip2cap.outputs.parts.store import LocalStore
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.source.inputs import Source
from blip2cap.tasks.base import Task
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.vqa import Vqa
from tests.commands import draw_scenes, names_below
from tests.fakes import FakeModel
from tests.rows import text_row

DIED = ExitStack()
"""Traces of images over which processes died: contexts that are never left."""
SETTINGS = {"command": "caption", "dtype": "float32", "questions": None}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images: with two in a part, the last has one."""
    return draw_scenes(tmp_path / "images", 7, size=(16, 12))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(str(tmp_path / "captions") + "/")
    store.prepare()
    return store


@pytest.fixture
def parts(store: LocalStore, images: Path) -> PartsPlan:
    return planned(store, images)


def planned(store: LocalStore, images: Path, settings: dict[str, Any] | None = None) -> PartsPlan:
    stream = Source(SourceOptions(inputs=(str(images),))).stream()
    plan = make_plan(store, stream, settings or SETTINGS, part_size=2, skipped=stream.skipped)
    assert plan is not None
    return plan


def engine(model: FakeModel | None = None, batch_size: int = 2, task: Task | None = None) -> Engine:
    return Engine(
        model=model or FakeModel(),
        task=task or Caption(template="a"),
        decode=DecodeOptions(num_threads=1),
        batch=BatchOptions(batch_size=batch_size),
    )


def run_all(store: LocalStore, parts: PartsPlan, *, stop_after: int = 99, again: bool = False) -> tuple[RunStats, Any]:
    """Do the steps of a command; with `stop_after`, as if a signal came after this number of images."""
    done = done_parts(store, parts)
    failed = {index for index, counts in read_counts(store, parts, sorted(done)).items() if counts.failed}
    redo = failed if again else set()
    queue = PartQueue(store, parts, sorted(set(range(parts.num_parts)) - done | redo), redo)
    num_images = 0

    def count(summary: RunStats) -> None:
        nonlocal num_images
        num_images = summary.num_images

    one = engine(batch_size=1)
    with closing(queue):
        images = one.read_ahead(queue.requests(), queue)
        return run_parts(one, queue, images, count, lambda: num_images >= stop_after), queue


def rows_of(store: LocalStore, index: int) -> list[dict[str, Any]]:
    return pq.read_table(store.folder / part_name(index)).to_pylist()  # type: ignore[no-any-return]


def all_names(store: LocalStore, parts: PartsPlan) -> list[str]:
    return [row["file_name"] for index in range(parts.num_parts) for row in rows_of(store, index)]


def made(parts: PartsPlan, index: int, place: int) -> Row:
    """Return the row of one input of a part."""
    return text_row(file_name=parts.refs(index)[place].file_name, file_name_b64="", text="a")


def die_in_work(store: LocalStore, parts: PartsPlan, index: int, *, over: str = "") -> None:
    """Leave a part as a killed process does."""
    part = Part(store, parts, index)
    for ref in parts.refs(index):
        if ref.name == over:
            DIED.enter_context(part.trace.decoding(ref))
    part._sink.close()


def test_every_input_has_a_row_in_the_order_of_the_plan(store: LocalStore, parts: PartsPlan, images: Path) -> None:
    summary, _ = run_all(store, parts)
    assert (summary.num_ok, summary.num_images) == (7, 7)
    assert [len(rows_of(store, index)) for index in range(parts.num_parts)] == [2, 2, 2, 1]
    assert all_names(store, parts) == names_below(images)
    assert store.names() == {".blip2cap", *map(part_name, range(4))}


def test_rows_have_the_columns_and_types_of_every_output(store: LocalStore, parts: PartsPlan) -> None:
    run_all(store, parts)
    table = pq.read_table(store.folder / part_name(0))
    assert table.column_names == [*text_row(file_name="", file_name_b64="").as_dict()]
    kinds = {field.name: str(field.type) for field in table.schema}
    assert {kinds.pop(name) for name in ("num_tokens", "width", "height")} == {"int64"}
    assert set(kinds.values()) == {"string"}
    assert not any(field.nullable for field in table.schema)


def test_one_part_can_be_done_on_its_own_and_only_once(store: LocalStore, parts: PartsPlan) -> None:
    assert run_part(engine(), store, parts, 2).stats.num_ok == 2
    assert done_parts(store, parts) == {2}
    before = (store.folder / part_name(2)).read_bytes()
    assert run_part(engine(), store, parts, 2).stats.num_images == 0
    assert (store.folder / part_name(2)).read_bytes() == before


def test_answers_have_a_row_for_every_question(store: LocalStore, images: Path) -> None:
    questions = ("what?", "where?")
    parts = planned(store, images, SETTINGS | {"command": "vqa", "questions": list(questions)})
    run_part(engine(task=Vqa(template="Q: {question}", questions=questions)), store, parts, 3)
    assert [(row["file_name"], row["question"]) for row in rows_of(store, 3)] == [
        ("006.png", "what?"),
        ("006.png", "where?"),
    ]


def test_several_captions_of_an_image_are_a_list(store: LocalStore, images: Path) -> None:
    parts = planned(store, images, SETTINGS | {"num_captions": 2})
    several = Caption(template="a", generate=GenerateOptions(num_captions=2, num_beams=2))
    run_part(engine(task=several), store, parts, 0)
    assert [len(row["texts"]) for row in rows_of(store, 0)] == [2, 2]


def test_what_was_stopped_goes_on_after_its_last_row(store: LocalStore, parts: PartsPlan, images: Path) -> None:
    summary, _ = run_all(store, parts, stop_after=3)
    assert done_parts(store, parts) == {0}
    assert num_rows_in_progress(store, parts, {0}) == summary.num_ok - 2 > 0
    rest, queue = run_all(store, parts)
    assert rest.num_ok == 7 - summary.num_ok
    assert queue.num_found == summary.num_ok - 2
    assert all_names(store, parts) == names_below(images)


def test_a_part_whose_rows_are_all_there_becomes_an_object_without_a_model(store: LocalStore, parts: PartsPlan) -> None:
    part = Part(store, parts, 1)
    part.write([text_row(file_name=ref.file_name, file_name_b64="", text="a") for ref in parts.refs(1)])
    part.close()
    model = FakeModel()
    run_part(engine(model), store, parts, 1)
    assert [row["text"] for row in rows_of(store, 1)] == ["a", "a"]
    assert model.num_encoded == 0


def test_a_part_that_another_process_finished_first_stays_as_it_is(store: LocalStore, parts: PartsPlan) -> None:
    create = store.create

    def late(name: str, data: bytes) -> bool:
        assert create(name, b"theirs")
        return create(name, data)

    store.create = late  # type: ignore[method-assign]
    queue = PartQueue(store, parts, (1,))
    run_parts(engine(), queue, engine().read_ahead(queue.requests(), queue))
    assert queue.num_lost == 1
    assert (store.folder / part_name(1)).read_bytes() == b"theirs"
    assert list((store.scratch / parts.id).iterdir()) == []


def test_a_part_in_work_is_locked_and_taken_over_when_its_process_has_gone(
    store: LocalStore, parts: PartsPlan, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip2cap.jobs.parts._LOOK_AGAIN_S", 0.05)
    theirs = Part(store, parts, 1)
    with pytest.raises(OutputLockedError):
        Part(store, parts, 1)

    def end() -> None:
        while done_parts(store, parts) != {0, 2, 3}:
            time.sleep(0.01)
        theirs.close()

    other = threading.Thread(target=end)
    other.start()
    summary, _ = run_all(store, parts)
    other.join()
    assert summary.num_ok == 7
    assert all_names(store, parts) == names_below(images)


def test_a_signal_ends_the_wait_for_another_process(store: LocalStore, parts: PartsPlan) -> None:
    theirs = Part(store, parts, 1)
    summary, _ = run_all(store, parts, stop_after=5)
    assert summary.num_ok == 5
    theirs.close()


def test_damage_in_a_journal_is_refused_not_waited_for(store: LocalStore, parts: PartsPlan) -> None:
    Part(store, parts, 0).close()
    (journal,) = (store.scratch / parts.id).glob("*.jsonl")
    journal.write_bytes(b"{}\n")
    with pytest.raises(OutputRefusedError, match=r"part-00000\.jsonl:1 is damaged") as refused:
        run_all(store, parts)
    assert refused.value.message.endswith(
        f"; otherwise move {journal} to another place, and run the same command again: it makes the rows of that file "
        "again."
    )
    journal.unlink()
    summary, _ = run_all(store, parts)
    assert summary.num_ok == 7


def test_what_is_said_of_a_part_without_its_manifest_helps(store: LocalStore, parts: PartsPlan) -> None:
    part = Part(store, parts, 0)
    part.write([made(parts, 0, 0)])
    part.close()
    (manifest,) = (store.scratch / parts.id).glob("*.run.json")
    for damage in (lambda: manifest.write_bytes(b"{"), manifest.unlink):
        damage()
        with pytest.raises(OutputRefusedError, match=r"Move .*/part-00000\.jsonl to another place, and run") as refused:
            run_all(store, parts)
        assert "--" not in refused.value.message


def test_failed_rows_are_made_again_and_the_others_are_kept(store: LocalStore, parts: PartsPlan, images: Path) -> None:
    whole = (images / "003.png").read_bytes()
    (images / "003.png").write_bytes(whole[:50])
    run_all(store, parts)
    there = total(read_counts(store, parts, range(4)).values())
    assert (there.num_ok, there.num_failed, sum(there.failed.values())) == (6, 1, 1)
    before = rows_of(store, 1)
    (images / "003.png").write_bytes(whole)
    for path in (images / "002.png", images / "000.png"):
        path.unlink()
    summary, _ = run_all(store, parts, again=True)
    assert (summary.num_ok, summary.num_failed) == (1, 0)
    after = rows_of(store, 1)
    assert after[0] == before[0]
    assert (before[1]["status"], after[1]["status"]) == ("failed", "ok")
    assert total(read_counts(store, parts, range(4)).values()).num_ok == 7
    assert list((store.scratch / parts.id).iterdir()) == []


def test_a_crash_while_failed_rows_are_made_again_leaves_the_old_part(
    store: LocalStore, parts: PartsPlan, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "003.png").write_bytes(b"")
    run_all(store, parts)
    before = (store.folder / part_name(1)).read_bytes()

    def crash(*names: object) -> None:
        raise OSError(5, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OutputError):
            store.replace(part_name(1), b"new")
    assert (store.folder / part_name(1)).read_bytes() == before


def test_an_image_over_which_a_process_died_is_decoded_apart_by_the_next(
    store: LocalStore, parts: PartsPlan, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_in_work(store, parts, 1, over="002.png")
    apart: list[bytes] = []

    def crash(isolation: Isolation, data: bytes, *, read_s: float = 0.0) -> Decoded:
        apart.append(data)
        raise ImageError("decoder_crashed", "it crashes every process")

    monkeypatch.setattr(Isolation, "decode", crash)
    said: list[str] = []
    queue = PartQueue(store, parts, range(4), say=said.append)
    one = engine(batch_size=1)
    stats = run_parts(one, queue, one.read_ahead(queue.requests(), queue))
    assert apart == [(images / "002.png").read_bytes()]
    assert (stats.num_ok, dict(stats.failed)) == (6, {"decoder_crashed": 1})
    assert [row["error"] for row in rows_of(store, 1)] == ["decoder_crashed", ""]
    assert said == [
        "part-00001.parquet: an earlier run died while decoding 1 image; it will be decoded in a separate process"
    ]
    assert list((store.scratch / parts.id).iterdir()) == []


def test_an_orderly_end_suspects_no_image_and_forgets_none(store: LocalStore, parts: PartsPlan) -> None:
    part = Part(store, parts, 0)
    with part.trace.decoding(parts.refs(0)[0]):
        pass
    part.close()
    die_in_work(store, parts, 0, over="001.png")
    for _ in range(2):
        part = Part(store, parts, 0)
        assert [part.trace.suspects(ref) for ref in parts.refs(0)] == [False, True]
        part.close()


def test_what_a_kill_after_the_last_write_leaves_is_swept(store: LocalStore, parts: PartsPlan) -> None:
    die_in_work(store, parts, 0)
    die_in_work(store, parts, 1)
    sweep(store, parts, {0})
    assert {path.name[:10] for path in (store.scratch / parts.id).iterdir()} == {"part-00001"}
    sweep(store, parts, {0, 1, 2, 3})
    assert not (store.scratch / parts.id).exists()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("num_steps", range(7))
def test_a_kill_while_leftovers_are_removed_leaves_what_the_next_run_can_handle(
    store: LocalStore, parts: PartsPlan, images: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int, again: bool
) -> None:
    if again:
        whole = {path: path.read_bytes() for path in (images / "002.png", images / "003.png")}
        for path in whole:
            path.write_bytes(b"")
        run_all(store, parts)
        for path, data in whole.items():
            path.write_bytes(data)
    part = Part(store, parts, 1, again=again)
    other = text_row(file_name="003.png", file_name_b64="", status="failed", error="truncated")
    part.write([made(parts, 1, 0), other if again else made(parts, 1, 1)])
    steps = iter(range(num_steps))

    def step(function: Any) -> Any:
        def limited(what: Any, *rest: Any) -> Any:
            ours = isinstance(what, int) or Path(what).parent == store.scratch / parts.id
            if ours and next(steps, None) is None:
                raise Killed
            return function(what, *rest)

        return limited

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", step(os.unlink))
        patch.setattr(os, "ftruncate", step(os.ftruncate))
        with pytest.raises(Killed):
            part.commit()
    os.close(part._sink._file)
    summary, _ = run_all(store, parts, again=again)
    assert summary.num_ok == (1 if again else 5)
    assert [(row["file_name"], row["status"]) for row in rows_of(store, 1)] == [("002.png", "ok"), ("003.png", "ok")]
    assert rows_of(store, 1)[0]["text"] == "a"
    sweep(store, parts, {0, 1, 2, 3})
    assert not (store.scratch / parts.id).exists()


def test_rows_that_failed_before_an_interrupt_are_made_again_by_the_next_retry(
    store: LocalStore, parts: PartsPlan, images: Path
) -> None:
    whole = (images / "003.png").read_bytes()
    (images / "003.png").write_bytes(b"")
    run_all(store, parts)
    part = Part(store, parts, 1, again=True)
    part.write([text_row(file_name="003.png", file_name_b64="", status="failed", error="truncated")])
    part.close()
    sweep(store, parts, {0, 1, 2, 3})
    (images / "003.png").write_bytes(whole)
    summary, queue = run_all(store, parts, again=True)
    assert (summary.num_ok, queue.num_found) == (1, 0)
    assert [row["status"] for row in rows_of(store, 1)] == ["ok", "ok"]


def test_rows_made_again_are_swept_only_when_no_process_has_them_and_none_is_wanted(
    store: LocalStore, parts: PartsPlan, images: Path
) -> None:
    (images / "003.png").write_bytes(b"")
    run_all(store, parts)
    for index in (0, 1):
        Part(store, parts, index, again=True).close()
    theirs = Part(store, parts, 2, again=True)
    sweep(store, parts, {0, 1, 2, 3})
    journals = {path.name for path in (store.scratch / parts.id).glob("*.jsonl")}
    assert journals == {"part-00001.again.jsonl", "part-00002.again.jsonl"}
    theirs.close()


def test_parts_with_six_digits_are_counted_and_swept_too(store: LocalStore, parts: PartsPlan) -> None:
    folder = store.scratch / parts.id
    folder.mkdir()
    for name in ("part-100000.jsonl", "part-1.jsonl", "party.jsonl"):
        (folder / name).write_bytes(b"{}\n")
    (folder / "part-100000.jsonl.decoding").write_bytes(b"")
    assert num_rows_in_progress(store, parts, set()) == 1
    sweep(store, parts, {1, 100_000})
    assert {path.name for path in folder.iterdir()} == {"part-1.jsonl", "party.jsonl"}


def test_a_part_that_is_locked_is_asked_for_nothing_else(
    store: LocalStore, parts: PartsPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Part(store, parts, 1)
    queue = PartQueue(store, parts, (1,))
    with monkeypatch.context() as patch:
        patch.setattr(store, "exists", pytest.fail)
        patch.setattr(store, "open", pytest.fail)
        assert list(queue.requests()) == []
    assert queue.locked == deque([1])
    theirs.close()


def test_another_process_may_sweep_the_empty_folder_at_any_time(
    store: LocalStore, parts: PartsPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.scratch / parts.id
    sweeps = iter(("after it is made", "when it was found", "never"))
    mkdir, unlink = os.mkdir, os.unlink

    def made_and_swept(path: Path, mode: int = 0o777) -> None:
        swept = next(sweeps)
        if swept == "when it was found":
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        mkdir(path, mode)
        if swept == "after it is made":
            path.rmdir()

    def removed_and_swept(path: Path) -> None:
        unlink(path)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", made_and_swept)
        part = Part(store, parts, 0)
        assert next(sweeps, None) is None
        patch.setattr(os, "unlink", removed_and_swept)
        part.discard()
    assert not folder.exists()


def test_who_waits_for_another_process_looks_less_and_less_often(
    store: LocalStore, parts: PartsPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    looked: list[float] = []
    restart = PartQueue.restart

    def noted(queue: PartQueue) -> None:
        looked.append(clock.now)
        restart(queue)

    theirs = Part(store, parts, 1)
    monkeypatch.setattr("blip2cap.jobs.parts.time", clock)
    monkeypatch.setattr(PartQueue, "restart", noted)
    queue = PartQueue(store, parts, range(4))
    images = engine().read_ahead(queue.requests(), queue)
    run_parts(engine(), queue, images, stopped=lambda: clock.now > 70)
    waits = [after - before for before, after in itertools.pairwise(looked)]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 30], abs=0.2)
    theirs.close()


def test_a_part_that_is_damaged_or_of_another_plan_is_refused(store: LocalStore, parts: PartsPlan) -> None:
    run_all(store, parts)
    path = store.folder / part_name(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(OutputRefusedError, match=r"part-00001\.parquet is damaged, or was not made here"):
        read_counts(store, parts, [1])
    content = json.loads(pq.read_metadata(store.folder / part_name(0)).metadata[b"blip2cap"])
    assert content["settings"] == SETTINGS
    path.write_bytes(whole.replace(parts.id.encode(), b"0" * 16))
    with pytest.raises(OutputRefusedError, match="another plan"):
        read_counts(store, parts, [1])


def test_a_plan_is_made_once_and_the_first_one_counts(store: LocalStore, parts: PartsPlan, images: Path) -> None:
    again = planned(store, images, SETTINGS | {"dtype": "bfloat16"})
    assert (again.id, again.manifest.settings) == (parts.id, SETTINGS)
    assert list(store.scratch.iterdir()) == []
    with pytest.raises(OutputRefusedError, match=r'dtype was "float32", now "bfloat16"\. Use another out\.$'):
        again.check(SETTINGS | {"dtype": "bfloat16"}, "captions/")


def test_a_plan_gives_back_every_name_and_path(store: LocalStore) -> None:
    refs = [
        ImageRef(path="/data/a b.jpg", name="a b.jpg"),
        ImageRef(path=os.fsdecode(b"/data/\xff.jpg"), name=os.fsdecode(b"\xff.jpg")),
        ImageRef(path="s3://bucket/кот.jpg", name="кот.jpg"),
    ]
    plan = make_plan(store, refs, SETTINGS, part_size=2)
    assert plan is not None
    assert [plan.refs(0), plan.refs(1)] == [refs[:2], refs[2:]]
    assert (plan.num_images, plan.num_parts, plan.part_size) == (3, 2, 2)


def test_a_plan_that_does_not_say_its_part_size_has_that_of_its_first_part(store: LocalStore, parts: PartsPlan) -> None:
    path = store.folder / parts_plan.NAME
    table = pq.read_table(path)
    content = json.loads(pq.read_metadata(path).metadata[b"blip2cap"])
    del content["part_size"]
    pq.write_table(table.replace_schema_metadata({"blip2cap": json.dumps(content)}), path, row_group_size=2)
    plan = read_plan(store)
    assert plan is not None
    assert (plan.id, plan.part_size) == (parts.id, 2)


def test_nothing_is_planned_without_inputs(store: LocalStore) -> None:
    assert make_plan(store, [], SETTINGS) is None
    assert read_plan(store) is None
    assert list(store.scratch.iterdir()) == []


def test_an_image_that_cannot_be_read_again_is_not_planned(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts_plan._FIELDS, "path", None)  # as a source has it whose bytes come past once
    with pytest.raises(UsageError, match="comes from a stream"):
        make_plan(store, [ImageRef(path="x", name="x")], SETTINGS)
    assert read_plan(store) is None


def test_a_folder_with_other_things_in_it_is_not_taken_for_parts(store: LocalStore) -> None:
    (store.folder / "holiday.jpg").touch()
    with pytest.raises(OutputRefusedError, match=r"it has no plan but contains holiday\.jpg"):
        read_plan(store)


def test_a_damaged_plan_is_refused(store: LocalStore, parts: PartsPlan) -> None:
    path = store.folder / parts_plan.NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OutputRefusedError, match="plan is damaged"):
        read_plan(store)


def test_a_store_that_overwrites_although_told_not_to_is_found_out(store: LocalStore, images: Path) -> None:
    class Careless(LocalStore):
        def create_from(self, name: str, path: Path) -> bool:
            self.replace(name, path.read_bytes())
            return True

    with pytest.raises(OutputError, match="overwrite each other's parts"):
        planned(Careless(store.url), images)


@pytest.mark.long
def test_memory_for_a_plan_does_not_grow_with_the_inputs(store: LocalStore) -> None:
    def refs(count: int) -> Iterator[ImageRef]:
        return (ImageRef(path=f"/data/{number:09}.jpg", name=f"{number:09}.jpg") for number in range(count))

    def peak(name: str, count: int) -> int:
        other = LocalStore(f"{store.url}{name}")
        other.prepare()
        tracemalloc.start()
        try:
            plan = make_plan(other, refs(count), SETTINGS, part_size=1000)
            assert plan is not None
            assert plan.refs(count // 1000 - 1)[-1].name == f"{count - 1:09}.jpg"
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak("warm", 1000)
    assert peak("many", 20_000) < 1.3 * peak("few", 3000)
