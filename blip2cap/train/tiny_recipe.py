"""Training of the tiny captioner: captions and answers, with hints for each patch of the image.

Three small auxiliary heads on the vision encoder predict, for every patch, the kind and the colour of the thing that
covers it, and whether its centre is there. BLIP-2 starts from a pretrained vision encoder; the heads replace that
pretraining while all parts train together. They are not saved with the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import TrainingArguments, set_seed
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.models.base import Checkpoint
from blip2cap.options import ModelOptions
from blip2cap.tiny.scenes import COLOURS, PLURALS, VALIDATION_SEEDS
from blip2cap.train.drawn import DrawnTrainee, Say, found_of
from blip2cap.train.model.base import Base
from blip2cap.train.options.data import DataOptions
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.options.model import OptimOptions, TuneOptions
from blip2cap.train.pixels import normalise
from blip2cap.train.prepare import Prepared, TrainJob, assemble
from blip2cap.train.tiny import new_model, tiny_config
from blip2cap.train.tiny_data import IGNORED, DrawnCollator, DrawnOptions, DrawnScenes
from blip2cap.train.tokenizer import train_tokenizer

OPTIM = OptimOptions(learning_rate=1e-3, warmup_steps=500, beta2=0.98, vision_layer_decay=1.0)
LOOP = LoopOptions(
    max_steps=11_000,
    batch_size=64,
    dtype="bfloat16",
    log_every=100,
    evaluate_every=1_000,
    checkpoint_every=500,
    num_samples=0,
    seed=1,
    num_workers=1,
)
_HINT_WEIGHT = 0.5
"""Weight of the patch heads' loss, relative to the loss of the texts."""
_NUM_VAL = 512


class PatchHeads(nn.Module):
    """Heads that predict kind, colour and centre for each patch from the output of the vision encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(width, len(PLURALS) + 1)
        self.colours = nn.Linear(width, len(COLOURS) + 1)
        self.centres = nn.Linear(width, 1)

    def forward(
        self, image_BPD: torch.Tensor, kinds_BP: torch.Tensor, colours_BP: torch.Tensor, centres_BP: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum of the three losses; the centre of a thing has ten times the weight of an empty patch."""
        patches_BPD = image_BPD[:, 1:]
        kinds = functional.cross_entropy(self.kinds(patches_BPD).float().flatten(0, 1), kinds_BP.flatten())
        colours = functional.cross_entropy(self.colours(patches_BPD).float().flatten(0, 1), colours_BP.flatten())
        centres = functional.binary_cross_entropy_with_logits(
            self.centres(patches_BPD).float().squeeze(-1), centres_BP, pos_weight=centres_BP.new_tensor(10.0)
        )
        return kinds + colours + centres


