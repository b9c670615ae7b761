"""Training of the tiny captioner: captions and answers, with hints for each patch of the image.

Three small auxiliary heads on the vision encoder predict, for every patch, the kind and the colour of the thing that
covers it, and whether its centre is there. BLIP-2 starts from a pretrained vision encoder; the heads replace that
pretraining while all parts train together. They are not saved with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.model import Blip2
from blip2cap.tiny.scenes import COLOURS, PLURALS
from blip2cap.train.loading import load_batches
from blip2cap.train.pixels import normalise
from blip2cap.train.tiny import new_model, new_processor, tiny_config
from blip2cap.train.tiny_accuracy import measure
from blip2cap.train.tiny_data import IGNORED, Batch, DataOptions, SceneBatches
from blip2cap.train.tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyOptions:
    """Options of the training of the tiny captioner, besides those of the loop."""

    hint_weight: float = 0.5
    """Weight of the patch heads' loss, relative to the loss of the texts."""
    seed: int = 1
    """Seed of the initial weights; the data has seeds of its own."""
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
    image_BPD = model.vision_model(normalise(batch.pixels_BCHW)).last_hidden_state
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


class TinyRecipe:
    """The tiny captioner in training."""

    autocast: torch.dtype | None = torch.bfloat16

    def __init__(self, options: TinyOptions) -> None:
        self.options = options
        self.loss_weights: Mapping[str, float] = {"text": 1.0, "hints": options.hint_weight}
        self.tokenizer = train_tokenizer()
        self.config = tiny_config(self.tokenizer)
        self.model = new_model(self.config, options.seed)
        self.model.set_attn_implementation("eager")  # the backward of SDPA is slow in bfloat16 on a CPU
        self.heads = PatchHeads(self.config.vision_config.hidden_size)
        self.modules: Mapping[str, nn.Module] = {"model": self.model, "heads": self.heads}

    def batches(self, steps: range, num_workers: int) -> Iterable[Batch]:
        """Draw scenes with their captions and questions."""
        return load_batches(SceneBatches(self.tokenizer, self.options.data), steps, num_workers)

    def losses(self, batch: Batch, step: int) -> Mapping[str, torch.Tensor]:
        """Return the loss of the texts and that of the patch heads."""
        text_loss, hint_loss = losses(self.model, self.heads, batch)
        return {"text": text_loss, "hints": hint_loss}

    def evaluate(self, folder: Path) -> Mapping[str, Any]:
        """Return the shares of exact captions and answers."""
        config = self.model.config.to_dict()
        checkpoint = Checkpoint(name="tiny", folder=folder, commit="", family="opt", config=config)
        model = Blip2(self.model, self.tokenizer, checkpoint=checkpoint, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)
        accuracy = measure(model, num_scenes=200, num_questions=400)
        return {
            "captions": accuracy.captions_exact,
            "answers": accuracy.answers_exact,
            "after_a_photo_of": accuracy.prompted_captions_exact,
            "by_type": accuracy.by_type,
        }

    def save(self, folder: Path) -> None:
        """Write weights in bfloat16 and the processor."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        new_processor(self.tokenizer, self.config).save_pretrained(folder)

    def settings(self) -> Mapping[str, Any]:
        """Return the options."""
        return asdict(self.options)
