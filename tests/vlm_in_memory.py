"""Small random models of the families whose processor takes videos as well, which needs torchvision: made in memory.

A stand-in takes the place of the part for videos, as none come. Such a processor can be neither saved nor read without
torchvision, so loading from a folder is not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from blip2cap.models.base import Checkpoint
from blip2cap.models.vlm.families import VLM_FAMILIES
from blip2cap.models.vlm.model import Vlm
from blip2cap.models.vlm.prompts import Prompter
from tests.vlm_checkpoints import (
    LAYERS,
    SIDE,
    SIGLIP,
    make_idefics_tokenizer,
    make_network,
    make_tokenizer,
    template,
    text_config,
)


class NoVideos:
    """The part of a processor that takes videos, without them."""

    temporal_patch_size = merge_size = num_frames = fps = 2
    size: dict[str, int] = {"shortest_edge": 1, "longest_edge": 1}  # noqa: RUF012  as processors have it
    model_input_names: list[str] = []  # noqa: RUF012


_QWEN_VISION: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2}
_QWEN_25_VISION = _QWEN_VISION | {"intermediate_size": 48, "out_hidden_size": 32}


def _qwen(kind: str, processor_class: Any, patch_size: int, vision: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = make_tokenizer(**names)
    side = 2 * patch_size
    images = Qwen2VLImageProcessorPil(patch_size=patch_size, min_pixels=side**2, max_pixels=16 * side**2)
    written = template("<|vision_start|><|image_pad|><|vision_end|>")
    processor = processor_class(images, tokenizer, NoVideos(), chat_template=written)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = text_config(tokenizer, f"{kind}_text", rope_parameters=rope, head_dim=16)
    return processor, {"vision_config": vision, "text_config": text, **ids}


def _qwen2() -> tuple[Any, dict[str, Any]]:
    return _qwen("qwen2_vl", Qwen2VLProcessor, 14, _QWEN_VISION | {"embed_dim": 32, "mlp_ratio": 2})


def _qwen25() -> tuple[Any, dict[str, Any]]:
    windows = {"fullatt_block_indexes": [1], "window_size": 56}
    return _qwen("qwen2_5_vl", Qwen2_5_VLProcessor, 14, _QWEN_25_VISION | windows)


def _qwen3() -> tuple[Any, dict[str, Any]]:
    stack = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return _qwen("qwen3_vl", Qwen3VLProcessor, 16, _QWEN_25_VISION | stack)


def _onevision() -> tuple[Any, dict[str, Any]]:
    tokenizer = make_tokenizer(image_token="<image>", video_token="<video>")
    grid = [[rows * SIDE, columns * SIDE] for rows in (1, 2) for columns in (1, 2)]
    images = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid)
    processor: Any = LlavaOnevisionProcessor(
        images,
        tokenizer,
        NoVideos(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    return processor, {
        "vision_config": SIGLIP,
        "text_config": text_config(tokenizer, "qwen2"),
        "image_token_index": processor.image_token_id,
        "video_token_index": processor.video_token_id,
        "image_grid_pinpoints": grid,
    }


def _internvl() -> tuple[Any, dict[str, Any]]:
    names = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
    tokenizer = make_tokenizer(**names, video_token="<video>")
    images = GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_patches=4, crop_to_patches=True)
    written = template("<IMG_CONTEXT>")
    processor: Any = InternVLProcessor(images, tokenizer, NoVideos(), image_seq_length=1, chat_template=written)
    vision = LAYERS | {"model_type": "internvl_vision", "image_size": [SIDE, SIDE], "patch_size": [14, 14]}
    text = text_config(tokenizer, "qwen2")
    return processor, {"vision_config": vision, "text_config": text, "image_token_id": processor.image_token_id}


def _smolvlm() -> tuple[Any, dict[str, Any]]:
    tokenizer = make_idefics_tokenizer()
    images = SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    with pytest.MonkeyPatch.context() as patch:
        # It writes the numbers of the frames of a video.
        patch.setattr(processing_smolvlm, "num2words", str, raising=False)
        written = template("<image>")
        processor = SmolVLMProcessor(images, tokenizer, NoVideos(), image_seq_len=1, chat_template=written)
    vision = LAYERS | {"model_type": "smolvlm_vision", "image_size": SIDE, "patch_size": 14}
    text = text_config(tokenizer, "llama")
    ids = {"image_token_id": processor.image_token_id, "pad_token_id": 0}
    return processor, {"vision_config": vision, "text_config": text, "scale_factor": 2, **ids}


_MAKERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen25,
    "qwen3_vl": _qwen3,
    "llava_onevision": _onevision,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
}
KINDS_IN_MEMORY = tuple(_MAKERS)


@contextmanager
def _any_part() -> Iterator[None]:
    """Let processors take the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda self, name, part: type(part))
        yield


def make_in_memory(kind: str) -> Vlm:
    """Make a model of one of KINDS_IN_MEMORY. Skips the test for a processor that needs torchvision for images too."""
    if kind in ("internvl", "smolvlm") and Version(transformers.__version__) < Version("5.11"):
        pytest.skip(f"{kind}: the processor of transformers {transformers.__version__} takes no images of Pillow")
    torch.manual_seed(0)
    with _any_part():
        processor, settings = _MAKERS[kind]()
    network = make_network(kind, settings)
    network.generation_config.pad_token_id = 0
    checkpoint = Checkpoint(name=kind, folder=Path(), commit="", family=kind, config={})
    prompter = Prompter(processor, VLM_FAMILIES[kind], checkpoint)
    return Vlm(network, prompter, checkpoint=checkpoint, dtype=torch.float32, max_pixels=1_000_000)
