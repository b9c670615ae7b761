"""vLLM on BLIP-2 with OPT, the one language model of BLIP-2 that it has; same options and JSON as the plain script.

Needs an environment of its own with vLLM and Pillow (blip2cap need not be in it), and a model from the hub or a folder.
The engine batches by itself: --batch-size is only how many images are decoded before they are handed over. Written from
vLLM's documentation: multimodal inputs, offline inference (https://docs.vllm.ai).

    python benchmarks/vllm_opt.py --images ./imgs --model Salesforce/blip2-opt-2.7b --dtype bfloat16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
NEWLINE = 50118
"""With this token a text ends, says the configuration of these checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Caption a folder, or ask about it; print how long it took as a JSON object."""
    arguments = parse(argv)
    if arguments.num_beams > 1:
        return skip("vLLM has no beam search for images here: leave --num-beams out")
    if importlib.util.find_spec("vllm") is None:
        return skip("vllm is not installed here: run this in an environment of its own with `pip install vllm`")
    return measure(arguments)


def skip(reason: str) -> int:
    """Say why nothing was measured; that is no failure."""
    print(f"vllm_opt: skipped: {reason}", file=sys.stderr)
    print(json.dumps({"peer": "vllm", "skipped": reason}))
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Run the engine over all images."""
    import PIL
    import torch
    import transformers
    import vllm
    from PIL import Image

    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)[: arguments.limit]
    if not paths:
        sys.exit(f"--images {arguments.images}: no images in it.")
    questions = arguments.question or []
    prompts = [f"Question: {question} Answer:" for question in questions] or [arguments.prompt or ""]
    start = time.perf_counter()
    engine = vllm.LLM(
        model=arguments.model,
        dtype=arguments.dtype,
        limit_mm_per_prompt={"image": 1},
        load_format="dummy" if arguments.random_weights else "auto",
    )
    load_s = time.perf_counter() - start
    greedy = vllm.SamplingParams(
        temperature=0,
        max_tokens=arguments.max_new_tokens,
        min_tokens=arguments.min_new_tokens,
        stop_token_ids=[NEWLINE],
    )

    def generate(images: Sequence[Any]) -> list[str]:
        inputs = [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images for prompt in prompts]
        return [output.outputs[0].text.strip() for output in engine.generate(inputs, greedy, use_tqdm=False)]

    for _ in range(arguments.warmup):  # not with the images themselves: the engine remembers what it has seen
        noise = [Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)) for _ in range(arguments.batch_size)]
        generate(noise)
    start = time.perf_counter()
    texts = []
    for at in range(0, len(paths), arguments.batch_size):
        texts += generate([Image.open(path).convert("RGB") for path in paths[at : at + arguments.batch_size]])
    seconds = time.perf_counter() - start
    result = {
        "peer": "vllm",
        "images": len(paths),
        "rows": len(texts),
        "seconds": round(seconds, 3),
        "images_per_s": round(len(paths) / seconds, 3),
        "load_s": round(load_s, 3),
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
            "vllm": vllm.__version__,
        },
        "texts": texts[:3],
    }
    print(json.dumps(result, indent=None if arguments.json else 2, ensure_ascii=False))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options; this file stands alone, so they are here a second time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--model", required=True, metavar="NAME", help="hub id or folder")
    parser.add_argument("--random-weights", action="store_true", help="only the model's size is real")
    parser.add_argument("--batch-size", type=int, default=256, help="images decoded at a time")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", default="auto", help="vLLM takes what it was built for")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--min-new-tokens", type=int, default=0)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--prompt", metavar="TEXT", help="what each caption begins with")
    parser.add_argument("--question", action="append", metavar="Q", help="ask instead of captioning; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N images")
    parser.add_argument("--warmup", type=int, default=0, metavar="N", help="batches before the clock starts")
    parser.add_argument("--json", action="store_true", help="print one line, not many")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
