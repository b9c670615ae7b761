"""One run of any task with any model and output: the command line, Python and clusters call `run_job`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blip2cap.decode.trace import Trace, trace_path
from blip2cap.errors import Blip2CapError, InputError, UsageError
from blip2cap.jobs.context import Context, make_context, open_source
from blip2cap.jobs.job import (
    Count,
    DryRun,
    Job,
    Listener,
    Outcome,
    all_skipped,
    count_requests,
    no_image,
    suspects_message,
)
from blip2cap.key_set import KeySet
from blip2cap.models.base import Model
from blip2cap.options import Kind
from blip2cap.outputs.base import Output
from blip2cap.outputs.existing_rows import Journal
from blip2cap.outputs.open import open_output, read_file
from blip2cap.source.inputs import ImageStream, Source
from blip2cap.tasks.base import Request, Worklist

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats
    from blip2cap.records import ImageRef


def run_job(
    job: Job,
    *,
    listener: Listener | None = None,
    stopped: Callable[[], bool] = lambda: False,
    model: Model | None = None,
    stdout: BinaryIO | None = None,
    source: Source | None = None,
) -> Outcome:
    """Run a job until it is complete, or until `stopped` returns True and the images in the model are complete.

    Quick checks come first: no model is downloaded for a run that will be refused. `model` is a loaded model that
    replaces the one that `job.model` names; `stdout` receives the rows of the output `-`; `source` are the
    inputs of the job if they are open already. Raises Blip2CapError.
    """
    source = open_source(job) if source is None else source
    if job.kind is Kind.PARTS:
        from blip2cap.jobs.parts import run_parts_job

        return run_parts_job(job, source, listener=listener, stopped=stopped, model=model)
    with closing(open_output(job.output, stdout)) as output:
        context = make_context(job, listener=listener, stopped=stopped, model=model, source=source)
        if job.kind is Kind.STREAM:  # such a run cannot be resumed, so no run would read a trace
            return _run(context, output, None)
        with closing(Trace(trace_path(Path(job.output.out)))) as trace:
            return _run(context, output, trace)


def _run(context: Context, output: Output, trace: Trace | None) -> Outcome:
    """Run a job into a file or a stream."""
    job, source, dtype = context.job, context.source, context.dtype
    if output.made_with is not None:
        if dtype == "auto":
            dtype = output.made_with.get("dtype", dtype)  # all texts of an output have one dtype
        root = output.made_with.get("input_root", "")
        if job.output.same_inputs:
            output.move(_new_root(context.settings, root, job, source, output.finished))
        elif root != context.settings.get("input_root", ""):
            source.continue_from_elsewhere(root, output.first_key)
        output.check(context.settings | {"dtype": dtype})
    worklist = Worklist(job.task)
    stream, refs = _images(job, source, worklist, output.finished, output.retry)
    asked = _Asked(output.finished, output.failed_keys, output.num_failed)
    requests = worklist.requests(refs, asked.finished)
    first = next(requests, None)
    if worklist.num_images == 0:
        raise InputError(no_image(source, all_skipped(stream, worklist), job.task))
    stats = None
    if first is None:
        output.finish(stopped=False)
    else:
        stats = _make_rows(context, output, trace, dtype, itertools.chain([first], requests))
    stopped = stats is not None and context.stopped()
    if job.task.labels is None and not stopped:
        _say_not_asked(context, output, worklist)
    return Outcome(
        out=context.out,
        num_images=worklist.num_images,
        num_rows_before=worklist.num_finished,
        num_failed_before=asked.num_failed,
        num_failed_not_asked=0 if stopped else asked.num_failed_not_asked,
        skipped=all_skipped(stream, worklist),
        damaged=tuple(stream.damaged),
        stats=stats,
        stopped=stopped,
    )


def _say_not_asked(context: Context, output: Output, worklist: Worklist) -> None:
    """Say how many rows of a file belong to captions that were edited, or to other images."""
    num_rows = len(output.finished) - worklist.num_finished
    if num_rows > 0:
        rows = "1 existing row is" if num_rows == 1 else f"{num_rows} existing rows are"
        context.listener.say(
            f"{context.out}: {rows} of captions that are no longer there, or of other images, and kept. Use another "
            "--out, or --overwrite, for a file without them."
        )


def _new_root(settings: Mapping[str, Any], old: str, job: Job, source: Source, finished: Container[str]) -> str:
    """Return the root of the inputs, for --same-inputs.

    Raises UsageError if names are not relative to a root, or if no image has a row by its name there.
    """
    root = str(settings.get("input_root", ""))
    if not root:
        raise UsageError(
            "--same-inputs: expected a folder as the only INPUT, or relative paths: rows of absolute paths have their "
            "names, wherever the command is run."
        )
    if root != old and not source.from_pipe:
        requests = Worklist(job.task).requests(source.stream(), frozenset())
        if not old or not any(key in finished for request in requests for key in request.keys):
            raise UsageError(
                f"--same-inputs: no image has a row of that name relative to {root}; the rows of {job.output.out} are "
                f"{f'relative to {old}' if old else 'absolute'}. Give what was that folder, or use another --out."
            )
    return root


class _Asked:
    """The finished rows of an output, which counts the failed ones among those that it is asked for."""

    def __init__(self, finished: Container[str], failed: Container[str], num_failed_in_all: int) -> None:
        self._finished, self._failed, self._num_failed_in_all = finished, failed, num_failed_in_all
        self.num_failed = 0
        """Number of failed rows that were asked for, without those that are retried."""

    @property
    def finished(self) -> Container[str]:
        """The container to ask; without failed rows there is nothing to count, which takes less time."""
        return self if self._num_failed_in_all else self._finished

    @property
    def num_failed_not_asked(self) -> int:
        """Number of failed rows that were not asked for."""
        return self._num_failed_in_all - self.num_failed

    def __contains__(self, key: object) -> bool:
        if key not in self._finished:
            return False
        self.num_failed += key in self._failed
        return True


def _make_rows(
    context: Context, output: Output, trace: Trace | None, dtype: str, requests: Iterator[Request]
) -> RunStats:
    """Load the model while the first images are decoded, then write the rows of all requests."""
    job, listener, stopped = context.job, context.listener, context.stopped
    if trace and (num_suspects := trace.num_suspects):
        listener.say(suspects_message(context.out, num_suspects))
    context.announce_model()
    from blip2cap.engine.run import run
    from blip2cap.jobs.makers import make_maker
    from blip2cap.workers.devices import LARGE

    first: list[Request] = []

    def is_large() -> bool:
        if context.source.repeatable:  # a pipe, or a bucket, may be slow
            first.extend(itertools.islice(requests, LARGE))
        return len(first) == LARGE

    with closing(make_maker(context, dtype, is_large)) as maker:
        requests = itertools.chain(first, requests)
        with closing(maker.read_ahead(requests, trace)) as images_ahead:
            dtype = maker.load()
            with context.running(_counter(job, context.source, output)):
                output.begin({**context.settings, "dtype": dtype})
                if output.torn_bytes:
                    torn = f"a torn last line of {output.torn_bytes} bytes"
                    listener.say(f"{context.out}: removed {torn}; its image will be processed again")
                stats = run(maker, images_ahead, output, on_batch=listener.progress, stopped=stopped)
    if trace and not stopped() and job.source.limit is None:
        trace.forget()
    return stats


def _images(
    job: Job,
    source: Source,
    worklist: Worklist,
    finished: Container[str],
    retry: Callable[[Container[str], Collection[str]], Any],
) -> tuple[ImageStream, Iterable[ImageRef]]:
    """Return a stream of the inputs, and its images; to retry, walk them once before to find their keys."""
    stream = source.stream()
    if not job.output.retries:
        return stream, stream
    refs = list(stream) if source.from_pipe else stream
    asked = KeySet(key for request in worklist.requests(refs, finished) for key in request.keys)
    retry(asked, job.output.retry_only)
    if source.from_pipe:
        return stream, refs
    stream = source.stream()
    return stream, stream


def _counter(job: Job, source: Source, output: Output) -> Count | None:
    """Return a function that counts the images to do in a second walk, which keeps no names in memory."""
    if not source.repeatable:
        return None

    def count(given_up: Callable[[], bool]) -> int:
        refs = itertools.takewhile(lambda ref: not given_up(), source.stream(ordered=False))
        try:
            return sum(1 for _ in Worklist(job.task).requests(refs, output.finished))
        except Blip2CapError:
            return 0  # the run meets it too, and reports it

    return count


def dry_run(job: Job) -> DryRun:
    """Return what a run would do, without a lock, a model or a write. Raises what a run would raise."""
    source = open_source(job)
    if job.kind is Kind.PARTS:
        from blip2cap.jobs.parts import dry_run_parts

        return dry_run_parts(job, source)
    journal = Journal()
    if job.kind is not Kind.STREAM and not job.output.overwrite:
        manifest, journal = read_file(job.output.out, job.kind, retry_failed=job.output.retries)
        if manifest is not None:
            known, root = job.known_settings(source), manifest.settings.get("input_root", "")
            if job.output.same_inputs:
                manifest = manifest.moved(_new_root(known, root, job, source, journal.finished))
            elif root != known.get("input_root", ""):
                source.continue_from_elsewhere(root, journal.first_key)
                known = job.known_settings(source)
            made = {name: value for name, value in manifest.settings.items() if name != "input_root"}
            manifest.check(made | known, Path(job.output.out).name)  # what only the model knows is not compared
    worklist = Worklist(job.task)
    stream, refs = _images(job, source, worklist, journal.finished, journal.take_out)
    asked = _Asked(journal.finished, journal.failed_keys, journal.num_failed)
    found = count_requests(job, source, stream, worklist, worklist.requests(refs, asked.finished))
    return replace(found, num_failed_before=asked.num_failed, num_failed_not_asked=asked.num_failed_not_asked)
