"""Matching with ours and with the transformers class in one process, in turns: seconds for the same images.

Ours gives both scores of a pair. The class computes them in two calls, as its documentation shows; each call runs the
whole model, and `itm` alone is one of them. Random weights: the time does not depend on them.

    python -m benchmarks.match_loop --images ./imgs --dtype float32 --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Blip2Processor, BlipImageProcessor

from blip2cap.bench.programs import peak_rss_mb
from blip2cap.bench.report import digits
from blip2cap.decode.image import decode
from blip2cap.decode.read import read
from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.checkpoint import find
from blip2cap.models.matching.load import load
from blip2cap.models.matching.model import Matcher
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.records import ImageRef, Prompt

MODEL = "Salesforce/blip2-itm-vit-g"
TEXTS = tuple(" ".join(f"t{200 + 10 * number + word}" for word in range(6 + number)) for number in range(8))
"""Of 6 to 13 words, as captions are; with the tokens at their ends, up to 15 tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the times as a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=4, help="number of images, which are one batch")
    parser.add_argument("--rounds", type=int, default=2, help="the median of these counts; one more warms up")
    parser.add_argument("--json", action="store_true", help="as the other scripts; nothing else is printed")
    arguments = parser.parse_args(argv)
    paths = sorted(arguments.images.glob("*.jpg"))[: arguments.limit]
    options = ModelOptions(name=MODEL, device="cpu", dtype=arguments.dtype, random_weights=True)
    checkpoint = find(options)
    started = time.perf_counter()
    model = load(checkpoint, options)
    load_s = time.perf_counter() - started
    theirs = Theirs(checkpoint, model.dtype)
    kinds: dict[str, Callable[[], Any]] = {
        "ours_1_text": lambda: ours(model, paths, TEXTS[:1]),
        "ours_8_texts": lambda: ours(model, paths, TEXTS),
        "ours_embed": lambda: embed(model, paths),
        "transformers_1_text": lambda: theirs.match(paths, TEXTS[:1]),
        "transformers_1_text_itm_alone": lambda: theirs.match(paths, TEXTS[:1], contrast=False),
        "transformers_embed": lambda: theirs.embed(paths),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in kinds}
    results = {}
    for turn in range(arguments.rounds + 1):
        for name, run in kinds.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            results[name] = run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
                cpu_seconds[name].append(time.process_time() - cpu_began)
    difference = np.abs(results["ours_1_text"] - results["transformers_1_text"]).max()
    facts = {
        "num_images": len(paths),
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "load_s": digits(load_s),
        "seconds": {name: digits(median(times)) for name, times in seconds.items()},
        "cpu_seconds": {name: digits(median(times)) for name, times in cpu_seconds.items()},
        "load_average": [digits(load) for load in os.getloadavg()],
        "all_seconds": {name: [digits(each) for each in times] for name, times in seconds.items()},
        "largest_difference_of_scores": float(difference),
        "peak_rss_mb": round(peak_rss_mb()),
    }
    print(json.dumps(facts))
    return 0


def decoded(model: Matcher, paths: Sequence[Path]) -> list[Any]:
    """Return the pixels of images."""
    options, side = DecodeOptions(), model.checkpoint.image_size
    refs = [ImageRef(path=str(path), name=path.name) for path in paths]
    return [decode(read(ref, options), side, options).pixels_HWC for ref in refs]


def ours(model: Matcher, paths: Sequence[Path], texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the scores of all pairs, [images x texts, 2]."""
    session = model.start_match(capacity=None)
    prompts = [Prompt(image=image, text=text, name="") for image in range(len(paths)) for text in texts]
    tickets = session.add(session.encode(decoded(model, paths)), prompts)
    found: dict[int, Any] = {}
    while session.num_pending:
        found.update(session.advance())
    return np.array([[found[ticket].itm, found[ticket].itc] for ticket in tickets])


def embed(model: Matcher, paths: Sequence[Path]) -> np.ndarray[Any, Any]:
    """Return the vectors of images."""
    session = model.start_embed("queries", normalised=True, capacity=None)
    prompts = [Prompt(image=image, text="", name="") for image in range(len(paths))]
    session.add(session.encode(decoded(model, paths)), prompts)
    return np.stack([vectors for _, vectors in session.advance()])


class Theirs:
    """The class of transformers with its processor."""

    def __init__(self, checkpoint: Any, dtype: torch.dtype) -> None:
        self.network, side = build(checkpoint, dtype, torch.device("cpu")), checkpoint.image_size
        tokenizer = stand_in_tokenizer(checkpoint.config, which="qformer")
        image_processor = BlipImageProcessor(size={"height": side, "width": side})
        self.processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=32)

    def _inputs(self, paths: Sequence[Path], texts: Sequence[str]) -> Any:
        images = [Image.open(path).convert("RGB") for path in paths]
        given = self.processor(images=images, text=list(texts), padding=True, return_tensors="pt")
        return given.to("cpu", self.network.dtype)

    @torch.inference_mode()
    def match(self, paths: Sequence[Path], texts: Sequence[str], *, contrast: bool = True) -> np.ndarray[Any, Any]:
        """Return the scores of all pairs, text by text."""
        found = []
        for text in texts:
            inputs = self._inputs(paths, [text] * len(paths))
            matched = self.network(**inputs, use_image_text_matching_head=True).logits_per_image.float()
            scores = [matched.softmax(-1)[:, 1]]
            if contrast:
                scores.append(self.network(**inputs).logits_per_image.float().diagonal())
            found.append(torch.stack(scores, dim=1).numpy())
        return np.concatenate(found)

    @torch.inference_mode()
    def embed(self, paths: Sequence[Path]) -> np.ndarray[Any, Any]:
        """Return the vectors of images."""
        embeds: torch.Tensor = self.network(**self._inputs(paths, ["a"] * len(paths))).image_embeds
        return embeds.float().numpy()


if __name__ == "__main__":
    sys.exit(main())
