"""The plain transformers script beside ours: the same images, the same machine, the same minutes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from blip2cap.bench.stages import Pass
from blip2cap.models.blip2.model import Blip2
from blip2cap.options import GenerateOptions

MODULE = "blip2cap.bench.plain_transformers"
BATCH_SIZES = (1, 16, 64)
"""The script that people copy takes one image at a time; the best of these is what we compare with."""
DTYPE = "float32"
"""What `from_pretrained` gives to those who do not ask."""
_OURS = "GOMP_SPINCOUNT"
"""The variable that our command line sets for itself; a peer runs as a user would start it."""
LEAST_IMAGES, LEAST_BATCHES = 256, 8
"""Of the images, the script gets so many if there are as many: its rate does not change any more, and it is slow."""


class Loaded:
    """A model that can be let go of, and loaded again."""

    def __init__(self, load: Callable[[], Blip2]) -> None:
        self._load = load
        self._model: Blip2 | None = None

    @property
    def model(self) -> Blip2:
        """The model, loaded if it is not there; keep no other reference to it."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def free(self) -> None:
        """Give its memory back."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One run of the plain script."""

    batch_size: int
    images_per_s: float = 0.0
    load_s: float = 0.0
    peak_rss_mb: float = 0.0
    error: str = ""
    """Why there is no figure; "" if there is one."""
    texts: tuple[str, ...] = ()
    """Some of the first, in the order of the images."""
    num_images: int = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The script at each batch size, and ours before and after."""

    peers: tuple[Peer, ...]
    before: float
    """Images/s of ours."""
    after: float

    @property
    def best(self) -> Peer | None:
        """The script at its best batch size; None if it ran at none."""
        return max((peer for peer in self.peers if not peer.error), key=lambda peer: peer.images_per_s, default=None)

    @property
    def ours(self) -> float:
        """Images/s, the mean of before and after."""
        return (self.before + self.after) / 2


def compare(
    before: Pass,
    again: Callable[[], Pass],
    plain: Callable[[int], Peer],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run the script once at each batch size, then ours again: what slows the machine down for a while hits both."""
    peers = []
    for batch_size in batch_sizes:
        say(f"plain transformers, batch size {batch_size} ...")
        peers.append(plain(batch_size))
        if peers[-1].error:
            say(f"plain transformers, batch size {batch_size}: {peers[-1].error}")
    say("blip2cap once more ...")
    return Comparison(peers=tuple(peers), before=before.images_per_s, after=again().images_per_s)


def run_plain(
    folder: Path,
    batch_size: int,
    *,
    num_images: int,
    model: str,
    random_weights: bool,
    device: str,
    generate: GenerateOptions,
    questions: Sequence[str],
    module: str = MODULE,
) -> Peer:
    """Run the plain script in a process of its own on the first images of a folder; what goes wrong is its result."""
    command = [sys.executable, "-m", module, "--images", str(folder), "--model", model, "--dtype", DTYPE]
    command += [
        "--limit",
        str(num_images),
        "--batch-size",
        str(batch_size),
        "--device",
        device,
        "--warmup",
        "1",
        "--json",
    ]
    command += ["--max-new-tokens", str(generate.max_new_tokens), "--min-new-tokens", str(generate.min_new_tokens)]
    command += ["--num-beams", str(generate.num_beams)]
    command += [f"--question={question}" for question in questions]
    if random_weights:
        command.append("--random-weights")
    environment = {name: value for name, value in os.environ.items() if name != _OURS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    lines = done.stdout.strip().splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
        return Peer(
            batch_size=batch_size,
            images_per_s=float(result["images_per_s"]),
            load_s=float(result["load_s"]),
            peak_rss_mb=float(result["peak_rss_mb"]),
            texts=tuple(result.get("texts") or ()),
            versions=dict(result.get("versions") or {}),
            num_images=int(result["images"]),
        )
    except (ValueError, KeyError, TypeError):
        return Peer(batch_size=batch_size, error=_reason(done.returncode, done.stderr))


def _reason(code: int, stderr: str) -> str:
    """Say in one line why a process gave no result."""
    if code < 0:
        return f"ended by signal {-code}" + (": out of memory?" if code == -9 else "")
    lines = stderr.strip().splitlines()
    return lines[-1][:200] if lines else f"ended with code {code} and no result"
