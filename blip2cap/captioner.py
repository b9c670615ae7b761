"""The Python interface: load a model once, then caption or ask about images, one by one or a folder at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from blip2cap.decode import Pixels, decode, read, resize
from blip2cap.errors import ImageError
from blip2cap.model.blip2 import Blip2
from blip2cap.model.checkpoint import find
from blip2cap.model.load import load
from blip2cap.options import (
    ANSWER_NEW_TOKENS,
    DEFAULT_MODEL,
    BatchOptions,
    DecodeOptions,
    GenerateOptions,
    ModelOptions,
    SourceOptions,
)
from blip2cap.plan import Plan
from blip2cap.prompts import CAPTION_PROMPTS, VQA_TEMPLATES, Template
from blip2cap.records import ImageRef, Prompt, Row
from blip2cap.run import Engine, Summary
from blip2cap.source import Source

ImageLike: TypeAlias = Image.Image | str | os.PathLike[str]
_ANSWERS = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)


class Captioner:
    """A model ready to write about images."""

    def __init__(self, model: Blip2, *, batch_size: int | None = None) -> None:
        self.model = model
        self.batch_size = BatchOptions(batch_size=batch_size).resolve(model.device.type)

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int | None = None,
    ) -> Captioner:
        """Load `tiny`, a local folder or a hub id. Raises ModelError or UsageError."""
        options = ModelOptions(name=name, revision=revision, dtype=dtype, device=device)
        return cls(load(find(options), options), batch_size=batch_size)

    def caption(
        self, images: Sequence[ImageLike], *, prompt: str | None = None, options: GenerateOptions | None = None
    ) -> list[str]:
        """Return a caption for each image: a Pillow image, or a path. Raises ImageError for one that cannot be read."""
        text = CAPTION_PROMPTS[self.model.family] if prompt is None else prompt
        return self._texts(images, text, options or GenerateOptions())

    def ask(self, images: Sequence[ImageLike], question: str, *, options: GenerateOptions | None = None) -> list[str]:
        """Return the answer to one question for each image. Raises ImageError for one that cannot be read."""
        template = Template(VQA_TEMPLATES[self.model.family], question=True)
        return self._texts(images, template.fill("", question), options or _ANSWERS)

    def caption_folder(
        self,
        path: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        on_progress: Callable[[Summary], None] | None = None,
    ) -> Iterator[Row]:
        """Yield a typed row for every image below a folder, good or failed, in order; nothing is written.

        `on_progress` is told after each batch. Raises InputError if the folder does not exist.
        """
        source = Source(SourceOptions(inputs=(os.fspath(path),)))
        template = Template(CAPTION_PROMPTS[self.model.family] if prompt is None else prompt)
        engine = Engine(
            model=self.model,
            generate=options or GenerateOptions(),
            decode=DecodeOptions(),
            batch_size=self.batch_size,
        )
        return self._rows(engine, Plan(template), source, on_progress)

    def _rows(
        self, engine: Engine, plan: Plan, source: Source, on_progress: Callable[[Summary], None] | None
    ) -> Iterator[Row]:
        summary = Summary()
        for rows in engine.row_batches(plan.tasks(source, frozenset()), summary):
            if on_progress:
                on_progress(summary)
            yield from rows

    def _texts(self, images: Sequence[ImageLike], prompt: str, options: GenerateOptions) -> list[str]:
        if isinstance(images, (str, os.PathLike, Image.Image)):
            raise TypeError(f"expected a sequence of images, got one {type(images).__name__}: put it in a list.")
        texts: list[str] = []
        for at in range(0, len(images), self.batch_size):
            batch = images[at : at + self.batch_size]
            features = self.model.encode([self._pixels(image) for image in batch])
            prompts = [Prompt(image=index, text=prompt, name=str(at + index)) for index in range(len(batch))]
            for said in self.model.generate(features, prompts, options, max_prompts=self.batch_size):
                if isinstance(said, ImageError):
                    raise said
                texts.append(said[0].text)
        return texts

    def _pixels(self, image: ImageLike) -> Pixels:
        if isinstance(image, Image.Image):
            return resize(image, self.model.image_size).pixels_HWC
        path = os.fspath(Path(image))
        return decode(read(ImageRef(path=path, name=path)), self.model.image_size, DecodeOptions()).pixels_HWC
