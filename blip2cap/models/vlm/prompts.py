"""Prompts and images -> the inputs of a network, by the processor that its checkpoint has.

The processor decides how an image is resized, divided and normalised, and how many tokens it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from PIL import Image

from blip2cap.decode.image import Pixels
from blip2cap.errors import ModelError
from blip2cap.models.base import HINT, Checkpoint
from blip2cap.models.vlm.families import VlmFamily
from blip2cap.records import Turn

_PROBE, _SYSTEM_PROBE = "an example of a prompt", "an example of instructions"
PROCESSOR_ERRORS = (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, RuntimeError, TemplateError)
"""Errors of processors with images and prompts that they do not take."""


class NotTakenError(Exception):
    """A processor does not take an image with a prompt."""


class Prompter:
    """Makes inputs of images and prompts."""

    def __init__(self, processor: Any, family: VlmFamily, checkpoint: Checkpoint) -> None:
        self.processor, self.family = processor, family
        self.tokenizer = processor.tokenizer
        names = (getattr(processor, name, None) for name in ("image_token", "boi_token"))
        self.image_tokens = {str(name) for name in names if name}
        """Names of the token that stands for an image."""
        self.special_tokens = set() if family.takes_special_tokens else {*self.tokenizer.all_special_tokens}
        self.form: Literal["parts", "text"] = "parts"
        """Form of the turns that the chat template takes."""
        if family.has_chat:
            self.form = self._choose_form(checkpoint)

    def _choose_form(self, checkpoint: Checkpoint) -> Literal["parts", "text"]:
        """Return the form of turns that the chat template takes: a list of parts, or, in some, a plain text.

        A template that expects the other form may write the list as Python shows it. Raises ModelError if in neither
        form a prompt has its text and one image.
        """
        forms: tuple[Literal["parts", "text"], ...] = ("parts", "text")
        for self.form in forms:
            try:
                written = self.write(_PROBE, None)
            except PROCESSOR_ERRORS:
                continue
            if _PROBE in written and "'type'" not in written and self._num_images(written) == 1:
                return self.form
        raise ModelError(
            f"--model {checkpoint.name}: its chat template writes no prompt with one image. Expected the template of "
            f"this model. {HINT}"
        )

    def _num_images(self, text: str) -> int:
        return max((text.count(token) for token in self.image_tokens), default=0)

    def has_system_turn(self) -> bool:
        """Return True if the chat template writes a system's turn."""
        try:
            return _SYSTEM_PROBE in self.write(_PROBE, _SYSTEM_PROBE)
        except PROCESSOR_ERRORS:
            return False

    def special_token_in(self, text: str) -> str | None:
        """Return a special token that a prompt holds, which would change its structure; None if there is none."""
        held = [token for token in self.special_tokens | self.image_tokens if token in text]
        return min(held, default=None)

    def write(self, prompt: str, system: str | None, turns: Sequence[Turn] = ()) -> str:
        """Return a prompt as the processor takes it, with the tokens around it, after the earlier turns."""
        if not self.family.has_chat:
            assert not turns, "a family without a chat template cannot chat"
            return self.family.prefix + prompt
        said = [each for turn in turns for each in (("user", turn.question), ("assistant", turn.answer))]
        said.append(("user", prompt))
        written: list[dict[str, Any]] = []
        if system is not None:
            written.append({"role": "system", "content": self._content(system)})
        for number, (role, text) in enumerate(said):
            written.append({"role": role, "content": self._content(text, with_image=number == 0)})
        whole: str = self.processor.apply_chat_template(written, tokenize=False, add_generation_prompt=True)
        return whole

    def _content(self, text: str, *, with_image: bool = False) -> str | list[dict[str, str]]:
        if self.form == "text":
            return text
        return [*([{"type": "image"}] if with_image else []), {"type": "text", "text": text}]

    def ids_after_image(self, text: str) -> list[int]:
        """Return the tokens of a text of `write` after the token of its image; [] if they are not known."""
        token = max(self.image_tokens, key=text.rfind)
        after = text.rpartition(token)[2]
        ids: list[int] = self.tokenizer(token + after, add_special_tokens=False).input_ids
        return ids[1:] if ids[:1] == self.tokenizer.convert_tokens_to_ids([token]) else []

    def inputs(self, images: Sequence[Pixels], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the inputs of a network for images, each with a text of `write`. Raises one of PROCESSOR_ERRORS."""
        pictures: list[Any] = [Image.fromarray(pixels_HWC) for pixels_HWC in images]
        settings: dict[str, Any] = {"padding": True, "padding_side": self.family.padding, "return_tensors": "pt"}
        if self.family.has_chat:
            pictures = [[picture] for picture in pictures]
            begin = self.tokenizer.bos_token
            if begin is not None and texts[0].startswith(begin):
                settings["add_special_tokens"] = False  # the template has written it
        inputs = self.processor(images=pictures, text=list(texts), **settings)
        return {name: value for name, value in inputs.items() if name != "labels" and torch.is_tensor(value)}
