"""All families of models. A new family is a file of its own and an entry here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip2cap.errors import ModelError
from blip2cap.models.base import HINT, Checkpoint, Family, Model, text_type
from blip2cap.models.vlm.families import VLM_FAMILIES, check_files
from blip2cap.options import MAX_PIXELS, ModelOptions

if TYPE_CHECKING:
    from blip2cap.decode.inputs import ImageInput


def _square(checkpoint: Checkpoint, options: ModelOptions) -> ImageInput:
    from blip2cap.decode.inputs import SquareInput
    from blip2cap.models.blip2.resize import choose_resizer

    return SquareInput(checkpoint.image_size, choose_resizer)


def _data_urls(checkpoint: Checkpoint, options: ModelOptions) -> ImageInput:
    from blip2cap.decode.data_urls import DataUrlInput

    return DataUrlInput(options.max_pixels or MAX_PIXELS)


def _load_from_server(checkpoint: Checkpoint, options: ModelOptions) -> Model:
    from blip2cap.models.server.model import load

    return load(checkpoint, options)


def _load_blip2(checkpoint: Checkpoint, options: ModelOptions) -> Model:
    from blip2cap.models.blip2.load import load

    return load(checkpoint, options)


def _load_matching(checkpoint: Checkpoint, options: ModelOptions) -> Model:
    from blip2cap.models.matching.load import load

    return load(checkpoint, options)


def _resized(checkpoint: Checkpoint, options: ModelOptions) -> ImageInput:
    from blip2cap.decode.inputs import ResizedInput

    return ResizedInput(options.max_pixels or MAX_PIXELS)


def _load_vlm(checkpoint: Checkpoint, options: ModelOptions) -> Model:
    from blip2cap.models.vlm.load import load

    return load(checkpoint, options)


_ALL = (
    # Before the others, which have the same model_type.
    Family(
        name="matching",
        model_type="blip-2",
        architecture="Blip2ForImageTextRetrieval",
        tasks=("match", "embed"),
        tokenizers=("",),
        image_input=_square,
        load=_load_matching,
    ),
    # Question templates: the paper (arXiv 2301.12597, table 3).
    Family(
        name="opt",
        model_type="blip-2",
        text_types=("opt",),
        caption_prompt="",
        vqa_template="Question: {question} Answer:",
        tokenizers=("",),
        image_input=_square,
        load=_load_blip2,
    ),
    Family(
        name="t5",
        model_type="blip-2",
        text_types=("t5",),
        caption_prompt="",
        vqa_template="Question: {question} Short answer:",
        tokenizers=("",),
        image_input=_square,
        load=_load_blip2,
    ),
    # Tuned on instructions: needs one for a caption, and takes the bare question, as its authors' examples do.
    Family(
        name="instructblip",
        model_type="instructblip",
        text_types=("t5", "llama"),
        caption_prompt="A short image description.",
        vqa_template="{question}",
        tokenizers=("", "qformer_tokenizer"),
        image_input=_square,
        load=_load_blip2,
    ),
    *(
        Family(
            name=each.name,
            model_type=each.name,
            tasks=("caption", "vqa", "chat") if each.has_chat else ("caption", "vqa"),
            caption_prompt=each.caption_prompt,
            vqa_template=each.vqa_template,
            has_system_turn=each.has_chat,
            tokenizers=("",),
            check_files=check_files,
            any_image_size=True,
            region_prompts=each.region_prompts,
            image_input=_resized,
            load=_load_vlm,
        )
        for each in VLM_FAMILIES.values()
    ),
    # Any model behind a server that speaks the chat API of OpenAI. No config.json has this model_type.
    Family(
        name="openai",
        model_type="",
        tasks=("caption", "vqa", "chat"),
        caption_prompt="Describe the image in one sentence.",
        vqa_template="{question}",
        has_system_turn=True,
        any_image_size=True,
        batch_size=8,
        grace_s=5.0,  # an answer may take minutes, or never come
        image_input=_data_urls,
        load=_load_from_server,
    ),
)
FAMILIES = {family.name: family for family in _ALL}
"""By name; tests add entries of their own."""


def recognise(name: str, config: dict[str, Any]) -> Family:
    """Return the family of the content of a config.json. Raises ModelError, which names the model `name`."""
    for family in FAMILIES.values():
        if family.model_type and family.matches(config):
            return family
    supported: dict[str, tuple[str, ...]] = {}
    for family in filter(lambda family: family.model_type, FAMILIES.values()):
        supported[family.model_type] = supported.get(family.model_type, ()) + family.text_types
    expected = ", ".join(f"{kind} ({', '.join(texts)})" if texts else kind for kind, texts in supported.items())
    raise ModelError(
        f"--model {name}: model_type {config.get('model_type')!r} with language model {text_type(config)!r}. "
        f"Expected {expected}. {HINT}"
    )


def load(checkpoint: Checkpoint, options: ModelOptions) -> Model:
    """Load a checkpoint with the loader of its family. Raises ModelError or UsageError."""
    return FAMILIES[checkpoint.family].load(checkpoint, options)
