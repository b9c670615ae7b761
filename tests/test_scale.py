"""Options of a run on a cluster, what an actor checks before its first part, and its messages: all without Ray."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blip2cap.decode.image import Decoded
from blip2cap.decode.isolate import Isolation
from blip2cap.errors import Blip2CapError, ClusterError, InputError, ModelError, OutputError, UsageError
from blip2cap.jobs.context import open_source
from blip2cap.jobs.job import Job
from blip2cap.jobs.parts import finish_parts
from blip2cap.jobs.parts_plan import PartsWork, choose_dtype, prepare_parts
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, OutputOptions, SourceOptions
from blip2cap.outputs.parts.counts import done_parts
from blip2cap.records import ImageRef
from blip2cap.scale.events import Assignment, Work
from blip2cap.scale.options import RayOptions
from blip2cap.scale.part_maker import PartMaker
from blip2cap.scale.run import _given_up, _may_be_relative, _needs, _on_actors, _sample, run_on_ray
from blip2cap.scale.scheduler import Result
from blip2cap.tasks.caption import Caption
from tests.commands import TINY, draw_scenes, invoke
from tests.test_cli_parts import names_in
from tests.test_scale_scheduler import Heard
from tests.zygote import Stub, put_in_place_of_the_model


@pytest.mark.parametrize(
    "address", ["local", "auto", "10.0.0.1:6379", "head.example.org:6379", "ray://head:10001", "[::1]:1"]
)
def test_addresses_that_can_be_given(address: str) -> None:
    assert RayOptions(address=address).address == address


@pytest.mark.parametrize("address", ["", "here", "10.0.0.1", "http://head:8265", "ray://head", "head:port", "a b:1"])
def test_other_addresses_are_refused_with_what_is_expected(address: str) -> None:
    with pytest.raises(UsageError, match=r"must be local, auto, HOST:PORT like 10\.0\.0\.1:6379, or ray://"):
        RayOptions(address=address)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("-o", "captions.jsonl"),
            "--ray and --out captions.jsonl exclude each other: many machines write a folder of parts",
        ),
        (("-o", "-"), "--ray and --out - exclude each other"),
        (("-o", "out/", "--workers", "2"), "--ray and --workers or --devices exclude each other"),
        (("-o", "captions/", "--device-map", "auto"), "an actor has one GPU"),
        (("-o", "captions/", "--device", "cuda:1"), "Ray chooses the GPU. Leave it out."),
        (("-o", "captions/", "--ray-cpus", "2", "--device", "cuda"), "such actors have no GPU. Leave one out."),
        (("-o", "captions/", "--ray-cpus", "0"), "--ray-cpus 0: must be 1 or more."),
        (("-o", "captions/", "--ray-timeout", "0"), "--ray-timeout 0: must be 1 or more."),
    ],
)
def test_options_that_make_no_sense_on_a_cluster_are_refused(
    scenes: Path, here: Path, flags: tuple[str, ...], message: str
) -> None:
    result = invoke("caption", scenes, *TINY, "--ray", "local", *flags)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not any(here.iterdir())


def test_options_of_a_cluster_without_one_are_refused(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, *TINY, "-o", "captions/", "--ray-cpus", "2")
    assert result.exit_code == 2
    assert "--ray-cpus 2 has no effect without --ray. Add --ray, or leave it out." in result.stderr


def test_texts_are_not_embedded_on_a_cluster(here: Path) -> None:
    (here / "texts.txt").write_text("a boat\n")
    result = invoke("embed", "--texts", "texts.txt", "--ray", "local", "-o", "texts.parquet")
    assert result.exit_code == 2
    assert "--ray and --texts exclude each other" in result.stderr


def test_without_ray_the_message_is_how_to_install_it(
    scenes: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = invoke("caption", scenes, *TINY, "-o", "captions/", "--ray", "local")
    assert result.exit_code == 2
    assert "--ray: Ray cannot be imported" in result.stderr
    assert "Run: pip install 'blip2cap[ray]'." in result.stderr


def test_a_dry_run_and_a_finished_output_need_no_cluster(
    scenes: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ("caption", scenes, *TINY, "--part-size", "2", "-o", "captions/")
    assert invoke(*command, "--ray", "local", "--dry-run").exit_code == 0
    assert invoke(*command).exit_code == 0
    result = invoke(*command, "--ray", "10.0.0.1:6379")
    assert result.exit_code == 0
    assert "5 already done, nothing to do" in result.stderr


@pytest.fixture
def job(here: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of six images in three parts, with a stand-in for its model."""
    monkeypatch.setitem(sys.modules, "blip2cap.models.blip2.load", put_in_place_of_the_model(Stub()))
    draw_scenes(here / "images", 6, size=(16, 12))
    return Job(
        task=Caption(template="a"),
        source=SourceOptions(inputs=("images",)),
        output=OutputOptions(out="captions/", part_size=2),
        model=ModelOptions(name="tiny", dtype="float32"),
        decode=DecodeOptions(num_threads=1),
        batch=BatchOptions(batch_size=2),
    )


