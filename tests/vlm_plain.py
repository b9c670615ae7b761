"""Vision-language models with transformers alone, used as documented."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from PIL import Image

from blip2cap.decode.image import Pixels
from blip2cap.generate_options import GenerateOptions


def generate_plainly(
    processor: Any,
    network: Any,
    pixels_HWC: Pixels,
    prompt: str,
    options: GenerateOptions,
    system: str | None = None,
) -> list[tuple[str, int]]:
    """Generate for one image with transformers alone; return the texts and their numbers of tokens."""
    kind = network.config.model_type
    picture = Image.fromarray(pixels_HWC)
    if processor.chat_template is not None:
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]}
        ]
        if system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template([turns], add_generation_prompt=True, **settings)
    else:
        image = "<image>" if kind == "paligemma" else ""
        inputs = processor(images=picture, text=image + prompt, return_tensors="pt")
        inputs.pop("labels", None)
    with torch.inference_mode():
        output = network.generate(
            **inputs,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens or None,
            num_beams=options.num_beams,
            num_return_sequences=options.num_captions,
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            do_sample=False,
        )
    num_given = 1 if network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = network.generation_config.eos_token_id
    rows = [list(itertools.takewhile(lambda token: token not in ends, row)) for row in output[:, num_given:].tolist()]
    keeps = kind == "florence2"
    return [(processor.tokenizer.decode(row, skip_special_tokens=not keeps).strip(), len(row)) for row in rows]
