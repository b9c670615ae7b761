"""Images on their way through the model: each is encoded once, its prompts are answered as they are ready, rows leave
in the order of the images.

Images whose pixels are equal are done once: the same picture under two names, or in two formats.

Rules for finished texts come in this order: the loop guard, which may have a text made again; cutting back to a
sentence; taking prefixes off.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from blip2cap.batch_size import BatchSize
from blip2cap.decode.image import Decoded, Pixels
from blip2cap.engine.loop_guard import GuardedSession, worst_flag
from blip2cap.engine.text_rules import strip_prefixes, trim_to_sentence
from blip2cap.errors import ImageError
from blip2cap.models.base import Model, Result, Session
from blip2cap.options import GenerateOptions, TextOptions
from blip2cap.records import Generated, ImageRef, Prompt, Row
from blip2cap.tasks.worklist import Query, Request

Item = tuple[Request, Decoded | ImageError]

_NUM_REMEMBERED = 20_000
"""Session kept for images that come again; about 10 MB."""
_MOST_BEHIND = 4
"""Times the number of texts at once: so many images may be in the model, or done and wait for one before them."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Image:
    """One image under way."""

    task: Request
    error: ImageError | None
    """What is wrong with the image itself."""
    width: int
    height: int
    results: list[Result | None]
    """One for each that is asked."""
    num_missing: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Question:
    """One prompt about one picture, for every image that shows it."""

    key: Hashable
    image_key: Hashable
    prompt: str
    question: str | None
    name: str
    pixels: Pixels | None
    """Until they are encoded."""
    askers: list[tuple[_Image, int]]
    """Images, with which of their results this is."""