def prepared(job: Job, **settings: Any) -> tuple[PartsWork, Work]:
    source = open_source(job)
    parts = prepare_parts(job, source, listener=None, stopped=lambda: False, **settings)
    return parts, Work(
        job=_on_actors(parts.context.job, {"CPU": 1.0}, parts.dtype),
        checkpoint=parts.context.checkpoint,
        folder=os.getcwd() if _may_be_relative(source) else None,
        plan_id=parts.plan.id,
        sample=_sample(parts),
    )


def test_an_actor_makes_parts_from_wherever_it_is(job: Job, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, work = prepared(job)
    monkeypatch.chdir("/")
    maker = PartMaker(work, num_threads=1)
    for index in parts.todo:
        result = maker.make(Assignment(index=index))
        assert (result.stats.num_ok, result.locked) == (2, False)
    assert done_parts(parts.plan.store, parts.plan) == {0, 1, 2}
    assert len(names_in(here / "captions")) == 6
    outcome = finish_parts(parts, result.stats)
    assert outcome.complete


def test_an_actor_finds_relative_inputs_among_absolute_ones(
    job: Job, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "images").rename(here / "a")
    draw_scenes(here / "b", 2, size=(16, 12))
    parts, work = prepared(replace(job, source=SourceOptions(inputs=(f"{here}/a", "b"))))
    monkeypatch.chdir("/")
    maker = PartMaker(work, num_threads=1)
    results = [maker.make(Assignment(index=index)) for index in parts.todo]
    assert [result.stats.num_ok for result in results] == [2, 2, 2, 2]


def test_the_image_that_every_node_must_see_is_the_first_that_is_no_url() -> None:
    refs = [ImageRef(path=path, name=path) for path in ("s3://x/a.png", "b/a.png", "b/b.png")]
    parts: Any = SimpleNamespace(todo=[0], plan=SimpleNamespace(refs=lambda index: refs))
    assert _sample(parts) == refs[1]
    parts.plan.refs = lambda index: refs[:1]
    assert _sample(parts) is None


def test_nodes_need_the_folder_of_the_driver_only_for_relative_inputs(job: Job, here: Path) -> None:
    (here / "list.txt").write_text("images/000.png\n")
    of = {
        inputs: _may_be_relative(open_source(replace(job, source=SourceOptions(inputs=inputs))))
        for inputs in ((f"{here}/images",), (f"{here}/images", "images"))
    }
    assert list(of.values()) == [False, True]
    lists = SourceOptions(files_from=(f"{here}/list.txt",))
    assert _may_be_relative(open_source(replace(job, source=lists)))


def test_an_actor_reports_images_that_fail_once(job: Job, here: Path) -> None:
    (here / "images" / "001.png").write_bytes(b"no image")
    _, work = prepared(job)
    maker = PartMaker(work, num_threads=1)
    maker.make(Assignment(index=0))
    assert [(name, code) for name, code, _ in maker.report().failures] == [("001.png", "not_an_image")]
    assert maker.report().failures == []


def test_an_actor_that_was_told_to_stop_makes_nothing_more(job: Job) -> None:
    parts, work = prepared(job)
    maker = PartMaker(work, num_threads=1)
    maker.stop()
    assert maker.make(Assignment(index=0)).stats.num_images == 0
    assert done_parts(parts.plan.store, parts.plan) == set()


def test_images_of_a_part_over_which_an_actor_died_are_decoded_apart(
    job: Job, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated: list[bytes] = []
    decode = Isolation.decode

    def noted(self: Isolation, data: bytes, *, read_s: float = 0.0) -> Decoded:
        isolated.append(data)
        return decode(self, data, read_s=read_s)

    monkeypatch.setattr(Isolation, "decode", noted)
    _, work = prepared(job)
    maker = PartMaker(work, num_threads=1)
    maker.make(Assignment(index=0))
    assert isolated == []
    maker.make(Assignment(index=1, isolate=True))
    assert isolated == [(here / "images" / name).read_bytes() for name in ("002.png", "003.png")]


def other_checkpoint(work: Work, here: Path) -> Work:
    return replace(work, checkpoint=replace(work.checkpoint, commit="another"))


def other_output(work: Work, here: Path) -> Work:
    return replace(work, job=replace(work.job, output=replace(work.job.output, out=f"{here}/elsewhere/")))


def other_model(work: Work, here: Path) -> Work:
    return replace(work, job=replace(work.job, model=replace(work.job.model, name=f"{here}/no model")))


def other_images(work: Work, here: Path) -> Work:
    return replace(work, sample=ImageRef(path="/no/such/folder/a.png", name="a.png"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda work, here: replace(work, plan_id="another"), OutputError, "does not see --out: there is another plan"),
        (other_output, OutputError, "does not see --out: there is no plan in .*elsewhere/"),
        (other_checkpoint, ModelError, "has other files for --model tiny: .*, expected another"),
        (other_model, ModelError, "cannot find the model: .*no such folder"),
        (other_images, InputError, "does not see the images: /no/such/folder: No such file or directory"),
        (
            lambda work, here: replace(work, folder="/no/folder"),
            InputError,
            "does not see the images: /no/folder: No such file",
        ),
    ],
)
def test_what_is_missing_on_a_node_is_named(
    job: Job, here: Path, change: Callable[[Work, Path], Work], error: type[Blip2CapError], message: str
) -> None:
    _, work = prepared(job)
    with pytest.raises(error) as raised:
        PartMaker(change(work, here), num_threads=1)
    assert re.search(message, raised.value.message), raised.value.message


def test_an_automatic_dtype_is_chosen_by_the_cluster(job: Job) -> None:
    job = replace(job, model=replace(job.model, dtype="auto"))
    parts, work = prepared(job, automatic_dtype=lambda context: "bfloat16")
    assert (parts.dtype, work.job.model.dtype) == ("bfloat16", "bfloat16")
    assert choose_dtype(job, work.checkpoint) in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("options", "device", "gpus", "needs"),
    [
        (RayOptions(address="local"), "auto", 2.0, {"GPU": 1.0, "CPU": 1.0}),
        (RayOptions(address="local", cpus=3), "auto", 2.0, {"CPU": 3.0}),
        (RayOptions(address="local"), "cpu", 2.0, {"CPU": 4.0}),
        (RayOptions(address="local"), "auto", 0.0, {"CPU": 4.0}),
    ],
)
def test_an_actor_needs_a_gpu_or_the_cpus_of_the_smallest_node(
    job: Job, options: RayOptions, device: str, gpus: float, needs: dict[str, float]
) -> None:
    sizes = [0.0, 16.0, 4.0]
    nodes = [{"Alive": True, "Resources": {"CPU": size}} for size in sizes]
    ray: Any = SimpleNamespace(
        cluster_resources=lambda: {"GPU": gpus}, nodes=lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 1.0}}]
    )
    assert _needs(ray, replace(job, model=replace(job.model, device=device)), options) == needs


