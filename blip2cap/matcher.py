"""The Python interface of matching: scores of texts for images, and vectors of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.engine.run import Engine
from blip2cap.errors import UsageError
from blip2cap.images_in_memory import ImageLike, check_images, raise_with_name, rows_of_images
from blip2cap.models.base import Model
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load
from blip2cap.options import DEFAULT_MATCHING_MODEL, BatchOptions, DecodeOptions, ModelOptions
from blip2cap.records import MatchScore
from blip2cap.rows import Row
from blip2cap.tasks.base import Task
from blip2cap.tasks.embed import Embed
from blip2cap.tasks.match import Match

if TYPE_CHECKING:
    import numpy.typing as npt


class Matcher:
    """A loaded model that compares images with texts."""

    def __init__(self, model: Model, *, batch_size: int | None = None, decode: DecodeOptions | None = None) -> None:
        self.model: Any = model
        self.decode_options = decode or DecodeOptions()
        self.batch = BatchOptions(batch_size=batch_size)

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_MATCHING_MODEL,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        quantize: str | None = None,
        batch_size: int | None = None,
        decode: DecodeOptions | None = None,
    ) -> Matcher:
        """Load `tiny-itm`, a local folder or a Hub id. Raises ModelError, or UsageError for a model that cannot match.

        A model that captions has vectors too, those of its Q-Former: `Matcher(Captioner.load(...).model)` embeds them.
        """
        options = ModelOptions(name=name, revision=revision, dtype=dtype, device=device, quantize=quantize)
        checkpoint = find(options)
        FAMILIES[checkpoint.family].check_task("match", checkpoint)
        return cls(load(checkpoint, options), batch_size=batch_size, decode=decode)

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> list[list[MatchScore]]:
        """Return the scores of each text for each image: `scores[image][text]`.

        An image is encoded once, however many texts there are. Raises ImageError for an image that cannot be read, and
        UsageError for texts that are empty, given twice, or too long for the model.
        """
        if isinstance(texts, str):
            raise TypeError("expected a sequence of texts, got one str: put it in a list.")
        if not texts:
            raise UsageError("no text given. Give at least one.")
        rows = self._rows(images, Match(texts=tuple(texts)))
        scores = [MatchScore(itm=row["itm"], itc=row["itc"]) for row in rows]
        return [scores[first : first + len(texts)] for first in range(0, len(scores), len(texts))]

    def embed(self, images: Sequence[ImageLike], *, what: str = "pooled", raw: bool = False) -> npt.NDArray[np.float32]:
        """Return vectors of images, float32, of length 1 unless `raw`.

        pooled: [images, 256], queries: [images, 32, 256], qformer: [images, 32, 768]. Raises ImageError for an image
        that cannot be read.
        """
        rows = self._rows(images, task := self._fitted(Embed(what=what, raw=raw)))
        if not rows:
            return np.empty((0, *task.shape), np.float32)
        return np.stack([row["embedding"] for row in rows])

    def embed_texts(self, texts: Sequence[str], *, raw: bool = False) -> npt.NDArray[np.float32]:
        """Return vectors of texts, float32 [texts, 256], in the space of the vectors `pooled` and `queries` of images.

        Raises UsageError for texts that are empty or too long, or a model that has no such vectors.
        """
        if isinstance(texts, str):
            raise TypeError("expected a sequence of texts, got one str: put it in a list.")
        FAMILIES[self.model.checkpoint.family].check_task("match", self.model.checkpoint)
        self.model.check_texts(texts)
        vectors: npt.NDArray[np.float32] = self.model.embed_texts(texts, normalised=not raw)
        return vectors

    def _rows(self, images: Sequence[ImageLike], task: Task) -> list[Row]:
        check_images(images)
        task = self._fitted(task)
        task.check(self.model)
        engine = Engine(
            model=self.model, task=task, decode=self.decode_options, batch=self.batch, on_failure=raise_with_name
        )
        return rows_of_images(engine, images)

    def _fitted(self, task: Any) -> Any:
        return task.for_checkpoint(self.model.checkpoint, FAMILIES[self.model.checkpoint.family])
