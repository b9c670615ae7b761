"""Transformers as an expert tunes it in an afternoon; the options and the JSON are those of the plain script.

bfloat16 where the device is fast at it; a DataLoader whose workers decode and resize; pinned memory, a static cache,
which transformers then compiles, and batches of one size on CUDA; prompts padded to one length, on the left for
decoders; images decoded once for any number of questions, though the whole model still runs for each.

    python -m benchmarks.tuned_transformers --images ./imgs --model Salesforce/blip2-opt-2.7b
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from blip2cap.bench.peer import DTYPES, Peer, choose_device, make_prompts, parser, run
from blip2cap.bench.plain_transformers import family_of, load
from blip2cap.models.device import is_fast_at_bfloat16


class Pixels(Dataset):
    """Image files as the processor's tensors."""

    def __init__(self, paths: Sequence[Path], image_processor: Any) -> None:
        self.paths = paths
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.image_processor(image, return_tensors="pt")["pixel_values"][0]


def main(argv: Sequence[str] | None = None) -> int:
    """Caption a folder, or ask about it; print the times as a JSON object."""
    options = parser(__doc__, dtypes=("auto", *DTYPES))
    options.add_argument("--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that decode")
    return run("tuned_transformers", options.parse_args(argv), start)


def start(arguments: argparse.Namespace) -> Peer:
    """Load the model, and tokenise the prompts."""
    device = choose_device(arguments.device)
    on_gpu = device.type == "cuda"
    dtype = fast_dtype(device) if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forks, where its threads would hang
    processor, model = load(arguments, device, dtype)
    text_inputs = tokenise(processor, model, make_prompts(arguments, family_of(model.config)), device)
    num_given = 0 if model.config.text_config.is_encoder_decoder else text_inputs[0]["input_ids"].shape[1]

    @torch.inference_mode()
    def generate(paths: Sequence[Path]) -> list[str]:
        loader = DataLoader(
            Pixels(paths, processor.image_processor),
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            multiprocessing_context="fork" if arguments.num_workers else None,
            pin_memory=on_gpu,
        )
        texts: list[str] = []
        for pixels in loader:
            num_images = len(pixels)
            if on_gpu and num_images < arguments.batch_size:  # another size would be compiled too
                pixels = torch.cat([pixels, pixels[-1:].expand(arguments.batch_size - num_images, -1, -1, -1)])
            pixels = pixels.to(device, dtype, non_blocking=True)
            for inputs in text_inputs:
                output = model.generate(
                    pixel_values=pixels,
                    **{name: ids.expand(len(pixels), -1) for name, ids in inputs.items()},
                    max_new_tokens=arguments.max_new_tokens,
                    min_new_tokens=arguments.min_new_tokens or None,
                    num_beams=arguments.num_beams,
                    do_sample=False,
                    cache_implementation="static" if on_gpu else None,
                )
                new = processor.batch_decode(output[:num_images, num_given:], skip_special_tokens=True)
                texts += [text.strip() for text in new]
        return texts

    return Peer(generate=generate, device=device, dtype=dtype)


def fast_dtype(device: torch.device) -> torch.dtype:
    """Choose bfloat16 where the hardware multiplies in it, else float32 on a CPU and float16 on a GPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if is_fast_at_bfloat16() else torch.float32


def tokenise(processor: Any, model: Any, prompts: Sequence[str], device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Return each prompt as one row of ids with the image's in front, all of one length."""
    processor.tokenizer.padding_side = "right" if model.config.text_config.is_encoder_decoder else "left"
    blank = [Image.new("RGB", (8, 8))] * len(prompts)
    inputs = processor(images=blank, text=list(prompts), padding=True, return_tensors="pt").to(device)
    inputs.pop("pixel_values")
    return [{name: ids[row : row + 1] for name, ids in inputs.items()} for row in range(len(prompts))]


if __name__ == "__main__":
    sys.exit(main())