def test_gpus_that_no_node_has_are_said(job: Job) -> None:
    ray: Any = SimpleNamespace(cluster_resources=lambda: {}, nodes=lambda: [])
    with pytest.raises(ClusterError, match="no node of the cluster has a GPU"):
        _needs(ray, replace(job, model=replace(job.model, device="cuda")), RayOptions(address="local"))


def test_actors_with_cpus_leave_gpus_alone(job: Job) -> None:
    assert _on_actors(job, {"CPU": 2.0}, "float32").model.device == "cpu"
    assert _on_actors(job, {"GPU": 1.0, "CPU": 1.0}, "float32").model.device == "auto"


def test_a_message_about_parts_that_are_given_up_names_three() -> None:
    error = _given_up(Result(given_up=dict.fromkeys(range(1000), "SIGSEGV.")))
    assert error is not None
    assert "given up after repeated deaths of their actors: part-00000.parquet, part-00001" in error.message
    assert "part-00002.parquet and 997 more. All other parts are finished. The last death: SIGSEGV." in error.message
    assert _given_up(Result()) is None


def test_a_job_runs_on_a_cluster_only_into_parts(job: Job) -> None:
    with pytest.raises(UsageError, match=r"ray and out x\.jsonl exclude each other"):
        run_on_ray(replace(job, output=OutputOptions(out="x.jsonl")), RayOptions(address="local"), listener=Heard())
