"""Samples -> the arguments of `forward` of the classes of transformers.

Language models that only decode (OPT, Llama) read `image tokens, prompt, target, end`, and learn the last two; T5 reads
`image tokens, prompt` and writes the target. Texts are padded on the right: causal attention does not see it there.

Shapes: B = samples, S = side of the images, T = tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.model import token_ids
from blip2cap.models.blip2.pixels import PixelInput
from blip2cap.models.registry import FAMILIES
from blip2cap.prompts import Template
from blip2cap.train.data.dataset import Sample
from blip2cap.train.options.data import MAX_TOKENS, DataOptions

IGNORED = -100
"""Label of a token that the loss ignores."""

Batch = dict[str, torch.Tensor]


class TextBase(Protocol):
    """The parts of a model that collators need; `train.model.base.Base` has them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the language model; of an image-text matching model that of the Q-Former."""

    @property
    def qformer_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Tokenizer of a Q-Former that reads the prompt."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, for its family and its configuration."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean of each channel, for values from 0 to 1."""

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation of each channel."""

    @property
    def num_queries(self) -> int:
        """Number of query tokens of an image."""

    @property
    def image_token_id(self) -> int | None:
        """Id of the placeholder of a query token; not needed by image-text matching models."""


def end_id(base: TextBase) -> int:
    """Return the id of the token that ends a target.

    BLIP-2 with OPT was trained to end texts with a line break, which its configuration names; the configurations of
    Vicuna on the hub have the ids of another tokenizer.
    """
    named = (base.checkpoint.config.get("text_config") or {}).get("eos_token_id")
    if base.checkpoint.text_type == "opt" and isinstance(named, int):
        return named
    return int(base.tokenizer.eos_token_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class NumTokens:
    """Numbers of tokens of an example."""

    given: int
    """Tokens before the target, those of the image among them."""
    target: int
    instruction: int
    """Tokens that the Q-Former reads; 0 if it reads no prompt."""


class Prompts:
    """The prompt of a sample."""

    def __init__(self, base: TextBase, *, prompt: str | None, template: str | None) -> None:
        family = FAMILIES[base.checkpoint.family]
        self._caption = Template(family.caption_prompt if prompt is None else prompt)
        self._question = Template(template or family.vqa_template, option="--template", question=True)
        if not (self._caption.is_constant and self._question.is_constant):
            raise UsageError("--prompt and --template can hold no field of an image in training. Remove it.")

    def of(self, sample: Sample) -> str:
        """Return the text before the target."""
        return self.of_question(sample.question)

    def of_question(self, question: str | None) -> str:
        """Return the text before an answer, or before a caption, whose question is None."""
        return self._caption.text if question is None else self._question.fill("", question)


class Collator:
    """Makes batches for `Blip2ForConditionalGeneration` and `InstructBlipForConditionalGeneration`."""

    def __init__(
        self, base: TextBase, *, prompt: str | None = None, template: str | None = None, max_tokens: int = MAX_TOKENS
    ) -> None:
        """`prompt` and `template` as in `DataOptions`; a target has at most `max_tokens`, its end among them.

        A target that is truncated has no end: the model does not learn to stop there.
        """
        assert base.image_token_id is not None, "an image-text matching model: use Stage1Collator"
        self.base, self.max_tokens = base, max_tokens
        self._prompts = Prompts(base, prompt=prompt, template=template)
        self._end = end_id(base)
        self._writes_apart = base.checkpoint.text_type == "t5"
        """True for an encoder with a decoder."""
        self._image = [base.image_token_id] * base.num_queries
        self._pixels = PixelInput(torch.device("cpu"), torch.float32, mean=base.mean, std=base.std)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return pixel_values [B, 3, S, S] float32, input_ids, attention_mask and labels [B, T].

        For InstructBLIP qformer_input_ids and qformer_attention_mask too.
        """
        prompts = [self._prompts.of(sample) for sample in samples]
        inputs, labels = [], []
        for prompt, sample in zip(prompts, samples, strict=True):
            read, target = self.tokenise(prompt, sample.target)
            target = target[: self.max_tokens]
            given = [*self._image, *read]
            inputs.append(given if self._writes_apart else given + target)
            labels.append(target if self._writes_apart else [IGNORED] * len(given) + target)
        batch: Batch = {"pixel_values": stack_pixels(self._pixels, samples)}
        batch["input_ids"], batch["attention_mask"] = pad(inputs, _padding_id(self.base.tokenizer))
        batch["labels"], _ = pad(labels, IGNORED)
        self._check(batch["input_ids"])
        if self.base.qformer_tokenizer is not None:
            tokenizer = self.base.qformer_tokenizer
            instructions = [token_ids(tokenizer, prompt) for prompt in prompts]
            batch["qformer_input_ids"], batch["qformer_attention_mask"] = pad(instructions, _padding_id(tokenizer))
        return batch

    def tokenise(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt, as a run tokenises it, and those of the whole target with its end.

        Raises ModelError if the tokenizer merges the two.
        """
        tokenizer = self.base.tokenizer
        prompt_ids = token_ids(tokenizer, prompt)
        if self._writes_apart:
            return prompt_ids, token_ids(tokenizer, target)
        # Together: whether a space belongs to the first token of the target depends on the tokenizer.
        ids = token_ids(tokenizer, f"{prompt} {target}" if prompt else target)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise ModelError(
                f'--model {self.base.checkpoint.name}: its tokenizer reads the prompt "{prompt}" as other tokens if '
                f'the text "{target}" follows, so a run would not continue it as trained. Use another --prompt.'
            )
        return prompt_ids, [*ids[len(prompt_ids) :], self._end]

    def num_tokens(self, question: str | None, target: str) -> NumTokens:
        """Count the tokens of an example, those of its target before it is truncated."""
        prompt = self._prompts.of_question(question)
        prompt_ids, target_ids = self.tokenise(prompt, target)
        tokenizer = self.base.qformer_tokenizer
        return NumTokens(
            given=len(self._image) + len(prompt_ids),
            target=len(target_ids),
            instruction=0 if tokenizer is None else len(token_ids(tokenizer, prompt)),
        )

    def _check(self, ids_BT: torch.Tensor) -> None:
        """With another number of placeholders, transformers would ignore images, or move them to other rows."""
        counts = ids_BT.eq(int(self._image[0])).sum(dim=1).tolist()
        assert set(counts) == {self.base.num_queries}, f"{counts} image tokens, not {self.base.num_queries} each"


class Stage1Collator:
    """Makes batches of images and texts for the losses on `Blip2ForImageTextRetrieval`."""

    def __init__(self, base: TextBase, *, max_tokens: int = MAX_TOKENS) -> None:
        """A text has at most `max_tokens`, those at its begin and end among them; a truncated one has its end too."""
        self.base, self.max_tokens = base, max_tokens
        self._pixels = PixelInput(torch.device("cpu"), torch.float32, mean=base.mean, std=base.std)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return pixel_values [B, 3, S, S] float32, input_ids and attention_mask [B, T], image_ids [B].

        Texts have no placeholders for an image; equal image_ids are the same image.
        """
        texts = [self.tokenise(sample.target) for sample in samples]
        texts = [ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]] for ids in texts]
        batch: Batch = {"pixel_values": stack_pixels(self._pixels, samples)}
        batch["input_ids"], batch["attention_mask"] = pad(texts, _padding_id(self.base.tokenizer))
        batch["image_ids"] = torch.tensor([sample.image for sample in samples])
        return batch

    def tokenise(self, target: str) -> list[int]:
        """Return the ids of a whole text, with those at its begin and end."""
        return token_ids(self.base.tokenizer, target)

    def num_tokens(self, question: str | None, target: str) -> NumTokens:
        """Count the tokens of a text before it is truncated."""
        return NumTokens(given=0, target=len(self.tokenise(target)), instruction=0)


def make_collator(base: TextBase, options: DataOptions) -> Collator | Stage1Collator:
    """Return the collator of a model: that of the first stage for an image-text matching model."""
    if base.checkpoint.family == "matching":
        return Stage1Collator(base, max_tokens=options.max_tokens)
    return Collator(base, prompt=options.prompt, template=options.template, max_tokens=options.max_tokens)


def stack_pixels(pixels: PixelInput, samples: Sequence[Sample]) -> torch.Tensor:
    """Return the normalised pixels of samples, float32 [B, 3, S, S]."""
    pixels_BCHW = torch.stack([sample.pixels for sample in samples])
    return pixels.normalise(pixels_BCHW.permute(0, 2, 3, 1)).contiguous()


def pad(rows: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right; return them, int64 [B, T], and a mask with 1 for what is no padding."""
    length = max(map(len, rows))
    padded = torch.full((len(rows), length), value)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = 1
    return padded, mask


def _padding_id(tokenizer: Any) -> int:
    """Return the id of padding; it is masked, so any id does for a tokenizer without one."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
