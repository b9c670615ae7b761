"""The model of an index, for queries: texts and images -> vectors, and the match head. Loaded when first needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blip2cap.decode.image import Decoded
from blip2cap.decode.read import read
from blip2cap.engine.read_ahead import DecodeAhead, in_batches
from blip2cap.errors import ImageError, ModelError, UsageError
from blip2cap.models.base import dtype_name
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import load
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.records import ImageRef, Prompt

if TYPE_CHECKING:
    import numpy.typing as npt

    from blip2cap.models.base import Checkpoint, Session

    Vectors = npt.NDArray[Any]

Item = TypeVar("Item")
_NUM_IMAGES = 8
"""Number of images encoded at once: a search has few, and waits for all."""
_NUM_TEXTS = 256
"""Number of texts embedded at once."""
_LOCAL = "sha256:"
"""Begin of the commit of a model that is a local folder, or inside the package."""


@dataclass(kw_only=True)
class Encoder:
    """Embeds queries with the model that an index was made with."""

    settings: Mapping[str, Any]
    """Settings of the index."""
    name: str | None = None
    """Name of the model, if it is given: another than that of the index is refused."""
    options: ModelOptions = field(default_factory=ModelOptions)
    """Dtype and device; nothing else is taken."""
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    say: Callable[[str], None] = lambda line: None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the model. Raises ModelError, and UsageError if it is not that of the index."""
        made_with, commit = (str(self.settings.get(name, "")) for name in ("model", "model_commit"))
        name = self.name or made_with
        other = UsageError(
            f"--model {name}: the index was made with {made_with}, whose vectors another model's cannot be compared "
            "with. Leave --model out, or make an index with this model."
        )
        is_local = commit.startswith(_LOCAL)
        if name != made_with and not (is_local and Path(name).expanduser().is_dir()):
            raise other
        options = ModelOptions(name=name, revision=None if is_local else commit)
        checkpoint = find(options, say=self.say)
        if checkpoint.commit != commit:
            if self.name is not None:
                raise other
            raise ModelError(
                f"{made_with} has changed since the index was made: its files were {commit}, they are "
                f"{checkpoint.commit}. Put the old files back, or make a new index."
            )
        return checkpoint

    @cached_property
    def model(self) -> Any:
        """The model. Raises ModelError or UsageError."""
        vars(self).pop("_text_model", None)
        return self._load(self.options)

    @cached_property
    def _text_model(self) -> Any:
        """What embeds texts of it."""
        return self._load(replace(self.options, texts_only=True))

    def _load(self, options: ModelOptions) -> Any:
        checkpoint = self.checkpoint
        self.say(f"loading {checkpoint.name} ...")
        started = time.monotonic()
        model = load(checkpoint, replace(options, name=checkpoint.name))
        dtype = dtype_name(model.dtype)
        self.say(f"{checkpoint.name}: {dtype} on {model.device}, loaded in {time.monotonic() - started:.1f} s")
        return model

    def embed_texts(self, texts: Sequence[str], *, only_texts: bool = False) -> Vectors:
        """Return the vectors of texts: float32 [N, 256], normalised. Raises UsageError for one that is too long.

        `only_texts`: the model is not needed for images, and is loaded without its vision encoder.
        """
        import numpy as np

        model = self._text_model if only_texts and "model" not in vars(self) else self.model
        model.check_texts(texts)
        some = [model.embed_texts(texts[at : at + _NUM_TEXTS]) for at in range(0, len(texts), _NUM_TEXTS)]
        return np.concatenate(some)

    def embed_images(self, refs: Sequence[ImageRef]) -> list[Vectors | ImageError]:
        """Return the vectors of each image, float32 [32, 256], or the reason why there are none."""
        session = self.model.start_embed("queries", normalised=True, capacity=None)
        return self._results(session, refs, "")

    def match(self, text: str, refs: Sequence[ImageRef]) -> list[float | ImageError]:
        """Return the probability that the text belongs to each image, by the match head, or an ImageError."""
        results = self._results(self.model.start_match(capacity=None), refs, text)
        return [result if isinstance(result, ImageError) else result.itm for result in results]

    def _results(self, session: Session, refs: Sequence[ImageRef], text: str) -> list[Any]:
        """Run a session over images; return the result for each, in order."""
        results: list[Any] = [None] * len(refs)
        numbers: dict[int, int] = {}  # ticket -> number of the image

        def advance(most_pending: int) -> None:
            while session.num_pending > most_pending:
                for ticket, result in session.advance():
                    results[numbers.pop(ticket)] = result

        for batch in self._decoded(refs):
            for number, decoded in batch:
                if isinstance(decoded, ImageError):
                    results[number] = decoded
            images = [(number, decoded) for number, decoded in batch if isinstance(decoded, Decoded)]
            for number, found in _add(session, images, text):
                if isinstance(found, ImageError):
                    results[number] = found
                else:
                    numbers[found] = number
            advance(session.capacity)
        advance(0)
        return results

    def _decoded(self, refs: Sequence[ImageRef]) -> Iterator[list[tuple[int, Decoded | ImageError]]]:
        """Yield images in batches, each with its number."""
        options = self.decode
        with closing(self.model.image_input.open(options)) as decoder:

            def decode(ref: ImageRef) -> Decoded:
                started = time.monotonic()
                data = read(ref, options)
                decoded: Decoded = decoder.decode(data, isolated=options.isolate, read_s=time.monotonic() - started)
                return decoded

            ahead = DecodeAhead(
                [*enumerate(refs)],
                lambda item: item[1],
                decode,
                num_threads=options.threads,
                num_ahead=2 * _NUM_IMAGES + options.threads,
                timeout_s=options.timeout_s,
            )
            with closing(ahead):
                for batch in in_batches(ahead.results(), lambda: _NUM_IMAGES):
                    yield [(number, decoded) for (number, _), decoded in batch]


def _add(session: Session, images: Sequence[tuple[int, Decoded]], text: str) -> Iterator[tuple[int, int | ImageError]]:
    """Encode images and queue the text for each; yield their tickets. After out-of-memory, do it in halves."""
    if not images:
        return
    try:
        features = session.encode([decoded.content for _, decoded in images])
        prompts = [Prompt(image=place, text=text, name=str(number)) for place, (number, _) in enumerate(images)]
        yield from zip([number for number, _ in images], session.add(features, prompts), strict=True)
        return
    except MemoryError as error:
        detail = f"not enough memory: {error}"
    if len(images) == 1:
        yield images[0][0], ImageError("out_of_memory", detail)
    else:
        yield from _add(session, images[: len(images) // 2], text)
        yield from _add(session, images[len(images) // 2 :], text)


def log_odds(probability: float) -> float:
    """Return ln(p / (1 - p)), at most 16 either way: a float32 probability is exact to about 1e-7."""
    least = 1.2e-7
    held = min(max(probability, least), 1 - least)
    return math.log(held / (1 - held))