class TinyTrainee(DrawnTrainee):
    """The tiny captioner in training, all of it, with its patch heads."""

    def __init__(self, base: Base, *, seed: int) -> None:
        super().__init__(base, stage="caption", tune=TuneOptions(train=("all",)), seed=seed)
        self.heads = PatchHeads(base.model.config.vision_config.hidden_size)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `loss`, `loss_text` and `loss_hints`; all texts of a scene follow its queries in one sequence.

        `batch` is one of `DrawnCollator`. B = scenes, T = tokens of all texts, Q = query tokens.
        """
        model, texts_BT = self.model, batch["texts"]
        image_BPD = model.vision_model(normalise(batch["pixels"])).last_hidden_state
        queries_BQD = model.qformer(
            query_embeds=model.query_tokens.expand(len(image_BPD), -1, -1), encoder_hidden_states=image_BPD
        ).last_hidden_state
        text_BTD = model.get_input_embeddings()(batch["input_ids"])
        prefix_BQD = model.language_projection(queries_BQD).to(text_BTD.dtype)
        mask_B1SS, positions_BS = _mask_and_positions(texts_BT, prefix_BQD.shape[1], text_BTD.dtype)
        hidden_BTD = model.language_model.model(
            inputs_embeds=torch.cat([prefix_BQD, text_BTD], dim=1),
            attention_mask=mask_B1SS,
            position_ids=positions_BS,
            use_cache=False,
        ).last_hidden_state[:, prefix_BQD.shape[1] :]
        learned_BT = batch["targets"] != IGNORED
        logits_MV = model.language_model.lm_head(hidden_BTD[learned_BT]).float()
        text = functional.cross_entropy(logits_MV, batch["targets"][learned_BT])
        hints = self.heads(image_BPD, batch["kinds"], batch["colours"], batch["centres"])
        return {"loss": text + _HINT_WEIGHT * hints, "loss_text": text, "loss_hints": hints}


def _mask_and_positions(
    texts_BT: torch.Tensor, num_queries: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the additive attention mask [B, 1, S, S] and positions [B, S] of texts that do not see each other.

    Each token sees the queries and the tokens before it in its own text, whose positions begin after the queries.
    S = queries and tokens.
    """
    texts_BS = functional.pad(texts_BT, (num_queries, 0))
    steps_S = torch.arange(texts_BS.shape[1], device=texts_BS.device)
    queries_S = steps_S < num_queries
    same_BSS = texts_BS[:, :, None] == texts_BS[:, None, :]
    seen_BSS = (same_BSS | queries_S) & (steps_S[:, None] >= steps_S)
    first_BS = torch.where(queries_S, 0, same_BSS.int().argmax(dim=2) - num_queries)
    positions_BS = torch.where(queries_S | (texts_BS > 0), steps_S - first_BS, 0)
    mask_BSS = torch.zeros_like(seen_BSS, dtype=dtype).masked_fill(~seen_BSS, torch.finfo(dtype).min)
    return mask_BSS[:, None], positions_BS


def job(folder: Path, *, num_steps: int | None = None) -> TrainJob:
    """Return the training of the captioner in the package; `num_steps` is a shorter one."""
    return TrainJob(
        task="caption",
        out=folder,
        model=ModelOptions(name="tiny"),
        data=DataOptions(),
        tune=TuneOptions(train=("all",)),
        optim=OPTIM,
        loop=replace(LOOP, max_steps=num_steps or LOOP.max_steps),
    )


def new_base(seed: int) -> Base:
    """Return the tiny captioner with random weights; equal seeds give equal ones."""
    tokenizer = train_tokenizer()
    model = new_model(tiny_config(tokenizer), seed)
    model.set_attn_implementation("eager")  # the backward of SDPA is slow in bfloat16 on a CPU
    config = model.config.to_dict()
    return Base(
        model=model,
        tokenizer=tokenizer,
        qformer_tokenizer=None,
        checkpoint=Checkpoint(name="tiny", folder=Path(), commit="", family="opt", config=config),
        mean=tuple(OPENAI_CLIP_MEAN),
        std=tuple(OPENAI_CLIP_STD),
        image_token_id=model.config.image_token_index,
    )


def prepare_tiny(
    job: TrainJob, arguments: TrainingArguments, *, dtype: torch.dtype, say: Say, data: DrawnOptions | None = None
) -> Prepared:
    """Make the model and its scenes, as `prepare` reads those of users."""
    data = data or DrawnOptions()
    set_seed(job.loop.seed)
    base = new_base(job.loop.seed)
    trainee = TinyTrainee(base, seed=job.loop.seed).to(arguments.device)
    val = replace(data, num_scenes=min(_NUM_VAL, data.num_scenes))
    return assemble(
        job,
        arguments,
        dtype,
        say,
        trainee=trainee,
        collate=DrawnCollator(int(base.tokenizer.pad_token_id)),
        train=DrawnScenes(base.tokenizer, data),
        val=DrawnScenes(base.tokenizer, val, VALIDATION_SEEDS),
        found=found_of(data),
    )
