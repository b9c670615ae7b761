"""Training of the tiny matching model by the losses of BLIP-2's first stage, on scenes with true and false texts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Blip2ForConditionalGeneration

from blip2cap.models.checkpoint import TINY
from blip2cap.train.loading import load_batches
from blip2cap.train.loop import LoopOptions
from blip2cap.train.stage1 import Batch, Stage1, losses
from blip2cap.train.tiny import new_processor
from blip2cap.train.tiny_itm import itm_config, new_model
from blip2cap.train.tiny_itm_accuracy import Scores, measure_matches
from blip2cap.train.tiny_itm_data import PairBatches, PairOptions
from blip2cap.train.wordpiece import new_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyItmOptions:
    """Options of the training of the tiny matching model, besides those of the loop."""

    seed: int = 1
    """Seed of the initial weights and of the hard negatives; the data has seeds of its own."""
    data: PairOptions = field(default_factory=PairOptions)


ITM_LOOP = LoopOptions(
    num_steps=1_700, polish_steps=0, warmup_steps=100, report_every=50, checkpoint_every=50, evaluate_every=400
)
"""Options of the loop for this recipe."""


class TinyItmRecipe:
    """The tiny matching model in training; it starts from the weights of the tiny captioner."""

    autocast: torch.dtype | None = None
    loss_weights: Mapping[str, float] = {"itc": 1.0, "itm": 3.0, "lm": 1.0}

    def __init__(self, options: TinyItmOptions, cache: Path) -> None:
        """`cache` is a file for the features of the training scenes; it may be deleted."""
        self.options, self.cache = options, cache
        captioner = Blip2ForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
        self.tokenizer = new_tokenizer()
        self.config = itm_config(captioner.config, self.tokenizer)
        self.model = new_model(captioner, self.config, options.seed)
        self.extra = Stage1(self.config.qformer_config.hidden_size, len(self.tokenizer))
        self.modules: Mapping[str, nn.Module] = {"model": self.model, "extra": self.extra}
        self._dec_id = int(self.tokenizer.convert_tokens_to_ids("[DEC]"))

    def batches(self, steps: range, num_workers: int) -> Iterable[Batch]:
        """Draw scenes with a true and a false text each."""
        # The worker processes encode too, with an encoder of their own on the CPU.
        encoder = copy.deepcopy(self.model.vision_model).cpu().eval()
        data = PairBatches(self.tokenizer, encoder, self.cache, self.options.data)
        return load_batches(data, steps, num_workers)

    def losses(self, batch: Batch, step: int) -> Mapping[str, torch.Tensor]:
        """Return the losses of contrast, match and text."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_000_007 + step)
        return losses(self.model, self.extra, batch, dec_id=self._dec_id, generator=generator)

    def evaluate(self, folder: Path) -> Mapping[str, Any]:
        """Return recall and accuracy on two sets of scenes."""
        accuracy = measure_matches(Scores(self.model, self.tokenizer), num_sets=2).as_dict()
        return {"temperature": round(float(self.extra.log_temperature.detach().exp()), 4), **accuracy}

    def save(self, folder: Path) -> None:
        """Write weights in bfloat16 and the processor."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        new_processor(self.tokenizer, self.config).save_pretrained(folder)

    def settings(self) -> Mapping[str, Any]:
        """Return the options."""
        return asdict(self.options)
