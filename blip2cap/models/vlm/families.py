"""The families of vision-language models: what each has of its own, known without torch; and a check of their files.

A new family is an entry here, if transformers has its class natively: no code of a repository is run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blip2cap.errors import ModelError
from blip2cap.models.base import HINT, Checkpoint, read_json

_DESCRIBE = "Describe this image."
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_TEMPLATE_KEYS = ("tokenizer_config.json", "processor_config.json")
"""Files that may hold a chat template under the key `chat_template`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmFamily:
    """A family of vision-language models; its name is the model_type of its config.json."""

    name: str
    has_chat: bool = True
    """True if prompts go through a chat template; False: the processor takes an image and a text."""
    caption_prompt: str = _DESCRIBE
    """User's turn of a caption unless --prompt is given."""
    vqa_template: str = "{question}"
    """User's turn of a question unless --template is given."""
    padding: Literal["left", "right"] = "left"
    """Side on which prompts are padded: left, where the text continues them; right for an encoder."""
    prefix: str = ""
    """Text before a prompt, where there is no chat template."""
    packages: tuple[str, ...] = ()
    """Packages that its processor needs besides those of every install."""
    takes_float16: bool = True
    """False if its activations overflow float16."""
    keeps_places: bool = False
    """True if the texts hold places in the image as special tokens, such as <loc_1>, which are no part of others."""
    shares_images: bool = False
    """True if the keys and values of an image do not depend on what comes after it, and are kept in a plain cache."""
    has_grid_positions: bool = False
    """True if its tokens have a time, a row and a column; a text goes on at a distance that depends on the image."""
    region_prompts: tuple[str, ...] = ()
    """Beginnings of prompts whose texts hold regions of the image, as `tasks.regions` reads them."""
    takes_special_tokens: bool = False
    """True if prompts may hold special tokens, such as places."""


_VIDEO = ("torchvision",)
"""Packages of processors that handle videos as well."""

# Prompts of PaliGemma and tasks of Florence-2: their model cards.
VLM_FAMILIES = {
    family.name: family
    for family in (
        VlmFamily(name="llava", shares_images=True),
        VlmFamily(name="llava_next", shares_images=True),
        VlmFamily(name="llava_onevision", packages=_VIDEO, shares_images=True),
        VlmFamily(name="qwen2_vl", packages=_VIDEO, shares_images=True, has_grid_positions=True),
        VlmFamily(name="qwen2_5_vl", packages=_VIDEO, shares_images=True, has_grid_positions=True),
        VlmFamily(name="qwen3_vl", packages=_VIDEO, shares_images=True, has_grid_positions=True),
        VlmFamily(name="internvl", packages=_VIDEO, shares_images=True),
        VlmFamily(name="smolvlm", packages=(*_VIDEO, "num2words"), shares_images=True),
        VlmFamily(name="idefics3", shares_images=True),
        VlmFamily(name="gemma3", takes_float16=False),
        VlmFamily(name="ovis2", shares_images=True),
        VlmFamily(name="molmo2", packages=_VIDEO),
        VlmFamily(name="minicpmv4_6", packages=_VIDEO),
        VlmFamily(
            name="paligemma",
            has_chat=False,
            prefix="<image>",
            caption_prompt="caption en",
            vqa_template="answer en {question}",
        ),
        VlmFamily(
            name="florence2",
            has_chat=False,
            caption_prompt="<CAPTION>",
            padding="right",
            keeps_places=True,
            region_prompts=(
                *("<OD>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<CAPTION_TO_PHRASE_GROUNDING>"),
                *("<OPEN_VOCABULARY_DETECTION>", "<OCR_WITH_REGION>"),
            ),
            takes_special_tokens=True,
        ),
    )
}
"""By name."""


def check_files(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint has a processor, and a chat template if its family needs one. Raises ModelError.

    Raises it also if a package is missing that the processor needs.
    """
    family, name, folder = VLM_FAMILIES[checkpoint.family], checkpoint.name, checkpoint.folder
    missing = [package for package in family.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(
            f"--model {name}: the processor of {family.name} needs {', '.join(missing)}, which is not installed. Run: "
            f"pip install 'blip2cap[vlm]'. {HINT}"
        )
    if not any((folder / file).is_file() for file in _PROCESSOR_FILES):
        raise ModelError(
            f"--model {name}: no processor in {folder}. Expected {' or '.join(_PROCESSOR_FILES)}. Copy it from the "
            f"model that this one was made from, or save it there: processor.save_pretrained(...). {HINT}"
        )
    if family.has_chat and not _has_template(name, folder):
        raise ModelError(
            f"--model {name}: no chat template in {folder}. Expected {' or '.join(_TEMPLATE_FILES)}, as models that "
            f"were tuned to follow instructions have. Take such a model, or copy the template there. {HINT}"
        )


def _has_template(name: str, folder: Path) -> bool:
    if any((folder / file).is_file() for file in _TEMPLATE_FILES):
        return True
    files = (folder / file for file in _TEMPLATE_KEYS)
    return any(bool(read_json(name, path).get("chat_template")) for path in files if path.is_file())
