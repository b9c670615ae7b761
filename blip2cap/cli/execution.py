"""One run of `caption` or `vqa` from its job to the exit code."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from blip2cap.cli.progress import Count, choose_progress
from blip2cap.cli.report import (
    Failures,
    flag_facts,
    no_image,
    plan_facts,
    print_json,
    say_plan,
    say_summary,
    summary_facts,
)
from blip2cap.cli.resume import hides_secrets, this_command
from blip2cap.cli.signals import Stop, Stopped, stop_on_signal
from blip2cap.cli.terminal import clean, say
from blip2cap.decode.trace import Trace, trace_path
from blip2cap.errors import InputError, UsageError
from blip2cap.jobs.job import ANY_FAMILY, Job
from blip2cap.key_set import KeySet
from blip2cap.outputs import journal as journals
from blip2cap.outputs import parquet
from blip2cap.outputs.base import Output
from blip2cap.outputs.journal import Journal, JournalSink
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.outputs.stream import StreamSink
from blip2cap.records import ImageRef
from blip2cap.tasks.worklist import Request, Worklist

if TYPE_CHECKING:
    import torch

    from blip2cap.engine.run import Engine, ReadAhead, RunStats
    from blip2cap.models.blip2.model import Blip2
    from blip2cap.models.checkpoint import Checkpoint
    from blip2cap.source.inputs import Source

_SOME_FAILED = 3


def start(job: Job, *, dry_run: bool) -> None:
    """Do it. Raises Blip2CapError, or typer.Exit with a code other than 0.

    What is quick to check comes first: no model is fetched for a run that is going to be refused.
    """
    from blip2cap.source.inputs import Source  # late, as --help needs none of what archives and tables are read with

    job.check_options()
    plan = job.plan(ANY_FAMILY)
    with stop_on_signal(quiet=job.quiet) as stop:
        source = Source(job.source)
        if source.repeatable and next(source.unordered(), None) is None:
            raise InputError(no_image(source))
        _spare_inputs(job, source)
        if dry_run and not job.to_parts:
            return _dry_run(job, source, plan)
        try:
            if job.to_parts:
                from blip2cap.cli.parts import start_parts

                start_parts(job, source, stop, dry_run=dry_run)
            else:
                with closing(_open(job)) as sink:
                    _run(job, source, sink, stop)
        except Stopped:
            if not job.quiet:
                say(f"Stopped before the first row. {go_on(job, begun=False)}")
            raise


def _spare_inputs(job: Job, source: Source) -> None:
    """Raise UsageError if an input would be written over: a table of images, a list of paths."""
    outputs = [job.out, f"{job.out}.jsonl"] if job.out.lower().endswith(".parquet") else [job.out]
    for given in (*source.inputs, *job.source.files_from):
        for out in outputs:
            if os.path.isfile(given) and os.path.exists(out) and os.path.samefile(out, given):
                raise UsageError(f"--out {job.out}: would write over the input {given}. Use another --out.")


def _open(job: Job) -> Output | StreamSink:
    """Open the output, by the ending of its name."""
    if job.out == "-":
        return StreamSink(sys.stdout.buffer)
    path = Path(job.out)
    kind = ParquetSink if path.suffix.lower() == ".parquet" else JournalSink
    return kind(path, overwrite=job.overwrite, retry_failed=job.retry_failed)


def _run(job: Job, source: Source, sink: Output | StreamSink, stop: Stop) -> None:
    from blip2cap.models.checkpoint import find

    checkpoint = find(job.model)
    plan = job.plan(checkpoint.family)
    settings = job.settings(source) | job.model_settings(checkpoint)
    dtype = job.model.dtype
    if not isinstance(sink, StreamSink) and sink.made_with is not None:
        if dtype == "auto":
            dtype = sink.made_with.get("dtype", dtype)  # the texts go on as they began
        sink.check(settings | {"dtype": dtype})
    refs: Iterable[ImageRef] = source
    if job.retry_failed and not isinstance(sink, StreamSink):
        refs = list(source) if source.from_pipe else source
        sink.retry(KeySet(key for task in plan.requests(refs, sink.finished) for key in task.keys))
    tasks = plan.requests(refs, sink.finished)
    first = next(tasks, None)
    if plan.num_images == 0:
        raise InputError(no_image(source))
    if first is None:
        sink.finish(stopped=False)
        _end(job, source, plan, sink, None)

    with (
        _trace(job) as trace,
        _read_ahead(job, checkpoint, itertools.chain([first], tasks), trace) as images,
    ):
        model = load_model(job, checkpoint, dtype)
        model.check(job.generate)
        stop.only_note()
        sink.begin(settings | {"dtype": _name(model.dtype)})
        if not isinstance(sink, StreamSink) and sink.torn_bytes and not job.quiet:
            say(f"{clean(job.out)}: cut a torn last line of {sink.torn_bytes} bytes, to be done again")
        count = _counter(job, sink) if source.repeatable else None
        summary = _write_rows(job, model, images, sink, stop, count)
        if trace and not stop.signal and job.source.limit is None:
            trace.forget()
    _end(job, source, plan, sink, summary, stop.exit_code if stop.signal else 0)


@contextmanager
def _trace(job: Job) -> Iterator[Trace | None]:
    """Note which images are being decoded, and say so if a run died of one; rows on a stream are not resumed."""
    if job.out == "-":
        yield None
        return
    with closing(Trace(trace_path(Path(job.out)))) as trace:
        if (num_suspects := trace.num_suspects) and not job.quiet:
            images = "1 image that was" if num_suspects == 1 else f"{num_suspects} images that were"
            say(f"{clean(job.out)}: an earlier run died; {images} being decoded then will be in a process apart")
        yield trace


def _read_ahead(job: Job, checkpoint: Checkpoint, tasks: Iterator[Request], trace: Trace | None) -> closing[ReadAhead]:
    """Begin to read and decode, before the model is there: loading one may take a minute. This imports torch."""
    if not job.quiet:
        say(f"loading {clean(checkpoint.name)} ...")
    from blip2cap.engine.run import ReadAhead

    return closing(ReadAhead(tasks, job.decode, checkpoint.image_size, job.batch, trace))


def load_model(job: Job, checkpoint: Checkpoint, dtype: str) -> Blip2:
    """Load the model, and say how it computes."""
    from blip2cap.models.blip2.load import load

    model = load(checkpoint, replace(job.model, dtype=dtype))
    if not job.quiet:
        size = f"{job.batch.batch_size} at once" if job.batch.batch_size else "batch size to be measured"
        say(f"{clean(checkpoint.name)}: {_name(model.dtype)} on {model.device}, {size}")
        if reason := model.why_library():
            say(f"texts are generated by transformers, which waits for the longest of a batch: {reason}")
    return model


def _write_rows(
    job: Job,
    model: Blip2,
    images: ReadAhead,
    sink: Output | StreamSink,
    stop: Stop,
    count: Count | None,
) -> RunStats:
    from blip2cap.engine.run import run

    with watched_engine(job, model, count) as (engine, on_batch):
        return run(engine, images, sink, on_batch=on_batch, stopped=lambda: stop.signal != 0)


@contextmanager
def watched_engine(job: Job, model: Blip2, count: Count | None) -> Iterator[tuple[Engine, Callable[[RunStats], None]]]:
    """Give the engine of a run, whose failures are named, and what moves its progress on after each batch."""
    from blip2cap.engine.run import Engine

    rows_on_terminal = job.out == "-" and sys.stdout.isatty()
    progress = choose_progress(quiet=job.quiet, rows_on_terminal=rows_on_terminal, count=count)
    failures = Failures(progress.say, verbose=job.verbose, quiet=job.quiet)
    engine = Engine(
        model=model,
        generate=job.generate,
        text=job.text,
        decode=job.decode,
        batch=job.batch,
        on_failure=failures.add,
    )
    try:
        yield engine, lambda summary: progress.update(summary.num_images, summary.num_failed)
    finally:
        progress.close()
        failures.close()


def _dry_run(job: Job, source: Source, plan: Worklist) -> None:
    """Say what a run would do, without the lock, the model or a write."""
    journal = Journal()
    if job.out != "-" and not job.overwrite:
        path = Path(job.out)
        read = parquet.read_output if path.suffix.lower() == ".parquet" else journals.read_output
        manifest, journal = read(path, retry_failed=job.retry_failed)
        if manifest is not None:
            manifest.check({**manifest.settings, **job.known_settings(source)}, path.name)
    refs: Iterable[ImageRef] = source
    if job.retry_failed:
        refs = list(source) if source.from_pipe else source
        journal.take_out(KeySet(key for task in plan.requests(refs, journal.finished) for key in task.keys))
    facts = plan_facts(job.out, source, plan, journal.finished, journal.num_failed, refs)
    say_damaged(job, source)
    if plan.num_images == 0:
        raise InputError(no_image(source))
    if job.as_json:
        print_json(facts)
    else:
        say_plan(facts)


def say_damaged(job: Job, source: Source) -> None:
    """Say which archives could not be read to their end."""
    if not job.quiet:
        for line in source.damaged:
            say(clean(line))


def _counter(job: Job, sink: Output | StreamSink) -> Count:
    """Count the images to do by a walk of its own, which holds no names."""
    from blip2cap.source.inputs import Source

    def count(given_up: Callable[[], bool]) -> int:
        refs = itertools.takewhile(lambda ref: not given_up(), Source(job.source).unordered())
        return sum(1 for _ in job.plan(ANY_FAMILY).requests(refs, sink.finished))

    return count


def _end(
    job: Job, source: Source, plan: Worklist, sink: Output | StreamSink, summary: RunStats | None, stopped: int = 0
) -> NoReturn:
    """Print the summary and leave with the exit code."""
    facts = summary_facts(job.out, source, plan, sink.num_failed, summary, stopped=bool(stopped))
    if job.text.loop_guard:
        facts |= flag_facts(summary)
    say_damaged(job, source)
    if job.as_json:
        print_json(facts)
    elif not job.quiet:
        say_summary(facts)
    if stopped:
        if not job.quiet:
            say(f"Stopped. {go_on(job, begun=True)}")
        raise typer.Exit(stopped)
    unread = source.skipped["unreadable_folder"] + source.skipped["unreadable_archive"]
    bad = facts["rows_failed"] + facts["rows_failed_before"] + unread
    raise typer.Exit(_SOME_FAILED if bad else 0)


def go_on(job: Job, *, begun: bool) -> str:
    """Say which command goes on; with --overwrite, and `begun`, it would throw away the rows that it is about."""
    if job.out == "-":
        return "The rows so far went to standard output; the same command begins anew."
    safe = "The rows so far are safe. " if begun else ""
    if begun and job.overwrite and "--overwrite" not in sys.argv:
        safe += "Overwriting is set by --config or BLIP2CAP_OVERWRITE: turn it off first. "
    paths = ", with the same paths on standard input" if "-" in (*job.source.inputs, *job.source.files_from) else ""
    if hides_secrets():
        paths += ", with the URLs filled in again (users, passwords and queries are not shown)"
    return f"{safe}To go on{paths}: {this_command(without='--overwrite' if begun else None)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
