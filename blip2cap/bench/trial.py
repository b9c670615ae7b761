"""One text of a model on one image -> its work: for families whose configuration does not tell how much that is.

Counted are the layers that are called: two operations for each weight of a matrix product and each of its inputs, and
the bytes of the weights. Attention is not counted, and the tokens of an image are computed once for all its texts, as
far as a program may do that. So only a program whose images are smaller than the one that is tried can pass the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from blip2cap.bench.work import Phase, Work
from blip2cap.decode.image import Pixels
from blip2cap.errors import ModelError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.sampling import generation_config
from blip2cap.models.device import memory_errors
from blip2cap.models.vlm.model import Vlm
from blip2cap.models.vlm.prompts import PROCESSOR_ERRORS

_LANGUAGE = ("language_model", "text_model")
"""Names that the classes of transformers have for the language model."""


@dataclass(slots=True)
class _Counts:
    """Work of one phase."""

    flops: float = 0.0
    weights: dict[int, int] = field(default_factory=dict)
    """Bytes of the weights that were read, by the id of their layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The work of one text, which `work` multiplies."""

    vision: Phase
    prefill: Phase
    step: Phase
    """One decode step of one text."""
    head_flops: float
    token_bytes: float
    """Bytes of the keys and values of one more token."""

    def work(self, *, num_texts: int, new_tokens: float, num_beams: int) -> Work:
        """Return the work on an image with `num_texts` texts of `new_tokens` tokens, end token included."""
        num_steps = max(0.0, new_tokens - 1) * num_texts
        steps = replace(
            self.step,
            flops=self.step.flops * num_beams * num_steps,
            num_reads=num_steps,
            state_bytes=self.step.state_bytes * num_steps,
        )
        return Work(
            phases=(self.vision, self.prefill, steps),
            head_flops=self.head_flops * (1 + num_beams * num_steps),
            kv_bytes=self.prefill.state_bytes + num_beams * max(0.0, new_tokens - 2) * self.token_bytes,
        )


@torch.inference_mode()
def try_once(model: Vlm, pixels_HWC: Pixels, prompt: str) -> Trial:
    """Count the work of a text of two tokens about an image. Raises ModelError if the model does not take them."""
    network = model.network
    head = network.get_output_embeddings()
    options = GenerateOptions(max_new_tokens=2, min_new_tokens=2)
    config = generation_config(network.generation_config, options)
    config.return_dict_in_generate = True
    try:
        with model.current(), memory_errors(), _counting(network, head) as counts:
            inputs = model.prompter.inputs([pixels_HWC], [model.prompter.write(prompt, None)])
            model.check_length(inputs["input_ids"].shape[1], options)
            inputs = {name: model.on_device(value) for name, value in inputs.items()}
            output = network.generate(**inputs, generation_config=config)
    except (*PROCESSOR_ERRORS, MemoryError) as error:
        raise ModelError(
            f"--model {model.checkpoint.name}: does not take an image of {pixels_HWC.shape[1]} x {pixels_HWC.shape[0]} "
            f'pixels with the prompt "{prompt}": {error}'
        ) from error
    cache = getattr(output.past_key_values, "self_attention_cache", output.past_key_values)
    token_bytes = _cache_bytes(cache) / cache.get_seq_length()
    state_bytes = _cache_bytes(output.past_key_values)
    head_flops = 2.0 * head.weight.numel()
    return Trial(
        vision=_phase("vision", counts["vision"]),
        prefill=_phase("prefill", counts["prefill"], state_bytes),
        step=_phase("steps", counts["step"], state_bytes),
        head_flops=head_flops,
        token_bytes=token_bytes,
    )


def _phase(name: str, counts: _Counts, state_bytes: float = 0.0) -> Phase:
    weight_bytes = float(sum(counts.weights.values()))
    return Phase(name=name, flops=counts.flops, weight_bytes=weight_bytes, num_reads=1, state_bytes=state_bytes)


@contextmanager
def _counting(network: Any, head: nn.Module) -> Iterator[dict[str, _Counts]]:
    """Count the layers that are called in the block, by phase: `prefill` ends with the first call of the head."""
    counts = {name: _Counts() for name in ("vision", "prefill", "step")}
    language = {
        id(layer)
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in _LANGUAGE
        for layer in module.modules()
    } | {id(head)}
    num_heads = 0

    def count(layer: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal num_heads
        name = "vision" if id(layer) not in language else "step" if num_heads else "prefill"
        num_heads += layer is head
        is_convolution = isinstance(layer, nn.Conv2d | nn.Conv3d)
        # A quantised weight has its own shape; a convolution applies its kernel once for each place of its output.
        size = layer.weight.numel() if is_convolution else layer.in_features * layer.out_features
        num_rows = output.numel() / (layer.out_channels if is_convolution else layer.out_features)
        counts[name].flops += 2.0 * size * num_rows
        counts[name].weights[id(layer)] = layer.weight.numel() * layer.weight.element_size()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _cache_bytes(cache: Any) -> float:
    """Return the bytes of all keys and values."""
    parts = [getattr(cache, name) for name in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, name)]
    layers = [layer for part in parts or [cache] for layer in part.layers]
    return float(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None))
