"""Training of the tiny model, from random weights to a checkpoint folder, in numbered steps.

Three small auxiliary heads on the vision encoder predict, for every patch, the kind and the colour of the thing that
covers it, and whether its centre is there. BLIP-2 starts from a pretrained vision encoder; the heads replace that
pretraining while all parts train together. They are not saved with the model.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.model import Blip2
from blip2cap.tiny.scenes import COLOURS, PLURALS
from blip2cap.train.accuracy import measure
from blip2cap.train.data import IGNORED, Batch, DataOptions, batches
from blip2cap.train.tiny import new_model, new_processor, tiny_config
from blip2cap.train.tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """Options of the training of the tiny model."""

    num_steps: int = 8_000
    polish_steps: int = 1_000
    """Additional steps on a second, lower cosine."""
    learning_rate: float = 1e-3
    """Peak, reached after the warm-up; then it falls to zero on a cosine."""
    polish_rate: float = 3e-4
    """Learning rate at the start of the second cosine."""
    warmup_steps: int = 500
    weight_decay: float = 0.05
    hint_weight: float = 0.5
    """Weight of the patch heads' loss, relative to the loss of the texts."""
    clip_norm: float = 1.0
    seed: int = 1
    """Seed of the initial weights; the data has seeds of its own."""
    num_workers: int = 1
    """Number of processes that draw scenes."""
    checkpoint_every: int = 500
    evaluate_every: int = 1_000
    data: DataOptions = field(default_factory=DataOptions)


class PatchHeads(nn.Module):
    """Heads that predict kind, colour and centre for each patch from the output of the vision encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(width, len(PLURALS) + 1)
        self.colours = nn.Linear(width, len(COLOURS) + 1)
        self.centres = nn.Linear(width, 1)

    def forward(self, image_BPD: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the three losses; the centre of a thing has ten times the weight of an empty patch."""
        patches_BPD = image_BPD[:, 1:]
        kinds = functional.cross_entropy(self.kinds(patches_BPD).float().flatten(0, 1), batch.kinds_BP.flatten())
        colours = functional.cross_entropy(self.colours(patches_BPD).float().flatten(0, 1), batch.colours_BP.flatten())
        centres = functional.binary_cross_entropy_with_logits(
            self.centres(patches_BPD).float().squeeze(-1),
            batch.centres_BP,
            pos_weight=batch.centres_BP.new_tensor(10.0),
        )
        return kinds + colours + centres


def losses(model: Blip2ForConditionalGeneration, heads: PatchHeads, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss of the texts, loss of the patch heads); each image is encoded once for all its texts."""
    pixels_BCHW = batch.pixels_BCHW.float() / 255
    mean = pixels_BCHW.new_tensor(OPENAI_CLIP_MEAN).view(1, 3, 1, 1)
    std = pixels_BCHW.new_tensor(OPENAI_CLIP_STD).view(1, 3, 1, 1)
    pixels_BCHW = (pixels_BCHW - mean) / std
    image_BPD = model.vision_model(pixels_BCHW).last_hidden_state
    queries_BQD = model.qformer(
        query_embeds=model.query_tokens.expand(len(image_BPD), -1, -1), encoder_hidden_states=image_BPD
    ).last_hidden_state
    texts_per_image = batch.ids_BKT.shape[1]
    prefix_NQD = model.language_projection(queries_BQD).repeat_interleave(texts_per_image, dim=0)
    text_NTD = model.get_input_embeddings()(batch.ids_BKT.flatten(0, 1))
    embeds_NTD = torch.cat([prefix_NQD.to(text_NTD.dtype), text_NTD], dim=1)
    hidden_NTD = model.language_model.model(inputs_embeds=embeds_NTD, use_cache=False).last_hidden_state
    labels_N = batch.labels_BKT.flatten()
    predicted = labels_N != IGNORED
    hidden_ND = hidden_NTD[:, prefix_NQD.shape[1] :].flatten(0, 1)[predicted]
    text_loss = functional.cross_entropy(model.language_model.lm_head(hidden_ND).float(), labels_N[predicted])
    return text_loss, heads(image_BPD, batch)


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Return the learning rate: a linear warm-up, a cosine to zero, then a second, lower cosine."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.num_steps - options.warmup_steps)
    if step < options.num_steps:
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    done = (step - options.num_steps) / max(1, options.polish_steps)
    return options.polish_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(folder: Path, options: TrainOptions) -> Path:
    """Train the tiny model in `folder`, or resume from its checkpoint; return the folder of the finished model."""
    # 1. tokenizer, model, optimiser: all are functions of the seeds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer()
    config = tiny_config(tokenizer)
    model = new_model(config, options.seed).to(device)
    model.set_attn_implementation("eager")  # the backward of SDPA is slow in bfloat16 on a CPU
    heads = PatchHeads(config.vision_config.hidden_size).to(device)
    model.train()
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )

    # 2. resume
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / "state.pt"
    first_step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        first_step = int(state["step"])

    # 3. steps
    last_step = options.num_steps + options.polish_steps
    started = time.monotonic()
    averages: dict[str, float] = {}
    loader = batches(tokenizer, options.data, range(first_step, last_step), options.num_workers)
    for step, batch in enumerate(loader, start=first_step):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, options)
        batch = Batch(*(tensor.to(device) for tensor in batch))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            text_loss, hint_loss = losses(model, heads, batch)
        torch.autograd.backward(text_loss + options.hint_weight * hint_loss)
        norm = nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

        # 4. report, evaluation on unseen scenes, checkpoint
        for name, value in (("text", text_loss), ("hints", hint_loss), ("norm", norm)):
            averages[name] = 0.98 * averages.get(name, value.item()) + 0.02 * value.item()
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first_step) * options.data.batch_size / (time.monotonic() - started)
            line = {"step": step + 1, **{k: round(v, 4) for k, v in averages.items()}, "images_per_s": round(rate)}
            print(json.dumps(line), file=sys.stderr, flush=True)
        if (step + 1) % options.evaluate_every == 0:
            model.eval()
            checkpoint = Checkpoint(name="tiny", folder=folder, commit="", family="opt", config=model.config.to_dict())
            evaluated = Blip2(model, tokenizer, checkpoint=checkpoint, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)
            accuracy = measure(evaluated, num_scenes=200, num_questions=400)
            model.train()
            line = {"step": step + 1, "captions": accuracy.captions_exact, "answers": accuracy.answers_exact}
            line |= {"after_a_photo_of": accuracy.prompted_captions_exact}
            print(json.dumps(line | {"by_type": accuracy.by_type}), file=sys.stderr, flush=True)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == last_step:
            state = {
                "model": model.state_dict(),
                "heads": heads.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
            }
            torch.save(state, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)

    # 5. save the model in bfloat16, as plain transformers loads it, with its processor
    finished = folder / "model"
    model.eval().to(torch.bfloat16).save_pretrained(finished)
    new_processor(tokenizer, config).save_pretrained(finished)
    (finished / "training.json").write_text(json.dumps(asdict(options), indent=2) + "\n")
    return finished
