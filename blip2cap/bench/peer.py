"""The frame of the scripts that blip2cap is measured against: same options, same clock, same JSON.

The clock runs from the first image opened to the last text decoded, after `--warmup` batches. Imports little: a script
may run in an environment of its own, without what blip2cap needs.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from blip2cap.bench.programs import peak_rss_mb
from blip2cap.models.registry import FAMILIES

DTYPES = ("float32", "bfloat16", "float16")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A loaded model that captions image files, or answers questions about them."""

    generate: Callable[[Sequence[Path]], list[str]]
    device: torch.device
    dtype: torch.dtype
    warm_up: Callable[[], object] | None = None
    """One batch before the clock starts; None takes the first images."""
    packages: tuple[str, ...] = ()
    """Packages whose versions matter too."""


def parser(description: str | None, dtypes: Sequence[str] = DTYPES) -> argparse.ArgumentParser:
    """Make the parser of the options that all scripts share; the first of `dtypes` is the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--model", required=True, metavar="NAME", help="hub id, folder or tiny")
    parser.add_argument("--random-weights", action="store_true", help="only the model's size is real: no download")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--min-new-tokens", type=int, default=0)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--prompt", metavar="TEXT", help="what each caption begins with")
    parser.add_argument("--question", action="append", metavar="Q", help="ask instead of captioning; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N images")
    parser.add_argument("--warmup", type=int, default=0, metavar="N", help="batches before the clock starts")
    parser.add_argument("--json", action="store_true", help="print one line instead of several")
    return parser


def choose_device(name: str) -> torch.device:
    """Resolve `auto` to the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make_prompts(arguments: argparse.Namespace, family: str) -> list[str]:
    """Return one prompt for captions, or one for each question, in the words of this family of models."""
    if arguments.question:
        return [FAMILIES[family].vqa_template.replace("{question}", question) for question in arguments.question]
    return [FAMILIES[family].caption_prompt if arguments.prompt is None else arguments.prompt]


def batches(paths: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """Split the images into batches, the last one smaller."""
    return [paths[at : at + size] for at in range(0, len(paths), size)]


def run(name: str, arguments: argparse.Namespace, start: Callable[[argparse.Namespace], Peer]) -> int:
    """Load the model with `start`, caption the folder, or ask about it, and print the times as a JSON object."""
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)[: arguments.limit]
    if not paths:
        sys.exit(f"--images {arguments.images}: no images in it.")
    started = time.perf_counter()
    peer = start(arguments)
    load_s = time.perf_counter() - started
    for _ in range(arguments.warmup):
        if peer.warm_up is None:
            peer.generate(paths[: arguments.batch_size])
        else:
            peer.warm_up()
    if peer.device.type == "cuda":
        torch.cuda.synchronize(peer.device)
    started = time.perf_counter()
    texts = peer.generate(paths)
    seconds = time.perf_counter() - started
    result = {
        "peer": name,
        "images": len(paths),
        "rows": len(texts),
        "seconds": round(seconds, 3),
        "images_per_s": round(len(paths) / seconds, 3),
        "load_s": round(load_s, 3),
        "batch_size": arguments.batch_size,
        "dtype": str(peer.dtype).removeprefix("torch."),
        "device": peer.device.type,
        "peak_rss_mb": round(peak_rss_mb()),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "pillow", *peer.packages)},
        "texts": texts[:3],
    }
    sys.stdout.write(json.dumps(result, indent=None if arguments.json else 2, ensure_ascii=False) + "\n")
    return 0
