"""Small models in training, and batches for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Blip2ForConditionalGeneration

from blip2cap.options import ModelOptions
from blip2cap.train.model.base import Base, load_base
from blip2cap.train.options.model import TuneOptions
from tests.checkpoints import IMAGE_SIZE


def read_base(folder: Path | str, stage: str = "caption", tune: TuneOptions | None = None, seed: int = 0) -> Base:
    """Load the base of a training from a folder, or by a name."""
    return load_base(ModelOptions(name=str(folder)), stage=stage, tune=tune or TuneOptions(), seed=seed)


def untie(folder: Path, new: Path) -> Path:
    """Save a checkpoint of T5 in `new` with a separate head, as Flan-T5 has it."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    model.language_model.lm_head.weight = torch.nn.Parameter(model.language_model.lm_head.weight.detach().flip(0))
    model.save_pretrained(new)
    for path in folder.iterdir():
        if not (new / path.name).exists():
            shutil.copy(path, new)
    return new


def text_batch(base: Base, num_rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make a batch for a model with a language model: image tokens, two words of a prompt, targets of two lengths."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_rows, 3, base.image_size, base.image_size, generator=generator)
    words = torch.randint(8, 60, (num_rows, 5), generator=generator)
    end = int(base.tokenizer.eos_token_id or 0)
    targets = torch.cat([words[:, 2:], torch.full((num_rows, 1), end)], dim=1)
    targets[1::2, -1] = -100  # shorter
    assert base.image_token_id is not None
    images = torch.full((num_rows, base.num_queries), base.image_token_id)
    prompt = torch.cat([images, words[:, :2]], dim=1)
    if base.checkpoint.text_type == "t5":
        batch = {"input_ids": prompt, "labels": targets}
    else:
        written = targets.clamp(min=0)
        batch = {"input_ids": torch.cat([prompt, written], dim=1)}
        batch["labels"] = torch.cat([torch.full_like(prompt, -100), targets], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if base.qformer_tokenizer is not None:
        batch["qformer_input_ids"] = words[:, :2]
        batch["qformer_attention_mask"] = torch.ones_like(words[:, :2])
    return {"pixel_values": pixels, **batch}


def noise_images(num_images: int, seed: int = 0, size: int = IMAGE_SIZE) -> list[torch.Tensor]:
    """Make images of noise, uint8 [H, W, C]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator) for _ in range(num_images)]


def pair_batch(base: Base, num_rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make a batch for stage 1: texts of two lengths; the first two pairs show the same image."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_rows, 3, base.image_size, base.image_size, generator=generator)
    pixels[1] = pixels[0]
    ids = torch.randint(8, 60, (num_rows, 6), generator=generator)
    ids[:, 0], ids[:, -1] = 2, 1
    mask = torch.ones_like(ids)
    ids[::2, -2], ids[::2, -1], mask[::2, -1] = 1, 0, 0
    image_ids = torch.tensor([0, *range(num_rows - 1)])
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "image_ids": image_ids}
