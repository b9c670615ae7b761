"""What people write: transformers' processor and `model.generate`, as its documentation shows them, a batch at a time.

Images are opened with Pillow on the main thread, prompts are padded, and every question is a pass over all the images
with the whole model. Nothing here is slower than it is out there, and nothing is faster: it is what blip2cap's speed is
measured against.

    python -m blip2cap.bench.plain_transformers --images ./imgs --model Salesforce/blip2-opt-2.7b
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Processor,
    BlipImageProcessor,
    InstructBlipProcessor,
)

from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.checkpoint import TINY, find
from blip2cap.models.registry import FAMILIES
from blip2cap.options import ModelOptions

DTYPES = ("float32", "bfloat16", "float16")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def main(argv: Sequence[str] | None = None) -> int:
    """Caption a folder, or ask about it; print how long it took as a JSON object."""
    arguments = parser(__doc__).parse_args(argv)
    paths = find_images(arguments)
    device = torch.device(choose_device(arguments.device))
    dtype = getattr(torch, arguments.dtype)
    start = time.perf_counter()
    processor, model = load(arguments, device, dtype)
    load_s = time.perf_counter() - start

    def generate(prompt: str, batch: Sequence[Path]) -> list[str]:
        images = [Image.open(path).convert("RGB") for path in batch]
        inputs = processor(images=images, text=[prompt] * len(images), padding=True, return_tensors="pt")
        inputs = inputs.to(device, dtype)
        output = model.generate(
            **inputs,
            max_new_tokens=arguments.max_new_tokens,
            min_new_tokens=arguments.min_new_tokens or None,
            num_beams=arguments.num_beams,
            do_sample=False,
        )
        if not model.config.text_config.is_encoder_decoder:
            output = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)]

    prompts = make_prompts(arguments, model.config)
    for _ in range(arguments.warmup):
        generate(prompts[0], paths[: arguments.batch_size])
    synchronise(device)
    start = time.perf_counter()
    texts = []
    for prompt in prompts:
        for batch in batches(paths, arguments.batch_size):
            texts += generate(prompt, batch)
    report("plain_transformers", arguments, device, dtype, load_s, time.perf_counter() - start, len(paths), texts)
    return 0


def parser(description: str | None, dtypes: Sequence[str] = DTYPES) -> argparse.ArgumentParser:
    """Make the parser of the options that all peers have; the first of `dtypes` is the default."""
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
    parser.add_argument("--json", action="store_true", help="print one line, not many")
    return parser


def find_images(arguments: argparse.Namespace) -> list[Path]:
    """List the images below the folder by name."""
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)[: arguments.limit]
    if not paths:
        sys.exit(f"--images {arguments.images}: no images in it.")
    return paths


def choose_device(name: str) -> str:
    """Resolve `auto` to the GPU if there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def load(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return processor and model, from the hub or a folder; with --random-weights of the same size, made here."""
    if arguments.random_weights:
        return load_random(arguments.model, device, dtype)
    name = TINY if arguments.model == "tiny" else arguments.model
    processor = AutoProcessor.from_pretrained(name)
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).to(device).eval()
    return processor, model


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Make processor and model from a configuration alone."""
    checkpoint = find(ModelOptions(name=name, random_weights=True))
    model = build(checkpoint, dtype, device)
    side = checkpoint.image_size
    image_processor = BlipImageProcessor(size={"height": side, "width": side})
    tokenizer = stand_in_tokenizer(checkpoint.config)
    num_query_tokens = model.config.num_query_tokens
    if checkpoint.family != "instructblip":
        return Blip2Processor(image_processor, tokenizer, num_query_tokens=num_query_tokens), model
    qformer_tokenizer = stand_in_tokenizer(checkpoint.config, which="qformer")
    return InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens), model


def make_prompts(arguments: argparse.Namespace, config: Any) -> list[str]:
    """Return one prompt for a pass over the images, or one for each question, as this family of models is asked."""
    family = "instructblip" if config.model_type == "instructblip" else config.text_config.model_type
    if arguments.question:
        return [FAMILIES[family].vqa_template.replace("{question}", question) for question in arguments.question]
    return [FAMILIES[family].caption_prompt if arguments.prompt is None else arguments.prompt]


def batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Cut the images into batches, the last one smaller."""
    for at in range(0, len(paths), size):
        yield paths[at : at + size]


def synchronise(device: torch.device) -> None:
    """Wait for what the GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(
    peer: str,
    arguments: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    load_s: float,
    seconds: float,
    num_images: int,
    texts: Sequence[str],
) -> None:
    """Print what was measured. The memory is the main process's."""
    result = {
        "peer": peer,
        "images": num_images,
        "rows": len(texts),
        "seconds": round(seconds, 3),
        "images_per_s": round(num_images / seconds, 3),
        "load_s": round(load_s, 3),
        "batch_size": arguments.batch_size,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
        "texts": list(texts[:3]),
    }
    sys.stdout.write(json.dumps(result, indent=None if arguments.json else 2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
