"""Small random checkpoints of vision-language models, saved as the hub has them, with processor and chat template.

Their tokenizers are byte-level BPE, trained here on a few words.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Florence2Processor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    Ovis2ImageProcessorPil,
    Ovis2Processor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

SIDE = 28
"""Side of the square that most of the image processors make, in pixels."""
WORDS = (
    "describe this image in a few words what is it how many are there caption en answer the colour of user assistant"
)
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ turn['role'].upper() }}: {% if turn['content'] is string %}"
    "{{ turn['content'] }}{% else %}{% for part in turn['content'] %}{% if part['type'] == 'image' %}IMAGE\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""A chat template like those of LLaVA; IMAGE stands for the token of the image."""


def make_tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer; `named` are tokens that a processor asks it for by their names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *dict.fromkeys(named.values())]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )


def template(image: str) -> str:
    """Return a chat template that writes `image` for an image."""
    return PLAIN_TEMPLATE.replace("IMAGE", image)


LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_CLIP: dict[str, Any] = LAYERS | {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 14}
SIGLIP: dict[str, Any] = _CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}


def text_config(tokenizer: PreTrainedTokenizerFast, model_type: str, **more: Any) -> dict[str, Any]:
    common = LAYERS | {"model_type": model_type, "vocab_size": len(tokenizer), "num_key_value_heads": 1}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 2048}
    return common | ids | more


def _llava() -> tuple[Any, Any]:
    tokenizer = make_tokenizer(image_token="<image>")
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    return processor, {
        "vision_config": _CLIP,
        "text_config": text_config(tokenizer, "llama"),
        "image_token_index": processor.image_token_id,
    }


def _llava_next() -> tuple[Any, Any]:
    tokenizer = make_tokenizer(image_token="<image>")
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    return processor, {
        "vision_config": _CLIP,
        "text_config": text_config(tokenizer, "llama"),
        "image_token_index": processor.image_token_id,
        "image_grid_pinpoints": grid,
    }


def _gemma3() -> tuple[Any, Any]:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(**names)
    images = Gemma3ImageProcessorPil(size={"height": 2 * SIDE, "width": 2 * SIDE})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template("<start_of_image>"))
    ids = {f"{each}_index": tokenizer.convert_tokens_to_ids(names[each]) for each in names}
    text = text_config(tokenizer, "gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=16)
    text["layer_types"] = ["sliding_attention", "full_attention"]
    return processor, {
        "vision_config": SIGLIP | {"image_size": 2 * SIDE},
        "text_config": text,
        "mm_tokens_per_image": 4,
        **ids,
    }


def _paligemma() -> tuple[Any, Any]:
    tokenizer = make_tokenizer(image_token="<image>")
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer)
    text = text_config(tokenizer, "gemma", head_dim=16)
    return processor, {
        "vision_config": SIGLIP,
        "text_config": text,
        "image_token_index": processor.image_token_id,
        "vocab_size": len(tokenizer),
        "projection_dim": 32,
        "hidden_size": 32,
    }


def _florence2() -> tuple[Any, Any]:
    places = {f"place_{number}": f"<loc_{number}>" for number in range(8)}
    tokenizer = make_tokenizer(image_token="<image>", **places)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    processor = Florence2Processor(images, tokenizer)
    vision = {
        "model_type": "florence_vision",
        "depths": [1, 1, 1, 1],
        "embed_dim": [8, 16, 16, 32],
        "num_heads": [1, 2, 2, 2],
        "num_groups": [1, 2, 2, 2],
        "window_size": 4,
        "projection_dim": 32,
        "drop_path_rate": 0.0,
        "max_position_embeddings": 8,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 32,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }
    return processor, {"vision_config": vision, "text_config": text, "image_token_id": processor.image_token_id}


def make_idefics_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer of Idefics3 and SmolVLM, with tokens for the parts of an image."""
    rows = {f"row_{row}_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
    return make_tokenizer(
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        end_of_utterance_token="<end_of_utterance>",
        global_image_token="<global-img>",
        **rows,
    )


def _idefics3() -> tuple[Any, Any]:
    tokenizer = make_idefics_tokenizer()
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=template("<image>"))
    vision = _CLIP | {"model_type": "idefics3_vision"}
    text = text_config(tokenizer, "llama")
    ids = {"image_token_id": processor.image_token_id, "pad_token_id": 0}
    return processor, {"vision_config": vision, "text_config": text, "scale_factor": 2, **ids}


def _ovis2() -> tuple[Any, Any]:
    atoms = {f"{name}_token": f"<IMG_{name.upper()}>" for name in ("atom", "start", "grid", "col", "row", "end")}
    tokenizer = make_tokenizer(image_token="<image>", **atoms)
    images = Ovis2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_patches=4)
    processor = Ovis2Processor(images, tokenizer, image_seq_length=4, chat_template=template("<image>"))
    indicators = [tokenizer.convert_tokens_to_ids(f"<IMG_{name}>") for name in ("START", "GRID", "COL", "ROW", "END")]
    vision = _CLIP | {"model_type": "ovis2_vision", "vocab_size": 40, "hidden_stride": 1}
    return processor, {
        "vision_config": vision | {"num_visual_indicator_tokens": 5},
        "text_config": text_config(tokenizer, "qwen2"),
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        "visual_indicator_token_ids": indicators,
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
    }


_MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "florence2": _florence2,
    "idefics3": _idefics3,
    "ovis2": _ovis2,
}
VLM_KINDS = tuple(_MAKERS)


def make_network(kind: str, settings: dict[str, Any]) -> Any:
    """Make a network with random weights."""
    network = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **settings))
    # In BART each token would repeat itself, as its output layer is the embedding of its input.
    is_bart = kind == "florence2"
    wide = {"embed_positions": 0.3, "shared": 0.1, "encoder_attn": 1.5, "self_attn": 0.1, "fc": 0.4} if is_bart else {}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2:  # wide weights: every layer matters, and no two logits are near each other
                parameter.normal_(0.0, next((std for part, std in wide.items() if part in name), 0.25))
            elif name.endswith("weight"):
                parameter.normal_(1.0, 0.1)
            elif is_bart:
                parameter.normal_(0.0, 0.3)
    # Many tokens end a text, so texts have different lengths.
    ends = range(2, network.config.get_text_config().vocab_size, 4 if is_bart else 16)
    network.generation_config.eos_token_id = list(ends)
    return network.eval()


def make_vlm(folder: Path, kind: str, seed: int = 0) -> Path:
    """Save a random checkpoint of one of VLM_KINDS in `folder`.

    Skips the test where the processor needs a package that is not installed: Idefics3's and Ovis2's need torchvision in
    transformers 5.10.
    """
    torch.manual_seed(seed)
    try:
        processor, settings = _MAKERS[kind]()
    except ImportError as error:
        if Version(transformers.__version__) >= Version("5.11"):
            raise
        pytest.skip(f"{kind}: {str(error).strip().splitlines()[0]}")
    make_network(kind, settings).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
