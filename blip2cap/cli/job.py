"""One run of `caption` or `vqa` from checked options to the exit code."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from blip2cap.cli.progress import choose_progress
from blip2cap.cli.report import Failures, no_image, plan_facts, print_json, say_plan, say_summary, summary_facts
from blip2cap.cli.signals import Stop, stop_on_signal
from blip2cap.cli.terminal import clean, say
from blip2cap.errors import InputError, OutputError, UsageError
from blip2cap.options import (
    BatchOptions,
    DecodeOptions,
    GenerateOptions,
    ModelOptions,
    SourceOptions,
)
from blip2cap.plan import Plan, Task
from blip2cap.prompts import CAPTION_PROMPTS, VQA_TEMPLATES, Template
from blip2cap.sink import Journal, JournalSink, StreamSink, read_output
from blip2cap.source import Source

if TYPE_CHECKING:
    import torch

    from blip2cap.model.blip2 import Blip2
    from blip2cap.model.checkpoint import Checkpoint
    from blip2cap.run import ReadAhead, Summary

_SOME_FAILED = 3
_ANY_FAMILY = "opt"
"""Where only the model's family is open: its prompt does not change what is to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that a command was asked to do."""

    command: str
    source: SourceOptions
    decode: DecodeOptions
    model: ModelOptions
    batch: BatchOptions
    generate: GenerateOptions
    template: str | None
    """None: what the model's family expects."""
    questions: tuple[str, ...] | None
    """None: captions."""
    out: str
    overwrite: bool
    quiet: bool
    verbose: bool
    as_json: bool

    def start(self, *, dry_run: bool) -> None:
        """Do it. Raises Blip2CapError, or typer.Exit with a code other than 0.

        What is quick to check comes first: no model is fetched for a run that is going to be refused.
        """
        self._check_options()
        plan = self._plan(_ANY_FAMILY)
        source = Source(self.source)
        if source.repeatable and next(iter(source), None) is None:
            raise InputError(no_image(source))
        if dry_run:
            return self._dry_run(source, plan)
        sink = (
            StreamSink(sys.stdout.buffer) if self.out == "-" else JournalSink(Path(self.out), overwrite=self.overwrite)
        )
        try:
            self._run(source, sink)
        finally:
            sink.close()

    def _run(self, source: Source, sink: JournalSink | StreamSink) -> None:
        from blip2cap.model.checkpoint import find

        checkpoint = find(self.model)
        plan = self._plan(checkpoint.family)
        settings = self._settings(source) | self._model_settings(checkpoint)
        dtype = self.model.dtype
        if isinstance(sink, JournalSink) and sink.manifest is not None and sink.journal.num_bytes:
            if dtype == "auto":
                dtype = sink.manifest.settings.get("dtype", dtype)  # the texts go on as they began
            sink.check(settings | {"dtype": dtype})
        tasks = plan.tasks(source, sink.finished)
        first = next(tasks, None)
        if plan.num_images == 0:
            raise InputError(no_image(source))
        if first is None:
            self._end(source, plan, sink, None)

        with self._read_ahead(checkpoint, itertools.chain([first], tasks)) as images:
            model = self._load(checkpoint, dtype)
            model.check(self.generate)
            sink.begin(settings | {"dtype": _name(model.dtype)})
            if isinstance(sink, JournalSink) and sink.journal.torn_bytes and not self.quiet:
                say(f"{clean(self.out)}: cut a torn last line of {sink.journal.torn_bytes} bytes, to be done again")
            with stop_on_signal(quiet=self.quiet) as stop:
                count = self._counter(sink) if source.repeatable else None
                summary = self._write_rows(model, images, sink, stop, count)
        self._end(source, plan, sink, summary, stop.exit_code if stop.signal else 0)

    def _read_ahead(self, checkpoint: Checkpoint, tasks: Iterator[Task]) -> closing[ReadAhead]:
        """Begin to read and decode, before the model is there: loading one may take a minute. This imports torch."""
        if not self.quiet:
            say(f"loading {clean(checkpoint.name)} ...")
        from blip2cap.run import ReadAhead

        return closing(ReadAhead(tasks, self.decode, checkpoint.image_size, self.batch))

    def _load(self, checkpoint: Checkpoint, dtype: str) -> Blip2:
        """Load the model, and say how it computes."""
        from blip2cap.model.load import load

        model = load(checkpoint, replace(self.model, dtype=dtype))
        if not self.quiet:
            size = f"{self.batch.batch_size} at once" if self.batch.batch_size else "batch size to be measured"
            say(f"{clean(checkpoint.name)}: {_name(model.dtype)} on {model.device}, {size}")
            if reason := model.why_library():
                say(f"texts are generated by transformers, which waits for the longest of a batch: {reason}")
        return model

    def _write_rows(
        self,
        model: Blip2,
        images: ReadAhead,
        sink: JournalSink | StreamSink,
        stop: Stop,
        count: Callable[[], int] | None,
    ) -> Summary:
        from blip2cap.run import Engine, run

        rows_on_terminal = self.out == "-" and sys.stdout.isatty()
        progress = choose_progress(quiet=self.quiet, rows_on_terminal=rows_on_terminal, count=count)
        failures = Failures(progress.say, verbose=self.verbose, quiet=self.quiet)
        engine = Engine(
            model=model,
            generate=self.generate,
            decode=self.decode,
            batch=self.batch,
            on_failure=failures.add,
        )
        try:
            return run(
                engine,
                images,
                sink,
                on_batch=lambda summary: progress.update(summary.num_images, summary.num_failed),
                stopped=lambda: stop.signal != 0,
            )
        finally:
            progress.close()
            failures.close()

    def _dry_run(self, source: Source, plan: Plan) -> None:
        """Say what a run would do, without the lock, the model or a write."""
        journal = Journal()
        if self.out != "-" and not self.overwrite:
            path = Path(self.out)
            manifest, journal = read_output(path)
            if manifest is not None and journal.num_bytes:
                manifest.check({**manifest.settings, **self._known_settings(source)}, path.name)
        facts = plan_facts(self.out, source, plan, journal.finished, journal.num_failed)
        if plan.num_images == 0:
            raise InputError(no_image(source))
        if self.as_json:
            print_json(facts)
        else:
            say_plan(facts)

    def _check_options(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose exclude each other.")
        if self.out == "-":
            if sys.stdout is None:
                raise OutputError("--out -: standard output is closed.")
            if self.overwrite or self.as_json:
                flag = "--overwrite" if self.overwrite else "--json"
                raise UsageError(f"{flag} and --out - exclude each other: rows go to standard output. Leave one out.")
        elif Path(self.out).suffix.lower() != ".jsonl":
            raise UsageError(f"--out {self.out}: must end in .jsonl, or be `-` for standard output.")

    def _plan(self, family: str) -> Plan:
        if self.questions is None:
            return Plan(Template(CAPTION_PROMPTS[family] if self.template is None else self.template))
        text = VQA_TEMPLATES[family] if self.template is None else self.template
        return Plan(Template(text, option="--template", question=True), self.questions)

    @property
    def _template_name(self) -> str:
        return "prompt" if self.questions is None else "template"

    def _settings(self, source: Source) -> dict[str, Any]:
        """Everything that changes a text or a name, but for what only the model knows.

        Questions are not among them: each is a row of its own.
        """
        generate = asdict(self.generate)
        if not self.generate.sampling:
            del generate["seed"]
        root = os.fsencode(source.root).decode("utf-8", "backslashreplace")
        inputs = {"decode": self.decode.mode, "input_root": root}
        return {"command": self.command, **generate, "quantize": self.model.quantize, **inputs}

    def _known_settings(self, source: Source) -> dict[str, Any]:
        """The settings as far as they are known without loading a model, or fetching one."""
        from blip2cap.model.checkpoint import find

        settings = self._settings(source)
        if self.model.dtype != "auto":
            settings["dtype"] = self.model.dtype
        if self.model.name == "tiny" or Path(self.model.name).expanduser().is_dir():
            return settings | self._model_settings(find(self.model))
        if self.template is not None:
            settings[self._template_name] = self.template
        return settings | {"model": self.model.name}

    def _model_settings(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The settings that only the model knows."""
        return {
            "model": checkpoint.name,
            "model_commit": checkpoint.commit,
            self._template_name: self._plan(checkpoint.family).template.text,
        }

    def _counter(self, sink: JournalSink | StreamSink) -> Callable[[], int]:
        """Count the images to do by a walk of its own."""
        return lambda: sum(1 for _ in self._plan(_ANY_FAMILY).tasks(Source(self.source), sink.finished))

    def _end(
        self, source: Source, plan: Plan, sink: JournalSink | StreamSink, summary: Summary | None, stopped: int = 0
    ) -> NoReturn:
        """Print the summary and leave with the exit code."""
        facts = summary_facts(self.out, source, plan, sink.num_failed, summary, stopped=bool(stopped))
        if self.as_json:
            print_json(facts)
        elif not self.quiet:
            say_summary(facts)
        if stopped:
            if not self.quiet and self.out != "-":
                again = "the same command without --overwrite" if self.overwrite else "the same command again"
                say(f"Stopped. The rows so far are safe; run {again} to go on.")
            raise typer.Exit(stopped)
        bad = facts["rows_failed"] + facts["rows_failed_before"] + source.skipped["unreadable_folder"]
        raise typer.Exit(_SOME_FAILED if bad else 0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
