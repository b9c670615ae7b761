"""The parts of a run into a folder: the plan, which is found or made, and the parts that are missing.

Nothing is computed here: one process, or the actors of a cluster, make the parts (`jobs/parts.py`, `scale/`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from blip2cap import urls
from blip2cap.errors import InputError
from blip2cap.jobs.context import Context, make_context
from blip2cap.jobs.job import Job, Listener, no_image
from blip2cap.models.base import Checkpoint, Model, dtype_name
from blip2cap.outputs.parts.counts import Counts, done_parts, read_counts, stray_files
from blip2cap.outputs.parts.part import sweep
from blip2cap.outputs.parts.plan import PART_SIZE, PartsPlan, labels_setting, make_plan, read_plan
from blip2cap.outputs.parts.store import Store, open_store
from blip2cap.outputs.read import ignored_message
from blip2cap.source.inputs import Source

_PLANNED = ("inputs", "files_from", "null_separated", "limit", "include", "exclude", "image_column")
"""Fields of SourceOptions that decide which inputs are listed. A fixed list: a plan must not depend on fields that a
later release adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsWork:
    """The parts that a run has to make in a folder, and those that exist, before it is decided who makes them."""

    context: Context
    plan: PartsPlan
    mine: Set[int]
    """Parts that belong to this run; --shard leaves out others."""
    done: Set[int]
    """All parts that existed, those of other shards too."""
    before: Mapping[int, Counts]
    """Counts of those of this run that existed."""
    todo: Sequence[int]
    """Parts to make, in this order."""
    again: Set[int]
    """Those of them that exist, and whose failed rows are retried."""
    num_retried: int
    """Number of these rows."""
    damaged: Sequence[str]
    """Messages about archives that could not be read completely."""

    @property
    def num_images(self) -> int:
        """Number of images to do."""
        return sum(map(self.plan.num_refs, self.mine - self.before.keys())) + num_images_of(self.plan, self.num_retried)

    @property
    def dtype(self) -> str:
        """Dtype that was given, or else that of the plan: all its texts have one dtype."""
        return _dtype(self.context, self.plan)


def prepare_parts(
    job: Job,
    source: Source,
    *,
    listener: Listener | None,
    stopped: Callable[[], bool],
    model: Model | None = None,
    automatic_dtype: Callable[[Context], str] | None = None,
) -> PartsWork:
    """Find or make the plan, and decide which parts to make. Raises Blip2CapError.

    `automatic_dtype` chooses the dtype `auto` of a new plan; if left out, it is chosen for this machine.
    """
    store = open_store(job.output.out)
    plan = read_plan(store)
    context = make_context(job, listener=listener, stopped=stopped, model=model, source=source)
    job, damaged = context.job, list[str]()
    settings = context.settings | settings_of_parts(job, source)
    if plan is not None:
        _check(context, plan, settings)
    store.prepare()
    if plan is None:
        plan, damaged = _make_plan(context, store, settings, automatic_dtype)
        _check(context, plan, settings)  # it may be the plan of another process
    else:
        _say_plan(context, plan)

    mine = {index for index in range(plan.num_parts) if job.output.takes(index)}
    done = done_parts(store, plan)
    before = read_counts(store, plan, sorted(mine & done))
    sweep(store, plan, done)
    retried = {index: num for index, counts in before.items() if (num := job.output.num_retried(counts.failed))}
    return PartsWork(
        context=context,
        plan=plan,
        mine=mine,
        done=done,
        before=before,
        todo=_in_turn(store, job, sorted(mine - done)) + sorted(retried),
        again=retried.keys(),
        num_retried=sum(retried.values()),
        damaged=damaged,
    )


def settings_of_parts(job: Job, source: Source) -> dict[str, Any]:
    """Return the settings of a plan that change no result: the listed inputs, and the rows of each."""
    options = {name: getattr(job.source, name) for name in _PLANNED}
    if [source.root] == [os.path.realpath(given) for given in job.source.inputs]:
        options["inputs"] = ()  # the single folder, which `input_root` names
    for name in ("inputs", "files_from"):
        options[name] = tuple(map(_without_secrets, options[name]))
    label = job.task.schema.key
    labels = job.task.labels if label else None
    settings: dict[str, Any] = {labels_setting(label): None if labels is None else list(labels)}
    settings |= job.task.labels_settings()
    for name, value in options.items():
        settings[name] = [_text(each) for each in value] if isinstance(value, tuple) else value
    return settings


