"""The flow of images through the model: each is encoded once, its prompts are answered in any order, and rows leave in
the order of the images.

Images with equal pixels are processed once: the same picture under two names, or in two formats.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from blip2cap.batch_size import BatchSize
from blip2cap.decode.image import Decoded
from blip2cap.engine.first_texts import FirstTexts
from blip2cap.engine.remembered import Remembered
from blip2cap.errors import ImageError
from blip2cap.models.base import Model
from blip2cap.records import Generated, ImageRef, Prompt
from blip2cap.rows import Row
from blip2cap.tasks.base import Request, Task

DecodedRequest = tuple[Request, Decoded | ImageError]

_MOST_BEHIND = 4
"""Maximum number of images in the flow, as a multiple of the capacity of the session."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Image:
    """One image in the flow."""

    request: Request
    error: ImageError | None
    """Reason why the image itself cannot be processed."""
    width: int
    height: int
    results: list[Any]
    """Result for each label of the request; None until it is ready."""
    num_missing: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Question:
    """One prompt about one picture, for every image that shows it."""

    key: Hashable
    image_key: Hashable
    prompt: str
    label: str | None
    name: str
    content: Any
    """The image as the model takes it; dropped once it is encoded."""
    waiting: list[tuple[_Image, int]]
    """Images that wait for the result, each with the index of the result in its list."""


class Flow:
    """Turns decoded images into rows."""

    def __init__(
        self,
        model: Model,
        task: Task,
        *,
        capacity: int | None,
        on_failure: Callable[[ImageRef, ImageError], None],
        first_texts: FirstTexts,
    ) -> None:
        self.model, self.task, self.on_failure, self.first_texts = model, task, on_failure, first_texts
        self.session = task.start(model, capacity=capacity)
        self.images: deque[_Image] = deque()
        self.tickets: dict[int, _Question] = {}
        """Questions in the session."""
        self.in_flight: dict[Hashable, _Question] = {}
        """The same, by key."""
        self.known = Remembered()
        """Results of questions that have left the session, by key, for equal images."""
        self.num_prompt_tokens = self.num_text_tokens = 0
        """Numbers of tokens that a server has counted."""

    def accepts_more(self, size: BatchSize) -> bool:
        """Return True if the session has capacity left and few enough images wait for a slow one before them.

        For a GPU, one batch is encoded before there is capacity for its texts: when texts end, others are ready to
        start, and while those start, the host prepares the next batch.
        """
        capacity = self.session.capacity
        num_ahead = max(self.session.num_ahead, 0 if self.model.on_cpu else size.size)
        return self.session.num_pending < capacity + num_ahead and len(self.images) < _MOST_BEHIND * capacity

    @property
    def num_images(self) -> int:
        """Number of images in the flow, including complete ones."""
        return len(self.images)

    @property
    def num_ready(self) -> int:
        """Number of images that can leave: those before the first incomplete one."""
        return next((index for index, image in enumerate(self.images) if image.num_missing), len(self.images))

    def take(self, batch: Sequence[DecodedRequest], size: BatchSize) -> None:
        """Encode images, and queue their prompts."""
        new: dict[Hashable, _Question] = {}
        for request, decoded in batch:
            if isinstance(decoded, ImageError):
                results = [decoded] * len(request.labels)
                image = _Image(request=request, error=decoded, width=0, height=0, results=results, num_missing=0)
                self.images.append(image)
                continue
            image = _Image(
                request=request,
                error=None,
                width=decoded.width,
                height=decoded.height,
                results=[None] * len(request.labels),
                num_missing=len(request.labels),
            )
            self.images.append(image)
            for index in range(len(request.labels)):
                self._ask(image, index, decoded, new)
        by_image: dict[Hashable, list[_Question]] = defaultdict(list)
        for question in new.values():
            by_image[question.image_key].append(question)
        if by_image:
            self._encode(list(by_image.values()), size)

    def _ask(self, image: _Image, index: int, decoded: Decoded, new: dict[Hashable, _Question]) -> None:
        """Look a question up among the answered, those in flight and the new ones; if it is in none, add it."""
        ref, label = image.request.ref, image.request.labels[index]
        prompt = self.task.prompt(ref, label)
        image_key: Hashable = decoded.digest if self.task.deterministic else image
        key = image_key, prompt, label, 0 if self.task.deterministic else index
        if key in self.known:
            self._answer(image, index, self.known[key])
        elif key in self.in_flight:
            self.in_flight[key].waiting.append((image, index))
        elif key in new:
            new[key].waiting.append((image, index))
        else:
            new[key] = _Question(
                key=key,
                image_key=image_key,
                prompt=prompt,
                label=label,
                name=f"{ref.name}\0{label or ''}".encode("utf-8", "surrogateescape").hex(),
                content=decoded.content,
                waiting=[(image, index)],
            )

    def _encode(self, images: list[list[_Question]], size: BatchSize) -> None:
        """Encode images and queue their prompts; after out-of-memory, do it in halves."""
        if not size.settled:
            self.model.wait()
        started = time.perf_counter()
        try:
            features = self.session.encode([questions[0].content for questions in images])
            prompts = [
                Prompt(image=number, text=question.prompt, name=question.name, question=question.label)
                for number, questions in enumerate(images)
                for question in questions
            ]
            tickets = self.session.add(features, prompts)
        except MemoryError as error:
            detail = f"not enough memory: {error}"
        else:
            if not size.settled:
                self.model.wait()
                size.measured(len(images), time.perf_counter() - started)
            for ticket, question in zip(tickets, (each for questions in images for each in questions), strict=True):
                self.tickets[ticket] = self.in_flight[question.key] = question
                question.content = None
            return
        # Outside `except`: there the error would still hold every tensor of the batch that did not fit.
        if len(images) > 1:
            size.too_large(len(images))
            self._encode(images[: len(images) // 2], size)
            self._encode(images[len(images) // 2 :], size)
        else:
            size.restore()
            for question in images[0]:
                for image, index in question.waiting:
                    self._answer(image, index, ImageError("out_of_memory", detail))

    def advance(self) -> None:
        """Let the model compute for a while, and assign the results that are complete."""
        for ticket, result in self.session.advance():
            question = self.tickets.pop(ticket)
            del self.in_flight[question.key]
            if isinstance(result, list):  # texts
                self.first_texts.add(result, question.label)
                self._count_tokens(result)
            finished: Any = result
            if not isinstance(result, ImageError):
                finished = self.task.finish(result)
                if self.task.deterministic:
                    self.known.add(question.key, finished)
            for image, index in question.waiting:
                self._answer(image, index, finished)

    def _count_tokens(self, texts: Sequence[Generated]) -> None:
        for text in texts:
            if text.num_prompt_tokens is not None:
                self.num_prompt_tokens += text.num_prompt_tokens
                self.num_text_tokens += text.num_tokens

    def _answer(self, image: _Image, index: int, result: Any) -> None:
        image.results[index] = result
        image.num_missing -= 1

    def rows(self) -> tuple[int, list[Row]]:
        """Remove the images that can leave; return their number and their rows."""
        num_images = self.num_ready
        return num_images, [row for _ in range(num_images) for row in self._rows(self.images.popleft())]

    def _rows(self, image: _Image) -> list[Row]:
        ref = image.request.ref
        if image.error:
            self.on_failure(ref, image.error)  # once, not for every question
        rows = []
        for label, result in zip(image.request.labels, image.results, strict=True):
            if isinstance(result, ImageError) and result is not image.error:
                self.on_failure(ref, result)
            rows.append(self.task.row(ref, label, result, width=image.width, height=image.height))
        return rows
