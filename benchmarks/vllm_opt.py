"""vLLM on BLIP-2 with OPT, the one language model of BLIP-2 that it supports; options and JSON of the plain script.

Needs an environment of its own with vLLM and Pillow, and a model from the hub or a folder. The engine batches by
itself: --batch-size is only the number of images that are decoded before they are handed over. Written from vLLM's
documentation: multimodal inputs, offline inference (https://docs.vllm.ai).

    python -m benchmarks.vllm_opt --images ./imgs --model Salesforce/blip2-opt-2.7b --dtype bfloat16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from blip2cap.bench.peer import Peer, batches, choose_device, make_prompts, parser, run

NEWLINE = 50118
"""The token that ends a text, according to the configuration of these checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Caption a folder, or ask about it; print the times as a JSON object."""
    options = parser(__doc__, dtypes=("bfloat16", "float32", "float16"))
    options.set_defaults(batch_size=256)
    arguments = options.parse_args(argv)
    reason = ""
    if arguments.num_beams > 1:
        reason = "vLLM has no beam search for images here: leave --num-beams out"
    elif importlib.util.find_spec("vllm") is None:
        reason = "vllm is not installed here: run this in an environment of its own with `pip install vllm`"
    if reason:  # no failure: nothing was measured
        print(f"vllm_opt: skipped: {reason}", file=sys.stderr)
        print(json.dumps({"peer": "vllm", "skipped": reason}))
        return 0
    return run("vllm", arguments, start)


def start(arguments: argparse.Namespace) -> Peer:
    """Start the engine."""
    import vllm

    engine = vllm.LLM(
        model=arguments.model,
        dtype=arguments.dtype,
        limit_mm_per_prompt={"image": 1},
        load_format="dummy" if arguments.random_weights else "auto",
    )
    greedy = vllm.SamplingParams(
        temperature=0,
        max_tokens=arguments.max_new_tokens,
        min_tokens=arguments.min_new_tokens,
        stop_token_ids=[NEWLINE],
    )
    prompts = make_prompts(arguments, "opt")

    def generate(images: Sequence[Image.Image]) -> list[str]:
        inputs = [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images for prompt in prompts]
        return [output.outputs[0].text.strip() for output in engine.generate(inputs, greedy, use_tqdm=False)]

    def generate_all(paths: Sequence[Path]) -> list[str]:
        opened = ([Image.open(path).convert("RGB") for path in batch] for batch in batches(paths, arguments.batch_size))
        return [text for images in opened for text in generate(images)]

    def warm_up() -> None:  # not with the images themselves: the engine caches what it has seen
        generate([Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)) for _ in range(arguments.batch_size)])

    return Peer(
        generate=generate_all,
        device=choose_device("auto"),
        dtype=getattr(torch, arguments.dtype),
        warm_up=warm_up,
        packages=("vllm",),
    )


if __name__ == "__main__":
    sys.exit(main())
