"""A session of a model behind a server: images and prompts become requests, answers become texts, in any order."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import OnText, Result
from blip2cap.models.server.chat_api import Answer, StreamedText, request_body, seed_of
from blip2cap.records import Generated, Prompt

if TYPE_CHECKING:
    from blip2cap.models.server.model import ServerModel

_WAIT_S, _SHORT_WAIT_S = 0.2, 0.005
"""Longest waits for an answer: while no more prompts are taken, and while the run may have more of them ready."""
_TAKEN = 2
"""Prompts that are taken for each request in flight: some wait to be sent again, and others fill their place."""


class ServerSession:
    """Sends a request for each text, and hands over the answers."""

    num_ahead = 0

    def __init__(self, model: ServerModel, options: GenerateOptions, on_text: OnText | None = None) -> None:
        """`on_text` is called with the text of a prompt so far; then answers are streamed."""
        self.capacity = _TAKEN * model.options.concurrency
        """Number of prompts that are taken before the run should wait for answers."""
        self.num_pending = 0
        """Number of prompts without an answer."""
        self._model, self._options, self._on_text = model, options, on_text
        self._num_added = 0
        self._results: queue.SimpleQueue[tuple[int, Result | BaseException | str]] = queue.SimpleQueue()
        """Results of tickets; a str is a text so far."""
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        """Error that ends the run, and that the next `advance` raises."""

    def encode(self, images: Sequence[bytes]) -> list[bytes]:
        """Return the images, data URLs, as they are: the server encodes them."""
        return list(images)

    def add(self, features: Sequence[bytes], prompts: Sequence[Prompt]) -> list[int]:
        """Send prompts about images; return a ticket for each."""
        tickets = list(range(self._num_added, self._num_added + len(prompts)))
        self._num_added += len(prompts)
        self.num_pending += len(prompts)
        requests = [(ticket, features[each.image], each) for ticket, each in zip(tickets, prompts, strict=True)]
        self._model.connection.loop.call_soon_threadsafe(self._begin, requests)
        return tickets

    def advance(self) -> list[tuple[int, Result]]:
        """Wait a little for answers; return those that are there. Raises ServerError if the run is to end."""
        if self._error is not None:
            raise self._error
        done: list[tuple[int, Result]] = []
        wait_s = _WAIT_S if self.num_pending >= self.capacity else _SHORT_WAIT_S
        try:
            while self.num_pending:
                ticket, result = self._results.get(timeout=0 if done else wait_s)
                if isinstance(result, BaseException) and not isinstance(result, ImageError):
                    self.close()
                    if not done:
                        raise result
                    self._error = result  # for the next call: these answers are good
                    break
                if isinstance(result, str):
                    assert self._on_text is not None
                    self._on_text(result)
                    continue
                self.num_pending -= 1
                done.append((ticket, result))
        except queue.Empty:
            pass
        return done

    def _begin(self, requests: Sequence[tuple[int, bytes, Prompt]]) -> None:
        for request in requests:
            task = self._model.connection.loop.create_task(self._answer(*request))
            self._running.add(task)  # the loop itself does not hold it
            task.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Cancel the requests in flight, and send nothing more."""
        self._model.connection.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        for task in self._running:
            task.cancel()

    async def _answer(self, ticket: int, image: bytes, prompt: Prompt) -> None:
        """Make the texts for one prompt, each with a request of its own: not every server gives several."""
        numbers = range(self._options.num_captions)
        result: Result | BaseException
        try:
            result = list(await asyncio.gather(*(self._text(ticket, image, prompt, number) for number in numbers)))
        except BaseException as error:
            result = error
        self._results.put((ticket, result))

    async def _text(self, ticket: int, image: bytes, prompt: Prompt, number: int) -> Generated:
        model, options = self._model, self._options
        seed = seed_of(options.seed, prompt.name, number) if options.sampling else None

        def make_body(*, streams: bool = False) -> bytes:
            return request_body(
                *(model.name, image, prompt.text, options),
                seed=seed,
                dialect=model.dialect,
                turns=prompt.turns,
                streams=streams,
            )

        counts = not options.no_repeat_ngram_size  # a second try of the loop guard may fail
        if self._on_text is None:
            answer = await model.client.ask(make_body, image, counts=counts)
        else:
            answer = await self._stream(ticket, make_body, image)
        return Generated(
            text=answer.text,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            num_tokens=answer.num_tokens,
            num_prompt_tokens=answer.num_prompt_tokens,
        )

    async def _stream(self, ticket: int, make_body: Callable[..., bytes], image: bytes) -> Answer:
        """Ask for an answer as a stream, and for a whole one if the server has no streams."""
        client, text = self._model.client, StreamedText()

        def tell(block: bytes | None) -> None:
            if block is None:
                text.begin()
            else:
                self._results.put((ticket, self._model.connection.hide_key_so_far(text.add(block))))

        try:
            return await client.ask(partial(make_body, streams=True), image, on_block=tell, counts=False)
        except ImageError as error:
            if error.code != "refused" or "stream" not in error.detail:
                raise
            return await client.ask(make_body, image, counts=False)
