"""Training of the tiny matching model by the losses of BLIP-2's first stage, on scenes with true and false texts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Blip2ForConditionalGeneration, TrainingArguments, set_seed
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.models.base import Checkpoint
from blip2cap.models.checkpoint import TINY
from blip2cap.options import ModelOptions
from blip2cap.train.drawn import DrawnTrainee, Say, found_of
from blip2cap.train.model.base import Base
from blip2cap.train.options.data import DataOptions
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.options.model import OptimOptions, TuneOptions
from blip2cap.train.prepare import Prepared, TrainJob, assemble
from blip2cap.train.tiny_itm import itm_config, new_model
from blip2cap.train.tiny_itm_data import PairCollator, PairOptions, ScenePairs
from blip2cap.train.tiny_itm_losses import Batch, losses
from blip2cap.train.wordpiece import new_tokenizer

OPTIM = OptimOptions(learning_rate=1e-3, warmup_steps=100, beta2=0.98)
LOOP = LoopOptions(
    max_steps=3_500,
    batch_size=32,
    dtype="float32",
    log_every=50,
    checkpoint_every=50,
    num_samples=0,
    seed=1,
    num_workers=1,
)
_ITM_WEIGHT = 2.0
"""Weight of the match, relative to the other two losses."""


class TinyItmTrainee(DrawnTrainee):
    """The tiny matching model in training; its vision encoder is frozen, and its outputs are the input."""

    def __init__(self, base: Base, *, seed: int) -> None:
        super().__init__(base, stage="stage1", tune=TuneOptions(train=("qformer",)), seed=seed)
        self.model.vision_model.requires_grad_(False)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `loss` and its parts; `batch` is one of `PairCollator`."""
        assert self.stage1 is not None
        parts = losses(self.model, self.stage1, Batch(**batch))
        total = parts["itc"] + _ITM_WEIGHT * parts["itm"] + parts["lm"]
        return {"loss": total, **{f"loss_{name}": loss for name, loss in parts.items()}}


def job(folder: Path, *, num_steps: int | None = None) -> TrainJob:
    """Return the training of the matching model in the package; `num_steps` is a shorter one."""
    return TrainJob(
        task="stage1",
        out=folder,
        model=ModelOptions(name="tiny-itm"),
        data=DataOptions(),
        tune=TuneOptions(),
        optim=OPTIM,
        loop=replace(LOOP, max_steps=num_steps or LOOP.max_steps),
    )


def new_base(seed: int) -> Base:
    """Return the tiny matching model, which starts from the weights of the tiny captioner."""
    captioner = Blip2ForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    tokenizer = new_tokenizer()
    config = itm_config(captioner.config, tokenizer)
    model = new_model(captioner, config, seed)
    return Base(
        model=model,
        tokenizer=tokenizer,
        qformer_tokenizer=None,
        checkpoint=Checkpoint(
            name="tiny-itm", folder=Path(), commit="", family="matching", config=model.config.to_dict()
        ),
        mean=tuple(OPENAI_CLIP_MEAN),
        std=tuple(OPENAI_CLIP_STD),
        image_token_id=config.image_token_index,
    )


def prepare_tiny_itm(
    job: TrainJob, arguments: TrainingArguments, *, dtype: torch.dtype, say: Say, data: PairOptions | None = None
) -> Prepared:
    """Make the model and its scenes, as `prepare` reads those of users."""
    data = data or PairOptions()
    set_seed(job.loop.seed)
    base = new_base(job.loop.seed)
    trainee = TinyItmTrainee(base, seed=job.loop.seed)
    # The worker processes encode, with an encoder of their own on the CPU.
    encoder = copy.deepcopy(base.model.vision_model).eval()
    cache = job.out.with_name(f"{job.out.name}.features")
    return assemble(
        job,
        arguments,
        dtype,
        say,
        trainee=trainee.to(arguments.device),
        collate=PairCollator(base.tokenizer, encoder, cache, data),
        train=ScenePairs(data),
        val=None,
        found=found_of(data),
    )
