"""The options that commands share: one definition each, so that names, help and environment are the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blip2cap.cli.config import load_config

EPILOG = (
    "Every option that is given once can be set by a variable too: BLIP2CAP_MODEL=tiny is --model tiny. "
    "What counts: the flag, else the variable, else the file of --config, else the default."
)


def option(*flags: str, **settings: Any) -> Any:
    """Declare an option that the variable BLIP2CAP_<LONG NAME> can set too; its value is called N unless said."""
    settings = {"metavar": "N"} | settings
    return typer.Option(*flags, envvar=f"BLIP2CAP_{_long_name(flags)}", show_envvar=False, **settings)


def repeated_option(*flags: str, **settings: Any) -> Any:
    """Declare an option that may be given several times; without a variable, which typer would cut at every space."""
    return typer.Option(*flags, **settings)


def _long_name(flags: tuple[str, ...]) -> str:
    long = next(flag for flag in flags if flag.startswith("--"))
    return long[2:].replace("-", "_").upper()


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help=(
            "A folder (walked recursively), image files, .tar or .parquet files, URLs as s3://bucket/folder, "
            "or `-` for paths on standard input. shards/{000..099}.tar stands for a hundred."
        ),
        show_default=False,
    ),
]
FilesFrom = Annotated[
    list[str] | None,
    repeated_option("--files-from", metavar="FILE", help="Read paths from FILE, one a line; may be repeated."),
]
NullSeparated = Annotated[bool, option("-0", "--null", help="Paths in lists end with NUL, as from find -print0.")]
Include = Annotated[
    list[str] | None,
    repeated_option(
        "--include",
        metavar="GLOB",
        help="Only images that match, as in .gitignore: '*.png', 'pets/'; may be repeated.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    repeated_option("--exclude", metavar="GLOB", help="No image or folder that matches; may be repeated."),
]
ImageColumn = Annotated[
    str | None,
    option("--image-column", metavar="NAME", help="Column of .parquet inputs with the bytes of images."),
]
AllowHttp = Annotated[bool, option("--allow-http", help="Fetch images from http:// and https:// URLs.")]
Out = Annotated[
    str,
    option(
        "-o",
        "--out",
        metavar="PATH",
        help="Output .jsonl or .parquet file; FOLDER/ or s3://BUCKET/FOLDER/ for parts; `-` is stdout.",
    ),
]
PartSize = Annotated[
    int | None, option("--part-size", help="Inputs in a part of a parts folder. Left out: 10000.", show_default=False)
]
Shard = Annotated[
    str | None,
    option("--shard", metavar="I/N", help="Of a parts folder, do every N-th part, beginning with the I-th."),
]
Model = Annotated[
    str,
    option(
        "-m",
        "--model",
        metavar="NAME",
        help="`tiny` (inside the package), a local folder or a hub id.",
    ),
]
Revision = Annotated[
    str | None,
    option("--revision", metavar="NAME", help="Commit, branch or tag of the model on the hub."),
]
Dtype = Annotated[
    str,
    option(
        "--dtype",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16. auto: bfloat16 where the device is fast at it.",
    ),
]
Device = Annotated[str, option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
DeviceMap = Annotated[
    str | None,
    option("--device-map", metavar="NAME", help="Spread over all GPUs: auto, balanced or sequential."),
]
Quantize = Annotated[
    str | None,
    option(
        "--quantize",
        metavar="KIND",
        help="int8 or nf4: less memory. int8-dynamic or fp8: faster too. On a CPU: int8-dynamic.",
    ),
]
BatchSize = Annotated[
    int | None,
    option("--batch-size", help="Images at once. Left out: measured."),
]
Decode = Annotated[
    str,
    option("--decode", metavar="NAME", help="fast or exact. fast: large JPEGs are reduced while they are decoded."),
]
Threads = Annotated[int, option("--threads", help="Threads that decode; 0 is one per core.")]
Timeout = Annotated[
    float, option("--timeout", metavar="S", help="Seconds to wait for one image, read and decoded, before it fails.")
]
Isolate = Annotated[
    bool, option("--isolate", help="Decode in processes of their own: what crashes or eats memory costs one image.")
]
MaxNewTokens = Annotated[int, option("--max-new-tokens", help="Longest text, in tokens.")]
MinNewTokens = Annotated[int, option("--min-new-tokens", help="Shortest text, in tokens.")]
NumBeams = Annotated[int, option("--num-beams", help="Beams to search with; 1 is greedy.")]
Temperature = Annotated[float | None, option("--temperature", help="Sample, at this temperature.")]
TopP = Annotated[float | None, option("--top-p", help="Sample from the likeliest tokens of this total share.")]
TopK = Annotated[int | None, option("--top-k", help="Sample from this many of the likeliest tokens.")]
RepetitionPenalty = Annotated[
    float, option("--repetition-penalty", help="Above 1: tokens that were said become less likely.")
]
NoRepeatNgramSize = Annotated[
    int, option("--no-repeat-ngram-size", help="No sequence of so many tokens twice; 0 is off.")
]
LengthPenalty = Annotated[
    float, option("--length-penalty", help="With beams: above 0 favours long texts, below 0 short ones.")
]
LoopGuard = Annotated[
    bool,
    option("--loop-guard", help="Generate texts that loop, repeat the prompt or are empty once more; adds `flag`."),
]
TrimSentence = Annotated[
    bool,
    option("--trim-sentence", help="Cut a text that became too long behind its last whole sentence."),
]
Strip = Annotated[
    list[str] | None,
    repeated_option("--strip", metavar="TEXT", help='Take TEXT off the beginning, as "a photo of"; may be repeated.'),
]
Seed = Annotated[int, option("--seed", help="Number that sampled texts depend on.")]
Limit = Annotated[int | None, option("--limit", metavar="N", help="Take the first N images only.")]
Overwrite = Annotated[
    bool, option("--overwrite", help="Replace the output, not a folder of parts, instead of resuming it.")
]
RetryFailed = Annotated[bool, option("--retry-failed", help="Do images again that have a failed row.")]
DryRun = Annotated[bool, option("--dry-run", help="Print what would be done; load no model, write nothing.")]
Quiet = Annotated[bool, option("--quiet", help="Errors only.")]
Verbose = Annotated[bool, option("--verbose", help="Name every image that fails.")]
AsJson = Annotated[bool, option("--json", help="Print the summary as one JSON object on stdout.")]
Config = Annotated[
    Path | None,
    option(
        "--config",
        metavar="FILE",
        callback=load_config,
        is_eager=True,
        help="TOML file with options; flags and BLIP2CAP_* variables come first.",
    ),
]
