"""Transformers as people use it: its processor and `model.generate` as its documentation shows them, in batches.

Images are opened with Pillow on the main thread, prompts are padded, and every question is a pass over all the images
with the whole model. Nothing here is slower than it is out there, and nothing is faster: it is what blip2cap's speed is
measured against.

    python -m blip2cap.bench.plain_transformers --images ./imgs --model Salesforce/blip2-opt-2.7b
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Processor,
    BlipImageProcessor,
    InstructBlipProcessor,
)

from blip2cap.bench.peer import Peer, batches, choose_device, make_prompts, parser, run
from blip2cap.decode.resized import convert_within
from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.checkpoint import TINY, find
from blip2cap.models.vlm import load as vlm
from blip2cap.models.vlm.families import VLM_FAMILIES
from blip2cap.options import ModelOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Caption a folder, or ask about it; print the times as a JSON object."""
    options = parser(__doc__)
    options.add_argument("--max-pixels", type=int, metavar="N", help="make larger images smaller first")
    return run("plain_transformers", options.parse_args(argv), start)


def start(arguments: argparse.Namespace) -> Peer:
    """Load the model."""
    device, dtype = choose_device(arguments.device), getattr(torch, arguments.dtype)
    processor, model = load(arguments, device, dtype)

    def generate(prompt: str, batch: Sequence[Path]) -> list[str]:
        images = [open_image(path, arguments.max_pixels) for path in batch]
        inputs = prepare(processor, model.config.model_type, images, [prompt] * len(images)).to(device, dtype)
        output = model.generate(
            **inputs,
            max_new_tokens=arguments.max_new_tokens,
            min_new_tokens=arguments.min_new_tokens or None,
            num_beams=arguments.num_beams,
            do_sample=False,
        )
        if not (model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder):
            output = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)]

    def generate_all(paths: Sequence[Path]) -> list[str]:
        prompts = make_prompts(arguments, family_of(model.config))
        size = arguments.batch_size
        return [text for prompt in prompts for batch in batches(paths, size) for text in generate(prompt, batch)]

    return Peer(generate=generate_all, device=device, dtype=dtype)


def open_image(path: Path, max_pixels: int | None) -> Image.Image:
    """Open an image, for a processor that makes more tokens of a larger one within `max_pixels`."""
    image = Image.open(path)
    return image.convert("RGB") if max_pixels is None else Image.fromarray(convert_within(image, max_pixels).content)


def prepare(processor: Any, model_type: str, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
    """Return the inputs of the model for images with a prompt each, through the chat template of its family if any."""
    family = VLM_FAMILIES.get(model_type)
    if family is None:
        return processor(images=images, text=list(prompts), padding=True, return_tensors="pt")
    if not family.has_chat:
        texts = [family.prefix + prompt for prompt in prompts]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        inputs.pop("labels", None)
        return inputs
    turns = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
        for image, prompt in zip(images, prompts, strict=True)
    ]
    return processor.apply_chat_template(
        turns,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def family_of(config: Any) -> str:
    """Return the family of models that decides the prompts."""
    if config.model_type in VLM_FAMILIES:
        return str(config.model_type)
    return str("instructblip" if config.model_type == "instructblip" else config.text_config.model_type)


def load(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return processor and model, from the hub or a folder; with --random-weights, made from a configuration alone."""
    if not arguments.random_weights:
        name = TINY if arguments.model == "tiny" else arguments.model
        processor = AutoProcessor.from_pretrained(name)
        return processor, AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).to(device).eval()
    checkpoint = find(ModelOptions(name=arguments.model, random_weights=True))
    if checkpoint.family in VLM_FAMILIES:
        processor, model = AutoProcessor.from_pretrained(checkpoint.folder), vlm.build(checkpoint, dtype, device)
        vlm.agree_on_ends(model, processor.tokenizer, random=True)
        return processor, model
    model = build(checkpoint, dtype, device)
    side = checkpoint.image_size
    image_processor = BlipImageProcessor(size={"height": side, "width": side})
    tokenizer = stand_in_tokenizer(checkpoint.config)
    num_query_tokens = model.config.num_query_tokens
    if checkpoint.family != "instructblip":
        return Blip2Processor(image_processor, tokenizer, num_query_tokens=num_query_tokens), model
    qformer_tokenizer = stand_in_tokenizer(checkpoint.config, which="qformer")
    return InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens), model


if __name__ == "__main__":
    sys.exit(main())
