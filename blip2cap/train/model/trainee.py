"""A model in training: which parameters train, its loss, and the finished checkpoint.

Shapes: B = examples, T = tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from blip2cap.errors import ModelError
from blip2cap.models.base import Model
from blip2cap.models.blip2.instructblip import InstructBlip
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.matching.model import Matcher
from blip2cap.train.model import lora
from blip2cap.train.model.base import Base
from blip2cap.train.model.finished import save_checkpoint, save_folder
from blip2cap.train.model.groups import parameter_groups
from blip2cap.train.model.stage1 import Stage1
from blip2cap.train.options.model import OptimOptions, TuneOptions

_PREFIXES = {
    # post_layernorm is not frozen with the rest of the vision encoder in LAVIS, where it is `ln_vision`.
    "qformer": (
        *("query_tokens", "qformer.", "language_projection.", "vision_model.post_layernorm."),
        *("embeddings.", "vision_projection.", "text_projection.", "itm_head."),
    ),
    "vision": ("vision_model.",),
    "llm": ("language_model.",),
    "lora": (),
}
"""Beginnings of the names of the parameters of each part; adapters have names of their own."""


class Trainee(nn.Module):
    """A model in training; parameters that do not train are frozen."""

    def __init__(self, base: Base, *, stage: str, tune: TuneOptions, seed: int) -> None:
        """Prepare the network of `base`, in place; `seed` is that of the weights of adapters."""
        super().__init__()
        tune.check_stage(stage)
        self.base, self.model = base, base.model
        self._adapters_alone = tune.no_merge
        self.frozen_dtype = torch.float32
        self._rounded: tuple[str, ...] = ()
        self._read_again: Callable[[], nn.Module] | None = None
        if "lora" in tune.parts:
            lora.add_adapters(self.model.language_model, tune, checkpoint=base.checkpoint, seed=seed)
        prefixes = tuple(prefix for part in tune.parts for prefix in _PREFIXES[part])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes) if prefixes else False)
            if lora.is_adapter(name):
                parameter.requires_grad_(True)
        if tune.gradient_checkpointing:
            _checkpoint_gradients(self.model)
        self.stage1: Stage1 | None = None
        if stage == "stage1":
            self.stage1 = Stage1(self.model.config, begin_id=_begin_id(base), seed=seed)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the `loss`: the mean over all tokens whose label is not -100; in stage 1, also the parts of its sum.

        `batch` has `labels`, int [B, T], and the other arguments of the network's own forward; in stage 1, those of
        `Stage1.forward`.
        """
        if self.stage1 is not None:
            losses: dict[str, torch.Tensor] = self.stage1(self.model, **batch)
            return losses
        labels_BT = batch.pop("labels")
        language_model = self.model.language_model
        if language_model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = language_model.prepare_decoder_input_ids_from_labels(labels_BT)
            logits_BTV = self.model(**batch, use_cache=False).logits
        else:
            # The token after each one is predicted; the logits of the last one have no label.
            logits_BTV, labels_BT = self.model(**batch, use_cache=False).logits[:, :-1], labels_BT[:, 1:]
        learned_BT = labels_BT != -100
        # Only the logits of learned tokens become float32: under autocast the others stay half as large.
        loss = functional.cross_entropy(logits_BTV[learned_BT].float(), labels_BT[learned_BT])
        return {"loss": loss}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that train, by their names in `state_dict`."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def round_frozen(self, dtype: torch.dtype, read_again: Callable[[], nn.Module]) -> None:
        """Store the frozen weights of linear layers in `dtype`, that of autocast: half the memory, and no loss changes.

        Autocast would round them for every product anyway; all else stays float32. `read_again` returns the network as
        it was at first, whose own values `save` writes.
        """
        # A head may have the weights of the embeddings, which nothing rounds.
        shared = {id(module.weight) for module in self.model.modules() if isinstance(module, nn.Embedding)}
        linear = {
            f"{name}.{key}"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and id(module.weight) not in shared
            for key, _ in module.named_parameters(recurse=False)
        }
        self.frozen_dtype, self._read_again = dtype, read_again
        self._rounded = tuple(
            name for name, parameter in self._in_dtype_of_runs() if name in linear and not parameter.requires_grad
        )
        for name in self._rounded:
            parameter = self.model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)

    def _in_dtype_of_runs(self) -> list[tuple[str, nn.Parameter]]:
        """Return what a run has in `frozen_dtype`, by names: everything, but in float16 what transformers spares."""
        spared: set[str] = set()
        if self.frozen_dtype == torch.float16:
            spared.update(*(getattr(each, "_keep_in_fp32_modules", None) or () for each in self.model.modules()))
        return [(name, each) for name, each in self.model.named_parameters() if not spared & {*name.split(".")}]

    @contextmanager
    def in_one_dtype(self) -> Iterator[None]:
        """Have the network in `frozen_dtype` as a whole within the block, as runs have it."""
        before = [(parameter, parameter.data) for _, parameter in self._in_dtype_of_runs()]
        try:
            for parameter, data in before:
                parameter.data = data.to(self.frozen_dtype)
            yield
        finally:
            for parameter, data in before:
                parameter.data = data

    def groups(self, options: OptimOptions) -> list[dict[str, Any]]:
        """Return the parameter groups for AdamW, each with its `lr` and `weight_decay`."""
        return parameter_groups(
            self.trainable(), options, num_vision_layers=len(self.model.vision_model.encoder.layers)
        )

    def captioner(self) -> Model:
        """Return a model that captions, or matches, with the live weights, which must be in eval mode while it does.

        After `round_frozen` it runs only `in_one_dtype`.
        """
        base = self.base
        common: dict[str, Any] = {"checkpoint": base.checkpoint, "mean": base.mean, "std": base.std}
        if base.family == "matching":
            return Matcher(self.model, base.tokenizer, **common)
        if base.qformer_tokenizer is not None:
            return InstructBlip(self.model, base.tokenizer, base.qformer_tokenizer, **common)
        return Blip2(self.model, base.tokenizer, **common)

    def save(self, folder: Path) -> None:
        """Write a whole checkpoint in the form of the hub, float32, with adapters merged; the live weights stay.

        With `no_merge` write adapters alone. A checkpoint in the folder is replaced; its other files stay. Raises
        OutputError, and ModelError if weights must be read again and are others than before.
        """
        if self._adapters_alone:
            checkpoint = self.base.checkpoint
            save_folder(folder, lambda new: lora.write_adapters(self.model, new, checkpoint=checkpoint))
            return
        save_checkpoint(
            self.base, folder, state=lora.merged_state(self.model, {**self.model.state_dict(), **self._unrounded()})
        )

    def _unrounded(self) -> dict[str, torch.Tensor]:
        """Return the values that `round_frozen` has rounded, by their names in the state of the network."""
        if self._read_again is None:
            return {}
        rounded, state = self.model.state_dict(), self._read_again().state_dict()
        found = {name: state[name.replace(".base_layer.", ".")] for name in self._rounded}
        for name, value in found.items():
            if not torch.equal(value.to(rounded[name].dtype), rounded[name].cpu()):
                raise ModelError(
                    f"--model {self.base.checkpoint.name}: it has changed since the training began, in {name}. Restore "
                    "it and run the same command again, which continues at the last checkpoint."
                )
        return found


def _begin_id(base: Base) -> int:
    """Return the id of the token that begins generated texts: LAVIS's [DEC], or the tokenizer's own."""
    begin_id = base.tokenizer.get_vocab().get("[DEC]", base.tokenizer.bos_token_id)
    if begin_id is None:
        raise ModelError(
            f"--model {base.checkpoint.name}: its tokenizer has neither [DEC] nor another begin token, which stage 1 "
            "needs to generate texts. Use the tokenizer of Salesforce/blip2-itm-vit-g."
        )
    return int(begin_id)


def _checkpoint_gradients(model: nn.Module) -> None:
    """Compute the activations of each layer again in the backward pass."""
    # Not model.gradient_checkpointing_enable(): its name and its arguments change between the versions of transformers.
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = _checkpoint


def _checkpoint(function: Any, *arguments: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)