class Flow:
    """Takes images, gives rows."""

    def __init__(
        self,
        model: Model,
        options: GenerateOptions,
        text_options: TextOptions,
        *,
        capacity: int | None,
        on_failure: Callable[[ImageRef, ImageError], None],
    ) -> None:
        self.model, self.options, self.text_options, self.on_failure = model, options, text_options, on_failure
        open_texts = partial(model.start_texts, capacity=capacity)
        self.texts: Session = GuardedSession(open_texts, options) if text_options.loop_guard else open_texts(options)
        self.images: deque[_Image] = deque()
        self.tickets: dict[int, _Question] = {}
        """What is in the model."""
        self.under_way: dict[Hashable, _Question] = {}
        """The same, by key."""
        self.known: OrderedDict[Hashable, Result] = OrderedDict()

    @property
    def has_room(self) -> bool:
        """Whether more texts could be decoded beside those that are, and not too many images wait for a long one."""
        return self.texts.num_pending < self.texts.capacity and len(self.images) < _MOST_BEHIND * self.texts.capacity

    @property
    def num_images(self) -> int:
        """How many images are under way, or ready to leave."""
        return len(self.images)

    @property
    def num_ready(self) -> int:
        """How many images can leave: those before the first that is not done."""
        return next((index for index, image in enumerate(self.images) if image.num_missing), len(self.images))

    def take(self, batch: Sequence[Item], size: BatchSize) -> None:
        """Encode images, and queue what is asked of them."""
        new: dict[Hashable, _Question] = {}
        for task, decoded in batch:
            if isinstance(decoded, ImageError):
                results: list[Result | None] = [decoded] * len(task.queries)
                self.images.append(_Image(task=task, error=decoded, width=0, height=0, results=results, num_missing=0))
                continue
            image = _Image(
                task=task,
                error=None,
                width=decoded.width,
                height=decoded.height,
                results=[None] * len(task.queries),
                num_missing=len(task.queries),
            )
            self.images.append(image)
            for index in range(len(task.queries)):
                self._ask(image, index, decoded, new)
        by_image: dict[Hashable, list[_Question]] = defaultdict(list)
        for question in new.values():
            by_image[question.image_key].append(question)
        if by_image:
            self._encode(list(by_image.values()), size)

    def _ask(self, image: _Image, index: int, decoded: Decoded, new: dict[Hashable, _Question]) -> None:
        """Find out whether a question is answered, under way or asked in this batch; if not, ask it."""
        ask = image.task.queries[index]
        # Each image draws random numbers of its own: sampled texts of equal images differ.
        image_key: Hashable = image if self.options.sampling else decoded.digest
        key = image_key, ask.prompt, ask.question, index if self.options.sampling else 0
        if key in self.known:
            self.known.move_to_end(key)
            self._answer(image, index, self.known[key])
        elif key in self.under_way:
            self.under_way[key].askers.append((image, index))
        elif key in new:
            new[key].askers.append((image, index))
        else:
            name = f"{image.task.ref.name}\0{ask.question or ''}".encode("utf-8", "surrogateescape").hex()
            new[key] = _Question(
                key=key,
                image_key=image_key,
                prompt=ask.prompt,
                question=ask.question,
                name=name,
                pixels=decoded.pixels_HWC,
                askers=[(image, index)],
            )

    def _encode(self, images: list[list[_Question]], size: BatchSize) -> None:
        """Encode images and queue their questions; when memory runs out, half of them at a time."""
        if not size.settled:
            self.model.wait()
        started = time.perf_counter()
        try:
            pixels = [questions[0].pixels for questions in images]
            features = self.model.encode([each for each in pixels if each is not None])
            prompts = [
                Prompt(image=number, text=question.prompt, name=question.name, question=question.question)
                for number, questions in enumerate(images)
                for question in questions
            ]
            tickets = self.texts.add(features, prompts)
        except MemoryError as error:
            detail = f"the model has no room for it: {error}"
        else:
            if not size.settled:
                self.model.wait()
                size.measured(len(images), time.perf_counter() - started)
            for ticket, question in zip(tickets, (each for questions in images for each in questions), strict=True):
                self.tickets[ticket] = self.under_way[question.key] = question
                question.pixels = None
            return
        # Outside `except`: there the error would still hold every tensor of the batch that did not fit.
        if len(images) > 1:
            size.too_large(len(images))
            self._encode(images[: len(images) // 2], size)
            self._encode(images[len(images) // 2 :], size)
        else:
            size.restore()
            for question in images[0]:
                for image, index in question.askers:
                    self._answer(image, index, ImageError("out_of_memory", detail))

    def advance(self) -> None:
        """Let the model go on, and hand out what is ready."""
        for ticket, result in self.texts.advance():
            question = self.tickets.pop(ticket)
            del self.under_way[question.key]
            if not isinstance(result, ImageError):
                result = [self._finished(text) for text in result]
                if not self.options.sampling:
                    self.known[question.key] = result
                    if len(self.known) > _NUM_REMEMBERED:
                        self.known.popitem(last=False)
            for image, index in question.askers:
                self._answer(image, index, result)

    def _finished(self, generated: Generated) -> Generated:
        """Apply the rules that change a text, each to what the one before has left."""
        text = generated.text
        if self.text_options.trim_sentence and generated.finish_reason == "length":
            text = trim_to_sentence(text)
        return replace(generated, text=strip_prefixes(text, self.text_options.strip))

    def _answer(self, image: _Image, index: int, result: Result) -> None:
        image.results[index] = result
        image.num_missing -= 1

    def rows(self) -> tuple[int, list[Row]]:
        """Let the images leave that are ready; return how many, and their rows."""
        num_images = self.num_ready
        return num_images, [row for _ in range(num_images) for row in self._rows(self.images.popleft())]

    def _rows(self, image: _Image) -> list[Row]:
        if image.error:
            self.on_failure(image.task.ref, image.error)  # once, not for every question
        rows = []
        for ask, result in zip(image.task.queries, image.results, strict=True):
            assert result is not None
            if isinstance(result, ImageError) and result is not image.error:
                self.on_failure(image.task.ref, result)
            rows.append(self._row(image, ask, result))
        return rows

    def _row(self, image: _Image, ask: Query, result: Result) -> Row:
        several = self.options.num_captions > 1
        texts = [] if isinstance(result, ImageError) else result
        first = texts[0] if texts else Generated(text="", finish_reason="", num_tokens=0)
        return Row(
            file_name=image.task.ref.file_name,
            file_name_b64=image.task.ref.file_name_b64,
            question=ask.question,
            text=first.text,
            texts=tuple(generated.text for generated in texts) if several else None,
            status="failed" if isinstance(result, ImageError) else "ok",
            error=result.code if isinstance(result, ImageError) else "",
            finish_reason=first.finish_reason,
            flag=worst_flag(texts) if self.text_options.loop_guard else None,
            num_tokens=first.num_tokens,
            width=image.width,
            height=image.height,
        )
