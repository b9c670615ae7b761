"""`blip2cap bench`."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from blip2cap import urls
from blip2cap.cli.options import ReportOptions, option, option_of, with_options
from blip2cap.cli.report import print_json
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import clean, page, say
from blip2cap.errors import SOME_FAILED, InputError, OutputError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.jobs.job import no_image
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, SourceOptions
from blip2cap.outputs.files import OS_FILES, replaceable, write_whole
from blip2cap.records import ImageRef

_NEW_TOKENS = 12
"""About the length of a caption of BLIP-2; the same for all, so that figures of models and machines can be compared."""
_MOST_IMAGES = 4096
"""Largest number of images of an INPUT without --limit: more improve no figure."""


@with_options(
    only=[
        *("model", "dtype", "quantize", "device", "revision", "random_weights"),
        *("batch_size", "decode", "threads"),
        *("max_new_tokens", "min_new_tokens", "num_beams", "quiet", "json"),
    ],
    max_new_tokens=_NEW_TOKENS,
)
def bench(
    model: ModelOptions,
    batch: BatchOptions,
    decode: DecodeOptions,
    generate: GenerateOptions,
    report: ReportOptions,
    inputs: Annotated[list[str] | None, option("INPUT", "Folders or image files.", panel="Input", once=False)] = None,
    limit: Annotated[int | None, option_of(SourceOptions, "limit")] = None,
    questions: Annotated[
        list[str] | None,
        option(
            "-q, --question TEXT", "Answer this question instead of captioning; repeatable.", panel="Input", once=False
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        option(
            "--num-images N", "Number of scenes to draw. If left out, as many as take about a minute.", panel="Input"
        ),
    ] = None,
    image_size: Annotated[
        str | None, option("--image-size WxH", "Size of the scenes; 640x480 if left out.", panel="Input")
    ] = None,
    estimate: Annotated[
        int | None,
        option("--estimate N", "Print how long N images take at the measured rate.", panel="Output"),
    ] = None,
    out: Annotated[Path | None, option("-o, --out FILE", "Write the results to a JSON file.", panel="Output")] = None,
    repeat: Annotated[int, option("--repeat N", "Number of passes over the images.", panel="Speed")] = 3,
    baseline: Annotated[
        bool, option("--baseline", "Run the plain transformers script on the same images too.", panel="Speed")
    ] = False,
    sweep: Annotated[bool, option("--sweep", "Measure batch sizes 1, 2, 4, ...", panel="Speed")] = False,
    max_minutes: Annotated[
        float,
        option("--max-minutes N", "Time limit; stages are cut short or skipped to stay within it.", panel="Speed"),
    ] = 10,
) -> None:
    """Measure images/s, by stage, and the share of the limit.

    The limit is what this machine allows: it is measured too. Without INPUT, scenes are drawn. Nothing is written but
    the file of --out.
    """
    if inputs and num_images is not None:
        raise UsageError("--num-images has no effect with INPUT: it is for scenes that are drawn. Use --limit.")
    if not inputs and limit is not None:
        raise UsageError("--limit has no effect without INPUT. Use --num-images.")
    if out is not None:
        _check_writable(out)
    from blip2cap.bench.options import BenchOptions, parse_size

    options = BenchOptions(
        command=shlex.join(["blip2cap", *sys.argv[1:]]),
        model=model,
        generate=generate,
        decode=decode,
        batch=batch,
        questions=tuple(questions or ()) or None,
        refs=_images(tuple(inputs), limit) if inputs else None,
        num_images=limit if inputs else num_images,
        image_size=None if image_size is None else parse_size(image_size),
        estimate=estimate,
        repeats=repeat,
        baseline=baseline,
        sweep=sweep,
        max_minutes=max_minutes,
    )
    from blip2cap.bench.benchmark import Benchmark

    with stop_on_signal(quiet=report.quiet):  # a signal is an exception here, which removes the folder of scenes
        facts = Benchmark(options, (lambda line: None) if report.quiet else (lambda line: say(clean(line)))).run()
    if out is not None:
        try:
            write_whole(OS_FILES, out, (json.dumps(facts, indent=2) + "\n").encode())
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error.strerror}. Use another --out.") from error
    if report.as_json:
        print_json(facts)
    elif not report.quiet:
        _print_page(facts)
    if facts["figures"]["num_bad_images"]:
        raise typer.Exit(SOME_FAILED)


def _images(inputs: tuple[str, ...], limit: int | None) -> tuple[ImageRef, ...]:
    """List the images. Raises InputError if there are none."""
    from blip2cap.source.inputs import Source

    source = Source(SourceOptions(inputs=inputs, limit=limit))
    stream = source.stream()
    refs = tuple(itertools.islice(stream, limit or _MOST_IMAGES))
    if not refs:
        raise InputError(no_image(source, stream.skipped))
    if any(ref.load or ref.error or ref.offset is not None or urls.scheme(ref.path) for ref in refs):
        raise UsageError("a benchmark reads its images many times: give folders or image files, no archives or URLs.")
    return refs


def _check_writable(out: Path) -> None:
    """Raise now, not after a minute, if the file cannot be written. Other suffixes are refused: they may be rows."""
    folder = out.parent
    if out.suffix.lower() != ".json":
        raise UsageError(f"--out {out}: must end in .json.")
    if out.is_dir():
        raise OutputError(f"--out {out}: is a folder. Expected the name of a file.")
    if not folder.is_dir():
        raise OutputError(f"--out {out}: no such folder as {folder}. Make it first, or use another --out.")
    try:
        replaceable(OS_FILES, out)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error.strerror}. Use another --out.") from error
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise OutputError(f"--out {out}: no permission to write it. Use another --out.")


def _print_page(facts: Mapping[str, Any]) -> None:
    """Print the results for people: the speed, the machine, the stages as a table, sentences, the sweep as bars."""
    from rich.table import Table

    from blip2cap.bench.page import answers, bars, header, sentences, table

    def grid(pairs: list[tuple[str, str]]) -> Table:
        words = Table.grid(padding=(0, 2))
        words.add_column(no_wrap=True, style="bold")
        for word, text in pairs:
            words.add_row(word, clean(text))
        return words

    with page() as console:
        console.print(grid(answers(facts)))
        console.print()
        for line in header(facts):
            console.print(clean(line), style="dim")
        stages = Table()
        for name in ("stage", "ms/image", "least", "of limit"):
            stages.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
        stages.add_column("")
        *rows, last = table(facts)
        for row in rows:
            stages.add_row(*row)
        stages.add_section()
        stages.add_row(*last, style="bold")
        console.print(stages)
        console.print(grid(sentences(facts)))
        if facts.get("sweep"):
            console.print()
            blocks = console.encoding.startswith("utf")
            console.print(bars(facts["sweep"], width=min(80, console.width), blocks=blocks), end="")
