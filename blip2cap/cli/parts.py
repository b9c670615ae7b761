"""One run of `caption` or `vqa` into a parts folder, from its job to the exit code."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from blip2cap import urls
from blip2cap.cli.execution import go_on, load_model, say_damaged, watched_engine
from blip2cap.cli.report import (
    flag_facts,
    no_image,
    plan_facts,
    print_json,
    say_plan,
    say_summary,
    summary_facts,
)
from blip2cap.cli.signals import Stop
from blip2cap.cli.terminal import clean, say
from blip2cap.errors import InputError
from blip2cap.jobs.job import ANY_FAMILY, Job
from blip2cap.outputs.parts.counts import Counts, done_parts, read_counts, total
from blip2cap.outputs.parts.part import sweep
from blip2cap.outputs.parts.plan import PART_SIZE, PartsPlan, check_ref, make_plan, read_plan
from blip2cap.outputs.parts.store import Store, open_store
from blip2cap.source.inputs import Source

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats
    from blip2cap.jobs.parts import PartQueue
    from blip2cap.models.checkpoint import Checkpoint

_SOME_FAILED = 3
_PLANNED = ("inputs", "files_from", "null_separated", "limit", "include", "exclude", "image_column")
"""Of SourceOptions, what says which inputs are listed. By name: a plan must not depend on what a later release adds."""


def start_parts(job: Job, source: Source, stop: Stop, *, dry_run: bool) -> None:
    """Do it. Raises Blip2CapError, or typer.Exit with a code other than 0."""
    store = open_store(job.out)
    parts = read_plan(store)
    if dry_run:
        _dry_run(job, source, store, parts)
        return
    from blip2cap.models.checkpoint import find

    checkpoint = find(job.model)
    settings = job.settings(source) | job.model_settings(checkpoint) | _settings_of_parts(job, source)
    if parts is not None:
        _check(job, parts, settings)
    store.prepare()
    if parts is None:
        parts = _make_plan(job, source, store, settings, checkpoint)
        _check(job, parts, settings)  # another process may have been faster
    elif not job.quiet:
        _say_plan(job, parts)

    mine = {index for index in range(parts.num_parts) if job.parts.takes(index)}
    done = done_parts(store, parts)
    before = read_counts(store, parts, sorted(mine & done))
    sweep(store, parts, done)
    again = {index for index, counts in before.items() if counts.failed} if job.retry_failed else set()
    todo = _in_turn(store, job, sorted(mine - done)) + sorted(again)
    if not todo:
        _end(job, source, store, parts, mine, before)
    from blip2cap.jobs.parts import PartQueue

    queue = PartQueue(store, parts, job.plan(checkpoint.family), todo, again)
    num_failed = sum(before[index].num_failed for index in again)
    num_images = sum(map(parts.num_refs, mine - done)) + num_failed // len(queue.plan.questions or (None,))
    summary = _do(job, checkpoint, parts, queue, num_images, stop)
    _end(job, source, store, parts, mine, before, queue, summary, stop.exit_code if stop.signal else 0)


def _settings_of_parts(job: Job, source: Source) -> dict[str, Any]:
    """What a plan depends on beside what changes a text: which inputs were listed, and what is asked of each."""
    options = {name: getattr(job.source, name) for name in _PLANNED}
    if [source.root] == [os.path.realpath(given) for given in job.source.inputs]:
        options["inputs"] = ()  # the one folder; other settings name it
    for name in ("inputs", "files_from"):
        options[name] = tuple(map(_without_secrets, options[name]))
    settings: dict[str, Any] = {"questions": None if job.questions is None else list(job.questions)}
    for name, value in options.items():
        settings[name] = [_text(each) for each in value] if isinstance(value, tuple) else value
    return settings


def _without_secrets(given: str) -> str:
    """Name an input in what others may read: of a URL that opens doors, what may be shown, and a hash to compare."""
    if urls.scheme(given) and not urls.is_http(given):
        return given.rstrip("/")  # one folder, however it is written
    shown = urls.shown(given)
    return given if shown == given else f"{shown} #{hashlib.sha256(os.fsencode(given)).hexdigest()[:8]}"


def _check(job: Job, parts: PartsPlan, settings: Mapping[str, Any]) -> None:
    """Raise OutputRefusedError if the plan was made with other settings."""
    parts.check({**settings, "dtype": _dtype(job, parts)}, job.out)


def _dtype(job: Job, parts: PartsPlan) -> str:
    """Return the dtype that was given, else that of the plan: all its texts are made alike."""
    return str(parts.manifest.settings["dtype"]) if job.model.dtype == "auto" else job.model.dtype


def _make_plan(
    job: Job, source: Source, store: Store, settings: Mapping[str, Any], checkpoint: Checkpoint
) -> PartsPlan:
    """List all inputs, as the first process of a plan does. This imports torch."""
    from blip2cap.models.blip2.load import choose_device, choose_dtype

    dtype = choose_dtype(job.model.dtype, choose_device(job.model.device), checkpoint)
    if not job.quiet:
        say("listing the inputs ...")
    parts = make_plan(
        store,
        source,
        {**settings, "dtype": str(dtype).removeprefix("torch.")},
        part_size=job.parts.part_size or PART_SIZE,
        skipped=source.skipped,
    )
    if parts is None:
        raise InputError(no_image(source))
    if not job.quiet:
        say(f"{clean(job.out)}: planned {_size(parts)}")
    return parts


def _say_plan(job: Job, parts: PartsPlan) -> None:
    created = parts.manifest.created.replace("T", " ").removesuffix("+00:00")
    say(f"{clean(job.out)}: {_size(parts)}, as listed {created} UTC; inputs that came later need another --out")
    if job.parts.part_size not in (None, parts.part_size):
        say(f"--part-size {job.parts.part_size}: has no effect, as the parts are planned already")


def _size(parts: PartsPlan) -> str:
    return f"{parts.num_images} images in {parts.num_parts} part{'s' if parts.num_parts != 1 else ''}"


def _in_turn(store: Store, job: Job, missing: Sequence[int]) -> list[int]:
    """Say in which order to take parts. In a bucket nobody sees what others have in work: each begins elsewhere."""
    if not store.shared or not missing or job.parts.shard is not None:
        return list(missing)
    first = secrets.randbelow(len(missing))
    return [*missing[first:], *missing[:first]]


def _do(job: Job, checkpoint: Checkpoint, parts: PartsPlan, queue: PartQueue, num_images: int, stop: Stop) -> RunStats:
    """Load the model and do all parts of the queue."""
    if not job.quiet:
        say(f"loading {clean(checkpoint.name)} ...")
    from blip2cap.jobs.parts import run_parts

    with closing(queue):
        model = load_model(job, checkpoint, _dtype(job, parts))
        model.check(job.generate)
        stop.only_note()
        with watched_engine(job, model, lambda given_up: num_images) as (engine, on_batch):
            images = engine.read_ahead(queue.requests())  # not sooner: who dies while loading has no part in work
            return run_parts(engine, queue, images, on_batch=on_batch, stopped=lambda: stop.signal != 0)


def _dry_run(job: Job, source: Source, store: Store, parts: PartsPlan | None) -> None:
    """Say what a run would do, without the model or a write."""
    plan = job.plan(ANY_FAMILY)
    if parts is None:
        store.check()
        facts = plan_facts(job.out, source, plan, set(), 0, refs=map(check_ref, source))
        say_damaged(job, source)
        if plan.num_images == 0:
            raise InputError(no_image(source))
    else:
        known = job.known_settings(source) | _settings_of_parts(job, source)
        parts.check({**parts.manifest.settings, **known}, job.out)
        mine = {index for index in range(parts.num_parts) if job.parts.takes(index)}
        counts = read_counts(store, parts, sorted(mine & done_parts(store, parts)))
        there = total(counts.values())
        redone = there.num_failed if job.retry_failed else 0
        num_asks = len(plan.questions or (None,))
        num_images_to_do = sum(parts.num_refs(index) for index in mine - counts.keys())
        facts = {
            "out": job.out,
            "images": sum(map(parts.num_refs, mine)),
            "images_to_do": num_images_to_do + redone // num_asks,
            "rows_to_do": num_images_to_do * num_asks + redone,
            "rows_there_before": there.num_rows - redone,
            "rows_failed_before": there.num_failed - redone,
            "skipped": dict(parts.skipped),
        }
    if job.as_json:
        print_json(facts)
    else:
        say_plan(facts)


def _end(
    job: Job,
    source: Source,
    store: Store,
    parts: PartsPlan,
    mine: Collection[int],
    before: Mapping[int, Counts],
    queue: PartQueue | None = None,
    summary: RunStats | None = None,
    stopped: int = 0,
) -> NoReturn:
    """Print the summary and leave with the exit code."""
    done = done_parts(store, parts) if summary else set(before)
    kept = total(before.values())
    plan = job.plan(ANY_FAMILY)
    plan.num_images = sum(map(parts.num_refs, mine))
    redone = sum(before[index].num_failed for index in queue.again) if queue else 0
    plan.num_finished = kept.num_rows - redone + (queue.num_found if queue else 0)
    source.skipped.clear()
    source.skipped.update(parts.skipped)  # by whoever listed the inputs
    facts = summary_facts(job.out, source, plan, kept.num_failed - redone, summary, stopped=bool(stopped))
    facts |= {"parts": len(mine), "parts_there": len(done & set(mine)), "parts_lost": queue.num_lost if queue else 0}
    if job.text.loop_guard:
        facts |= flag_facts(summary)
    say_damaged(job, source)
    if job.as_json:
        print_json(facts)
    elif not job.quiet:
        say_summary(facts)
        say(f"{facts['parts_there']} of {facts['parts']} parts are there")
    if stopped:
        if not job.quiet:
            say(f"Stopped. {go_on(job, begun=True)}")
        raise typer.Exit(stopped)
    sweep(store, parts, done)
    unchanged = {index: counts for index, counts in before.items() if queue is None or index not in queue.again}
    made = read_counts(store, parts, sorted(set(mine) - unchanged.keys()))
    unread = sum(parts.skipped.get(reason, 0) for reason in ("unreadable_folder", "unreadable_archive"))
    bad = total((*unchanged.values(), *made.values())).num_failed + unread
    raise typer.Exit(_SOME_FAILED if bad else 0)


def _text(value: object) -> object:
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
