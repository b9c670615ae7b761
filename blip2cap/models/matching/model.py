"""A loaded image-text matching model: images and texts in, scores and vectors out.

The vision encoder runs once per image, however many texts it is compared with. Not covered: quantisation while a
checkpoint is read, and models that are spread over several devices.

Shapes: B = images, H, W = pixels, C = channels, Q = query tokens, D = hidden size, E = size of the common space,
N = texts or pairs, T = tokens of a text, padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput, SquareInput
from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint, Model
from blip2cap.models.blip2.embed_session import EmbedSession, check_what, normalise
from blip2cap.models.blip2.model import token_ids
from blip2cap.models.blip2.pixels import PixelInput
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.models.blip2.transfer import HostCopy, to_device
from blip2cap.models.device import memory_errors
from blip2cap.models.matching.qformer import KeysValues, QFormer
from blip2cap.models.matching.session import MatchSession
from blip2cap.stopwatch import Stopwatch

WHAT = ("pooled", "queries", "qformer")
"""Names of the vectors of an image."""
_PADDING_UNIT = 8
"""Texts are padded to multiples of it: few lengths, so few calls, and the padding of a text depends on nothing else."""
_NUM_TEXTS = 64
"""Texts in one call."""
_SHOWN = 60
"""Number of characters of a text in messages."""

_Features = TypeVar("_Features")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageFeatures:
    """Features of a batch of images, from which scores are computed."""

    keys_values: KeysValues
    """For the Q-Former, when it reads a text."""
    queries_BQE: torch.Tensor
    """Vectors in the common space, of length 1, float32."""


class Matcher(Model):
    """A network with its tokenizer, on one device."""

    quantize: str | None = None
    remark = ""
    fallback_reason = ""

    def __init__(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        checkpoint: Checkpoint,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.network, self.tokenizer, self.checkpoint = network, tokenizer, checkpoint
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.vision_model.dtype  # in float16 the Q-Former stays in float32
        self.on_cpu = self.device.type == "cpu"
        self.reads_late = not self.on_cpu
        """Read results only when the next ones are queued, so that the device never waits for the host."""
        self.qformer = QFormer(network)
        self.num_positions = int(network.embeddings.position_embeddings.num_embeddings)
        """Largest number of tokens of a text, with those at its begin and end."""
        self.watch = Stopwatch()
        self._pixels = PixelInput(self.device, self.dtype, mean=mean, std=std)

    @property
    def image_input(self) -> ImageInput:
        """A square of RGB pixels."""
        return SquareInput(int(self.network.config.vision_config.image_size), choose_resizer)

    def embedding_shape(self, what: str) -> tuple[int, ...]:
        """Return the shape of the vectors of an image. Raises UsageError for unknown ones."""
        check_what(what, WHAT)
        config = self.network.config
        size, queries = int(config.image_text_hidden_size), int(config.num_query_tokens)
        shapes = {
            "pooled": (size,),
            "queries": (queries, size),
            "qformer": (queries, config.qformer_config.hidden_size),
        }
        return shapes[what]

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise UsageError for a text that is empty or too long for the model."""
        for text in texts:
            if reason := self.misfit(text, self.tokenise(text)):
                shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
                raise UsageError(f'text "{shown}": {reason}.')

    def misfit(self, text: str, ids: Sequence[int]) -> str:
        """Return the reason why a text cannot be compared; "" if it can."""
        if not text.strip():
            return "it is empty"
        if len(ids) > self.num_positions:
            return f"too long: {len(ids)} tokens, this model reads at most {self.num_positions}"
        return ""

    def tokenise(self, text: str) -> list[int]:
        """Return the ids of a text as the Q-Former reads it, without placeholders for an image."""
        return token_ids(self.tokenizer, text)

    def current(self) -> AbstractContextManager[Any]:
        """Make its GPU the current one: new events belong to the current GPU."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def wait(self) -> None:
        """Wait until the device has finished the work it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def start_match(self, *, capacity: int | None, num_texts: int = 0) -> MatchSession:
        """Open a session that compares at most `capacity` pairs of image and text at once; None: as many as pay.

        `num_texts` is the number of texts that every image is compared with, if it is known: all are remembered.
        The result of a prompt is a MatchScore of its text and its image.
        """
        return MatchSession(self, capacity=capacity, num_texts=num_texts)

    def start_embed(self, what: str, *, normalised: bool, capacity: int | None) -> EmbedSession:
        """Open a session whose results are the vectors of images, float32 of `embedding_shape(what)`.

        queries: the Q vectors of an image in the common space. pooled: their mean. qformer: the last hidden state of
        the Q-Former. `normalised`: vectors have length 1, also those whose mean is taken. Raises UsageError for others.
        """
        check_what(what, WHAT)

        def vectors_of(keys_values: KeysValues) -> torch.Tensor:
            hidden_BQD = self.qformer.look(keys_values)
            if what == "qformer":
                return normalise(hidden_BQD) if normalised else hidden_BQD.float()
            queries_BQE = self._project_image(hidden_BQD)
            queries_BQE = normalise(queries_BQE) if normalised else queries_BQE.float()
            if what == "queries":
                return queries_BQE
            pooled_BE = queries_BQE.mean(dim=1)
            return normalise(pooled_BE) if normalised else pooled_BE

        def embed(images: Sequence[Pixels]) -> torch.Tensor:
            return self._encode(images, vectors_of)[: len(images)]

        return EmbedSession(embed, capacity=capacity, reads_late=self.reads_late)

    def encode(self, images: Sequence[Pixels]) -> ImageFeatures:
        """Run the vision encoder: uint8 [H, W, C] each -> what `score` needs.

        Raises MemoryError if the images do not fit the device's memory. On a GPU, features of black images may follow.
        """

        def features_of(keys_values: KeysValues) -> ImageFeatures:
            queries_BQE = normalise(self._project_image(self.qformer.look(keys_values)))
            return ImageFeatures(keys_values=keys_values, queries_BQE=queries_BQE)

        return self._encode(images, features_of)

    @torch.inference_mode()
    def _encode(self, images: Sequence[Pixels], features_of: Callable[[KeysValues], _Features]) -> _Features:
        """Return the features of images, given what the Q-Former sees of them."""
        with self.current(), memory_errors():
            with self.watch.measure("copy"):
                pixels_BHWC = self._pixels.copy(images)
            with self.watch.measure("vision"):
                patches_BPD = self.network.vision_model(self._pixels.normalise(pixels_BHWC)).last_hidden_state
            with self.watch.measure("qformer"):
                return features_of(self.qformer.keys_values(patches_BPD))

    @torch.inference_mode()
    def score(
        self, features: ImageFeatures, image_of_N: Sequence[int], texts: Sequence[Sequence[int]], texts_NE: torch.Tensor
    ) -> torch.Tensor:
        """Compare images with texts: return the match head's probability and the cosine of each pair, float32 [N, 2].

        `image_of_N` and `texts` are image and ids of the text of each pair, `texts_NE` the vectors of the texts.
        """
        scores = torch.empty(len(texts), 2, device=self.device)
        with self.watch.measure("qformer"):
            for numbers, ids_NT, mask_NT in self._batches(texts):
                image_N = to_device([image_of_N[number] for number in numbers], self.device)
                number_N = to_device(numbers, self.device)
                keys_values = [(key[image_N], value[image_N]) for key, value in features.keys_values]
                logits_N2 = self._match_logits(self.qformer.compare(ids_NT, mask_NT, keys_values))
                cosines_NQ = torch.einsum("nqe,ne->nq", features.queries_BQE[image_N], texts_NE[number_N])
                scores[number_N] = torch.stack([logits_N2.softmax(-1)[:, 1], cosines_NQ.amax(dim=1)], dim=1)
        return scores

    @torch.inference_mode()
    def embed_ids(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the vectors of tokenised texts in the common space, [N, E], float32, of any length."""
        vectors_NE = torch.empty(len(texts), int(self.network.config.image_text_hidden_size), device=self.device)
        projection = self.network.text_projection
        with self.watch.measure("texts"):
            for numbers, ids_NT, mask_NT in self._batches(texts):
                first_ND = self.qformer.read(ids_NT, mask_NT)[:, 0]  # [CLS]
                vectors_NE[to_device(numbers, self.device)] = projection(first_ND.to(projection.weight.dtype)).float()
        return vectors_NE

    def embed_texts(self, texts: Sequence[str], *, normalised: bool = True) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vectors of texts, float32 [N, E]. Raises UsageError for a text that is empty or too long.

        Their product with `queries` of an image, largest of the Q, is the `itc` of `match`. Raises MemoryError.
        """
        self.check_texts(texts)
        found: list[Any] = []
        with self.current(), memory_errors(), torch.inference_mode():
            for start in range(0, len(texts), _NUM_TEXTS):
                vectors_NE = self.embed_ids([self.tokenise(text) for text in texts[start : start + _NUM_TEXTS]])
                found.append(HostCopy(normalise(vectors_NE) if normalised else vectors_NE).numpy())
        return np.concatenate(found or [np.empty((0, self.embedding_shape("pooled")[0]), np.float32)])

    def _project_image(self, hidden_BQD: torch.Tensor) -> torch.Tensor:
        projection = self.network.vision_projection
        projected_BQE: torch.Tensor = projection(hidden_BQD.to(projection.weight.dtype))
        return projected_BQE

    def _match_logits(self, hidden_NQD: torch.Tensor) -> torch.Tensor:
        """Return the mean of the match head over the queries, [N, 2], float32."""
        head = self.network.itm_head
        logits_NQ2: torch.Tensor = head(hidden_NQD.to(head.weight.dtype))
        return logits_NQ2.float().mean(dim=1)

    def _batches(self, texts: Sequence[Sequence[int]]) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Group tokenised texts by padded length: return the numbers of each group, its ids and its mask, [N, T]."""
        groups: dict[int, list[int]] = defaultdict(list)
        for number, ids in enumerate(texts):
            padded = -(-len(ids) // _PADDING_UNIT) * _PADDING_UNIT
            groups[min(padded, self.num_positions)].append(number)
        padding = self.tokenizer.pad_token_id or 0
        batches = []
        for length, numbers in groups.items():
            ids_NT = [[*texts[number], *[padding] * (length - len(texts[number]))] for number in numbers]
            mask_NT = [[1] * len(texts[number]) + [0] * (length - len(texts[number])) for number in numbers]
            batches.append((numbers, to_device(ids_NT, self.device), to_device(mask_NT, self.device).bool()))
        return batches
