"""A run of `caption`, `vqa`, `match` or `embed`: runs a job, prints progress and summary, chooses the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from blip2cap.cli.options import ReportOptions
from blip2cap.cli.progress import Progress, Silent, choose_progress
from blip2cap.cli.report import (
    Failures,
    dry_run_facts,
    outcome_facts,
    print_json,
    say_dry_run,
    say_outcome,
    token_facts,
)
from blip2cap.cli.resume import hides_secrets, this_command
from blip2cap.cli.signals import Stop, Stopped, stop_on_signal
from blip2cap.cli.terminal import clean, say
from blip2cap.errors import SOME_FAILED, ImageError, OutputError, UsageError
from blip2cap.jobs.job import Count, Job, Listener
from blip2cap.options import Kind
from blip2cap.records import ImageRef
from blip2cap.scale.options import RayOptions

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats


class TerminalListener(Listener):
    """Prints the messages and the progress of a run to stderr."""

    def __init__(self, options: ReportOptions, stop: Stop, *, rows_on_stdout: bool = False) -> None:
        self.options, self.stop, self.quiet = options, stop, options.quiet
        self._rows_on_stdout = rows_on_stdout
        self._progress: Progress = Silent()
        self._failures = Failures(self._say_beside_progress, verbose=options.verbose, quiet=options.quiet)

    def say(self, line: str) -> None:
        """Print a line, unless --quiet is given."""
        if not self.options.quiet:
            self._progress.say(clean(line))

    def begin(self, count: Count | None) -> None:
        """Start the progress display; from here on a signal is only noted."""
        self.stop.only_note()
        rows_on_terminal = self._rows_on_stdout and sys.stdout.isatty()
        self._progress = choose_progress(quiet=self.options.quiet, rows_on_terminal=rows_on_terminal, count=count)

    def progress(self, stats: RunStats) -> None:
        """Update the progress display."""
        self._progress.update(stats.num_images, stats.num_failed)

    def workers(self, num_alive: int) -> None:
        """Show the number of processes."""
        self._progress.workers(num_alive)

    def failure(self, ref: ImageRef, error: ImageError) -> None:
        """Name the image, if it is among the first that fail."""
        self._failures.add(ref, error)

    def end(self) -> None:
        """Remove the progress display."""
        self._progress.close()
        self._progress = Silent()
        self._failures.close()

    def _say_beside_progress(self, line: str) -> None:
        self._progress.say(line)


def start(job: Job, options: ReportOptions, ray: RayOptions) -> None:
    """Run a job, here or on a cluster. Raises Blip2CapError, or typer.Exit with a code other than 0."""
    check_stream(job.kind, options)
    if ray.address is not None:
        from blip2cap.scale.run import check_job

        check_job(job, ray)
    with stop_on_signal(quiet=options.quiet) as stop:
        if options.dry_run:
            return _dry_run(job, options)
        try:
            _run(job, options, ray, stop)
        except Stopped:
            if not options.quiet:
                say(f"Stopped before the first row. {how_to_resume(job, begun=False)}")
            raise


def check_stream(kind: Kind, options: ReportOptions) -> None:
    """Raise UsageError or OutputError if rows are to go to standard output and cannot."""
    if kind is Kind.STREAM and options.as_json:
        raise UsageError("--json and --out - exclude each other: rows go to standard output. Leave one out.")
    if kind is Kind.STREAM and sys.stdout is None:
        raise OutputError("--out -: standard output is closed.")


def _run(job: Job, options: ReportOptions, ray: RayOptions, stop: Stop) -> None:
    listener = TerminalListener(options, stop, rows_on_stdout=job.kind is Kind.STREAM)
    stdout = sys.stdout.buffer if job.kind is Kind.STREAM else None
    if ray.address is not None:
        from blip2cap.scale.run import run_on_ray

        outcome = run_on_ray(job, ray, listener=listener, stopped=lambda: stop.signal != 0)
    else:
        from blip2cap.jobs.run import run_job

        outcome = run_job(job, listener=listener, stopped=lambda: stop.signal != 0, stdout=stdout)
    for line in outcome.damaged:
        listener.say(line)
    facts = outcome_facts(outcome, flags="flag" in job.task.schema.names)
    if job.model.on_server and (stats := outcome.stats) is not None:
        facts |= token_facts(stats.num_prompt_tokens, stats.num_text_tokens, job.model.server)
    if options.as_json:
        print_json(facts)
    elif not options.quiet:
        say_outcome(facts, nothing_to_do=outcome.stats is None)
    if outcome.stopped:
        listener.say(f"Stopped. {how_to_resume(job, begun=True)}")
        raise typer.Exit(stop.exit_code)
    if outcome.error is not None:
        raise outcome.error
    raise typer.Exit(0 if outcome.complete else SOME_FAILED)


def _dry_run(job: Job, options: ReportOptions) -> None:
    from blip2cap.jobs.run import dry_run

    found = dry_run(job)
    for line in found.damaged if not options.quiet else ():
        say(clean(line))
    facts = dry_run_facts(found)
    if job.model.on_server:
        facts |= token_facts(*job.estimate_tokens(found.num_rows_to_do), job.model.server)
    if options.as_json:
        print_json(facts)
    else:
        say_dry_run(facts)


def how_to_resume(job: Job, *, begun: bool) -> str:
    """Return the command that resumes a run; if it has `begun`, without --overwrite, which would delete its rows."""
    if job.kind is Kind.STREAM:
        return "The rows so far went to standard output; the same command starts from the beginning."
    safe = "The rows so far are safe. " if begun else ""
    if begun and job.output.overwrite and "--overwrite" not in sys.argv:
        safe += "Overwriting is set by --config or BLIP2CAP_OVERWRITE: turn it off first. "
    paths = ", with the same paths on standard input" if "-" in (*job.source.inputs, *job.source.files_from) else ""
    if hides_secrets():
        paths += ", with the URLs filled in again (users, passwords and queries are not shown)"
    return f"{safe}To resume{paths}: {this_command(without='--overwrite' if begun else None)}"
