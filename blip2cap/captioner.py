"""The Python interface: load a model once, then caption or ask about images, one by one or a folder at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TypeAlias

from PIL import Image

from blip2cap.decode.image import Decoded, decode, resize
from blip2cap.decode.isolate import Isolation
from blip2cap.decode.read import read
from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import ImageError, UsageError
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.models.checkpoint import find
from blip2cap.options import (
    ANSWER_NEW_TOKENS,
    DEFAULT_MODEL,
    BatchOptions,
    DecodeOptions,
    GenerateOptions,
    ModelOptions,
    SourceOptions,
    TextOptions,
)
from blip2cap.prompts import CAPTION_PROMPTS, VQA_TEMPLATES, Template
from blip2cap.records import ImageRef, Row
from blip2cap.source.inputs import Source
from blip2cap.tasks.worklist import Request, Worklist

ImageLike: TypeAlias = Image.Image | str | os.PathLike[str]
_ANSWERS = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)


class Captioner:
    """A model ready to write about images."""

    def __init__(self, model: Blip2, *, batch_size: int | None = None, decode: DecodeOptions | None = None) -> None:
        self.model = model
        self.decode_options = decode or DecodeOptions()
        self.batch = BatchOptions(batch_size=batch_size)

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        quantize: str | None = None,
        batch_size: int | None = None,
        decode: DecodeOptions | None = None,
    ) -> Captioner:
        """Load `tiny`, a local folder or a hub id. Raises ModelError or UsageError."""
        options = ModelOptions(
            name=name, revision=revision, dtype=dtype, device=device, device_map=device_map, quantize=quantize
        )
        return cls(load(find(options), options), batch_size=batch_size, decode=decode)

    def caption(
        self,
        images: Sequence[ImageLike],
        *,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
    ) -> list[str]:
        """Return a caption for each image: a Pillow image, or a path. Raises ImageError for one that cannot be read.

        `prompt` may hold {stem} {folder} {file_name}, as on the command line; the name of a picture that is no file is
        a hash of its pixels. What the loop guard says of a text is in the rows of `caption_folder` only.
        """
        return self._texts(images, self._caption_plan(prompt), options or GenerateOptions(), text_options)

    def ask(
        self,
        images: Sequence[ImageLike],
        question: str,
        *,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
    ) -> list[str]:
        """Return the answer to one question for each image. Raises ImageError for one that cannot be read."""
        template = Template(VQA_TEMPLATES[self.model.family], question=True)
        return self._texts(images, Worklist(template, (question,)), options or _ANSWERS, text_options)

    def caption_folder(
        self,
        path: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Iterator[Row]:
        """Yield a typed row for every image below a folder, good or failed, in order; nothing is written.

        `on_progress` is told after each batch. Raises InputError if the folder does not exist.
        """
        source = Source(SourceOptions(inputs=(os.fspath(path),)))
        tasks = self._caption_plan(prompt).requests(source, frozenset())
        return self._rows(self._engine(options or GenerateOptions(), text_options), tasks, on_progress)

    def _caption_plan(self, prompt: str | None) -> Worklist:
        return Worklist(Template(CAPTION_PROMPTS[self.model.family] if prompt is None else prompt))

    def _engine(self, options: GenerateOptions, text_options: TextOptions | None) -> Engine:
        self.model.check(options)
        text = text_options or TextOptions()
        return Engine(model=self.model, generate=options, text=text, decode=self.decode_options, batch=self.batch)

    def _rows(
        self, engine: Engine, tasks: Iterator[Request], on_progress: Callable[[RunStats], None] | None
    ) -> Iterator[Row]:
        summary = RunStats()
        for rows in engine.row_batches(engine.read_ahead(tasks), summary):
            if on_progress:
                on_progress(summary)
            yield from rows

    def _texts(
        self, images: Sequence[ImageLike], plan: Worklist, options: GenerateOptions, text_options: TextOptions | None
    ) -> list[str]:
        if isinstance(images, (str, os.PathLike, Image.Image)):
            raise TypeError(f"expected a sequence of images, got one {type(images).__name__}: put it in a list.")
        if options.num_captions > 1:
            raise UsageError(
                f"num_captions={options.num_captions}: this returns one text an image, see caption_folder."
            )
        engine = replace(self._engine(options, text_options), on_failure=_raise)
        with closing(Isolation(self.decode_options, self.model.image_size, choose_resizer())) as isolation:
            decoded = (self._decode(image, isolation) for image in images)
            items = ((task, image) for ref, image in decoded for task in plan.requests((ref,), frozenset()))
            return [row.text for row in engine.rows(items)]

    def _decode_file(self, ref: ImageRef, isolation: Isolation) -> Decoded:
        options = self.decode_options
        data = read(ref, options)
        if options.isolate:
            return isolation.decode(data)
        return decode(data, self.model.image_size, options, choose_resizer())

    def _decode(self, image: ImageLike, isolation: Isolation) -> tuple[ImageRef, Decoded]:
        """Decode one image, and name it: by its path, or by its pixels, which seed sampling alike in any company."""
        if not isinstance(image, Image.Image):
            path = os.fspath(image)
            ref = ImageRef(path=path, name=path)
            return ref, self._decode_file(ref, isolation)
        decoded = resize(image, self.model.image_size)
        name = decoded.digest.hex()
        return ImageRef(path=name, name=name), decoded


def _raise(ref: ImageRef, error: ImageError) -> None:
    raise error