def _without_secrets(given: str) -> str:
    """Return the name of an input for settings that others may read: secrets in a URL are replaced by a hash."""
    if urls.scheme(given) and not urls.is_http(given):
        return given.rstrip("/")  # the same folder with and without a slash at the end
    shown = urls.shown(given)
    return given if shown == given else f"{shown} #{hashlib.sha256(os.fsencode(given)).hexdigest()[:8]}"


def _text(value: object) -> object:
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value


def _dtype(context: Context, plan: PartsPlan) -> str:
    """Return the dtype that was given, or else that of the plan: all its texts have one dtype."""
    return str(plan.manifest.settings["dtype"]) if context.dtype == "auto" else context.dtype


def _check(context: Context, plan: PartsPlan, settings: Mapping[str, Any]) -> None:
    """Raise OutputRefusedError if the plan was made with other settings."""
    plan.check({**settings, "dtype": _dtype(context, plan)}, context.out)


def choose_dtype(job: Job, checkpoint: Checkpoint) -> str:
    """Return the dtype that `auto` stands for on this machine; `auto` again for a server. Imports torch else."""
    if checkpoint.server:
        return "auto"
    from blip2cap.models import device

    chosen = device.choose_dtype("auto", device.choose_device(job.model.device), checkpoint)
    return dtype_name(chosen)


def _make_plan(
    context: Context, store: Store, settings: Mapping[str, Any], automatic_dtype: Callable[[Context], str] | None
) -> tuple[PartsPlan, list[str]]:
    """List all inputs, as the first process does; return the plan and messages on damaged archives."""
    job, dtype = context.job, context.dtype
    if dtype == "auto":
        dtype = automatic_dtype(context) if automatic_dtype else choose_dtype(job, context.checkpoint)
    num_labels = len(job.task.labels or (None,))  # a part is held in memory, with all rows of an input
    context.listener.say("listing the inputs ...")
    stream = context.source.stream()
    plan = make_plan(
        store,
        stream,
        {**settings, "dtype": dtype},
        part_size=job.output.part_size or max(1, job.task.schema.num_rows(PART_SIZE) // num_labels),
        skipped=stream.skipped,
        labels_of=job.task.labels_of if job.task.labels is None else None,
    )
    if plan is None:
        raise InputError(no_image(context.source, stream.skipped, job.task))
    context.listener.say(f"{context.out}: planned {_size(plan)}")
    return plan, stream.damaged


def _say_plan(context: Context, plan: PartsPlan) -> None:
    created = plan.manifest.created.replace("T", " ").removesuffix("+00:00")
    say, part_size = context.listener.say, context.job.output.part_size
    say(f"{context.out}: {_size(plan)}, as listed {created} UTC; inputs added later need another --out")
    if part_size not in (None, plan.part_size):
        say(f"--part-size {part_size}: has no effect: the parts are already planned")
    if strays := stray_files(plan.store, plan):
        say(ignored_message(context.out, strays))


def _size(plan: PartsPlan) -> str:
    return f"{plan.num_images} images in {plan.num_parts} part{'s' if plan.num_parts != 1 else ''}"


def _in_turn(store: Store, job: Job, missing: Sequence[int]) -> list[int]:
    """Order parts. In a bucket, locks of other processes are not visible, so each process starts at a random part."""
    if not store.shared or not missing or job.output.shard is not None:
        return list(missing)
    first = secrets.randbelow(len(missing))
    return [*missing[first:], *missing[:first]]


def num_images_of(plan: PartsPlan, num_rows: int) -> int:
    """Return how many images a number of rows is about, on average."""
    return round(num_rows * plan.num_images / plan.num_rows) if plan.num_rows else 0
