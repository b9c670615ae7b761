"""The speed limit of a model on this machine: the work of the texts that it generated, at the rates of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blip2cap.bench.images import middle_image
from blip2cap.bench.options import BenchOptions
from blip2cap.bench.report import Limit
from blip2cap.bench.stages import Loaded, Measured, median
from blip2cap.bench.trial import Trial, try_once
from blip2cap.bench.work import Work, count
from blip2cap.models.registry import FAMILIES
from blip2cap.models.vlm.model import Vlm
from blip2cap.records import ImageRef

_WEIGHT_BYTES = {"int8": 1.0, "int8-dynamic": 1.0, "fp8": 1.0, "nf4": 0.5}
"""Bytes of one weight, by quantisation."""
_ANY_NAME = "x.jpg"
"""Prompts of a benchmark hold no name."""


def count_work(
    loaded: Loaded,
    options: BenchOptions,
    *,
    prompts: Sequence[int],
    qformer_prompts: Sequence[int] = (),
    new_tokens: float,
    number_bytes: float,
) -> Work:
    """Count the work of a relative of BLIP-2 on one image, by its configuration; see `work.count`."""
    return count(
        loaded.checkpoint.config,
        prompts=prompts,
        new_tokens=new_tokens,
        num_beams=options.generate.num_beams,
        qformer_prompts=qformer_prompts,
        number_bytes=number_bytes,
        weight_bytes=_WEIGHT_BYTES.get(options.model.quantize or ""),
    )


def try_model(loaded: Loaded, options: BenchOptions, copies: Path) -> Trial | None:
    """Try a model whose work depends on the image with the middle one by size, of a folder of images in its form.

    Returns None for other models. Raises ModelError if it does not take that image.
    """
    model = loaded.model
    return try_once(model, middle_image(copies), _prompts(loaded, options)[0]) if isinstance(model, Vlm) else None


def _prompts(loaded: Loaded, options: BenchOptions) -> list[str]:
    """Return the prompts about an image."""
    task = options.task.for_checkpoint(loaded.checkpoint, FAMILIES[loaded.checkpoint.family])
    ref = ImageRef(path=_ANY_NAME, name=_ANY_NAME)
    return [task.prompt(ref, label) for label in task.labels]


def find_limit(
    loaded: Loaded,
    options: BenchOptions,
    measured: Measured,
    trial: Trial | None,
    *,
    flops_per_s: float,
    bytes_per_s: float,
) -> Limit:
    """Count the work of texts as long as those that were generated, at the batch sizes that they had."""
    model, whole = loaded.model, median(measured.whole)
    new_tokens = whole.num_tokens / max(1, whole.num_rows_ok)
    prompts = _prompts(loaded, options)
    num_texts = max(1, min(whole.texts_at_once, whole.num_rows_ok))
    if isinstance(model, Vlm):
        assert trial is not None
        num_images = min(num_texts, whole.num_images)  # it makes batches of its own, of similar images
        work = trial.work(num_texts=len(prompts), new_tokens=new_tokens, num_beams=options.generate.num_beams)
    else:
        num_images = max(1, min(whole.images_at_once, whole.num_images))
        readers = [tokenizer for tokenizer in (model.tokenizer, model.qformer_tokenizer) if tokenizer]
        lengths = [[len(reader(prompt).input_ids) for prompt in prompts] for reader in readers]
        work = count_work(
            loaded,
            options,
            prompts=lengths[0],
            qformer_prompts=lengths[1] if lengths[1:] else (),
            new_tokens=new_tokens,
            number_bytes=model.dtype.itemsize,
        )
    return Limit(
        work=work,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        images=num_images,
        texts=num_texts,
        new_tokens=new_tokens,
    )
