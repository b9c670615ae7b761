"""A conversation about one image: it is encoded once, and every question is asked with the earlier turns before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, cast

from blip2cap.errors import ImageError, UsageError
from blip2cap.generate_options import CHAT_NEW_TOKENS, GenerateOptions
from blip2cap.images_in_memory import ImageLike, decode_image
from blip2cap.models.base import Model, TextModel
from blip2cap.models.registry import FAMILIES
from blip2cap.options import DecodeOptions
from blip2cap.prompts import Template
from blip2cap.records import Generated, Prompt, Turn

CHAT_OPTIONS = GenerateOptions(max_new_tokens=CHAT_NEW_TOKENS)
"""Options of answers in a conversation, unless others are given."""


class Chat:
    """Questions about an image and their answers. Raises UsageError if the model answers no questions."""

    def __init__(
        self,
        model: Model,
        image: ImageLike,
        *,
        options: GenerateOptions = CHAT_OPTIONS,
        decode: DecodeOptions | None = None,
    ) -> None:
        """`image` as in `Captioner.caption`. Raises ImageError if it cannot be read."""
        family = FAMILIES[model.checkpoint.family]
        family.check_task("chat", model.checkpoint)
        family.check_system(options, model.checkpoint)
        if options.num_captions > 1:
            raise UsageError(f"num_captions={options.num_captions}: a conversation continues from one answer. Give 1.")
        self.model, self.options = cast(TextModel, model), options  # as it can chat
        self.model.check(options)
        self.turns: list[Turn] = []
        """Questions so far and their answers, oldest first."""
        self.image_name = ""
        """Name of the image: its path, or a hash of its pixels."""
        self._decode = decode or DecodeOptions()
        self._template = Template(family.vqa_template, option="--template", question=True)
        self._features: Any = None
        self.show(image)

    def show(self, image: ImageLike) -> None:
        """Begin a new conversation about another image. After an ImageError the old one goes on."""
        with closing(self.model.image_input.open(self._decode)) as decoder:
            ref, decoded = decode_image(image, "image", decoder, self._decode)
        self._features = self.model.start_chat(self.options, on_text=lambda text: None).encode([decoded.content])
        self.image_name = ref.name
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    def ask(self, question: str, *, on_text: Callable[[str], None] = lambda text: None) -> str:
        """Return the answer, and add both to the turns.

        `on_text` is called with the text so far while it is generated, where the model can tell. Raises UsageError for
        an empty question, and if the conversation does not fit the model any more; ImageError if it does not fit the
        memory.
        """
        return self.generate(question, on_text=on_text).text

    def generate(self, question: str, *, on_text: Callable[[str], None] = lambda text: None) -> Generated:
        """Return the answer as `ask` does, with its number of tokens and the reason why it ended."""
        if not question.strip():
            raise UsageError("a question is empty. Give its text.")
        prompt = Prompt(
            image=0,
            text=self._template.fill("", question),
            name=f"{self.image_name}\0{len(self.turns)}",
            question=question,
            turns=tuple(self.turns),
        )
        with closing(self.model.start_chat(self.options, on_text=on_text)) as session:  # Ctrl-C ends the request, too
            session.add(self._features, [prompt])
            while not (results := session.advance()):
                pass
        ((_, result),) = results
        if isinstance(result, ImageError) and self.turns and result.code in ("unsupported", "refused"):
            raise UsageError(f"{result.detail}. Forget the earlier turns (/reset), or lower --max-new-tokens.")
        if isinstance(result, ImageError):
            raise result
        answer: Generated = result[0]
        self.turns.append(Turn(question=question, answer=answer.text))
        return answer
