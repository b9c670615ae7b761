"""`blip2cap train`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip2cap.cli.config import set_defaults
from blip2cap.cli.options import ReportOptions, option, option_of, with_options
from blip2cap.cli.report import print_json
from blip2cap.cli.resume import quote, this_command
from blip2cap.cli.signals import Stop, Stopped, stop_on_signal
from blip2cap.cli.terminal import clean, lost_terminal, say
from blip2cap.errors import UsageError
from blip2cap.options import DEFAULT_MODEL, ModelOptions
from blip2cap.train.options.data import DataOptions
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.options.model import STAGES, OptimOptions, TuneOptions

if TYPE_CHECKING:
    from blip2cap.train.prepare import Prepared
    from blip2cap.train.run import TrainOutcome


class TerminalListener:
    """Prints the lines of a training to stderr; on a terminal below a bar of its steps."""

    def __init__(self, report: ReportOptions, stop: Stop) -> None:
        self._quiet, self._stop = report.quiet, stop
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print a line, unless --quiet is given."""
        if self._quiet:
            return
        if self._bar is None:
            say(clean(line))
        else:
            with lost_terminal():
                self._bar.write(clean(line), file=sys.stderr)

    def begin(self, num_steps: int, done: int) -> None:
        """Show the bar; from here on a signal is only noted."""
        self._stop.only_note()
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=num_steps, initial=done, unit=" steps", file=sys.stderr, dynamic_ncols=True)

    def step(self, done: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


_STOPPED_ELSEWHERE = 143
"""Exit code of a process that ends because another one of its training got a signal: that of SIGTERM."""
_TASK = "blip2cap.train.task"
"""Key of the file of the recipe, and of the task it was written for, in the context of the command."""


def load_recipe(context: typer.Context, name: str | None) -> str | None:
    """Make the options of a recipe the defaults of the command. Raises typer.BadParameter or UsageError."""
    if name is None:
        return None
    from blip2cap.train.recipe_file import SECTIONS, find_recipe, read_recipe

    path = find_recipe(name)
    recipe = read_recipe(path)
    context.meta[_TASK] = path, recipe.get("task")
    for section in SECTIONS:
        set_defaults(context, path, recipe.get(section, {}))
    return name


@with_options(without=["verbose", "dry_run"])
def train(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", show_default=False, help=f"Training: {', '.join(STAGES)}.", rich_help_panel="Input"
        ),
    ],
    data: DataOptions,
    tune: TuneOptions,
    optim: OptimOptions,
    loop: LoopOptions,
    report: ReportOptions,
    model: Annotated[str, option_of(ModelOptions, "name")] = DEFAULT_MODEL,
    revision: Annotated[str | None, option_of(ModelOptions, "revision")] = None,
    random_weights: Annotated[bool, option_of(ModelOptions, "random_weights")] = False,
    out: Annotated[
        Path | None,
        option(
            "-o, --out RUN",
            "Folder for checkpoints, reports and the finished model; made if it does not exist.",
            panel="Output",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        option(
            "--recipe NAME",
            "TOML file with options, or a recipe of the package: stage1, stage2, coco-caption, vqa, lora-24gb or tiny; "
            "flags and variables override it.",
            panel="Input",
            callback=load_recipe,
            is_eager=True,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        option("--dry-run", "Check the data, compute one batch and print its memory; write nothing.", panel="Other"),
    ] = False,
) -> None:
    """Train a model on captions, or on questions and answers.

    caption and vqa fine-tune; stage1 and stage2 are the two stages of BLIP-2's pretraining. If it was stopped or
    killed, the same command continues, with the same result. RUN is then a model: blip2cap caption IMAGES -m RUN.
    Several GPUs: torchrun --nproc-per-node 8 -m blip2cap train ...
    """
    if task not in STAGES:
        raise UsageError(f"{task}: no such task. Expected one of {', '.join(STAGES)}.")
    path, recipe_task = context.meta.get(_TASK, (None, None))
    if recipe_task not in (None, task):
        raise UsageError(f"--recipe {path}: made for {recipe_task}, not for {task}. Use blip2cap train {recipe_task}.")
    if out is None:
        raise UsageError("--out is missing: name the folder of the training, e.g. --out RUN.")
    if not data.data:
        raise UsageError("--data is missing: name a file of images with their texts, e.g. --data train.json.")
    tune.check_stage(task)
    if os.environ.get("RANK", "0") != "0":  # set by launchers: the first of several processes speaks for all
        report = replace(report, quiet=True, as_json=False)
    with stop_on_signal(quiet=report.quiet) as stop:
        from blip2cap.train import run
        from blip2cap.train.prepare import TrainJob

        job = TrainJob(
            task=task,
            out=out,
            model=ModelOptions(name=model, revision=revision, random_weights=random_weights),
            data=data,
            tune=tune,
            optim=optim,
            loop=loop,
        )
        listener = TerminalListener(report, stop)
        try:
            if dry_run:
                prepared = run.dry_run(job, listener=listener)
                if report.as_json:
                    print_json(_dry_run_facts(prepared))
                return
            outcome = run.train(job, listener=listener, stopped=lambda: stop.signal != 0)
        except Stopped:
            listener.say(f"Stopped before the first step. To start again: {this_command()}")
            raise
        finally:
            listener.end()
        if outcome is not None and not outcome.finished:
            listener.say(
                f"Stopped after step {outcome.num_steps} of {outcome.total_steps}. To continue: {this_command()}"
            )
            raise typer.Exit(stop.exit_code if stop.signal else _STOPPED_ELSEWHERE)
        if report.as_json:
            print_json(_facts(out, outcome))
        listener.say(_sentence(task, out, outcome))


def _dry_run_facts(prepared: Prepared) -> dict[str, Any]:
    return {
        "examples": len(prepared.train),
        "val_examples": len(prepared.val or ()),
        "steps": prepared.plan.num_steps,
        "steps_per_epoch": prepared.plan.steps_per_epoch,
        "parameters": prepared.num_parameters,
        "trainable_parameters": prepared.num_trainable,
        "peak_bytes_of_one_batch": prepared.memory.measured,
        "estimated_peak_bytes": prepared.memory.estimate,
    }


def _facts(out: Path, outcome: TrainOutcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"run": str(out), "already_finished": True}
    return {
        "run": str(out),
        "already_finished": False,
        "steps": outcome.num_steps,
        "chosen_step": outcome.chosen_step,
        f"best_val_{outcome.best_by.replace('-', '_')}": outcome.best_value,
        "seconds": round(outcome.seconds, 1),
    }


def _sentence(task: str, out: Path, outcome: TrainOutcome | None) -> str:
    verb = {"vqa": "vqa", "stage1": "match"}.get(task, "caption")
    use = quote(["blip2cap", verb, "IMAGES", "--model", str(out)])
    if outcome is None:
        return f"{out} is finished, nothing to do. To use it: {use}"
    best = "" if outcome.best_value is None else f", the best: validation {outcome.best_by} {outcome.best_value:.4f}"
    return (
        f"Finished after {outcome.num_steps} steps in {outcome.seconds:.0f} s. The model is that of step "
        f"{outcome.chosen_step}{best}. To use it: {use}"
    )
