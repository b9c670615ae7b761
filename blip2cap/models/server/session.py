"""A session of a model behind a server: images and prompts become requests, answers become texts, in any order."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blip2cap.errors import ImageError
from blip2cap.models.base import OnText, Result
from blip2cap.models.server.chat_api import request_body, seed_of, text_so_far
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt

if TYPE_CHECKING:
    from blip2cap.models.server.model import ServerModel

_WAIT_S, _SHORT_WAIT_S = 0.2, 0.005
"""Longest waits for an answer: while no more prompts are taken, and while the run may have more of them ready."""
_TAKEN = 2
"""Prompts that are taken for each request in flight: some wait to be sent again, and others fill their place."""


class ServerSession:
    """Sends a request for each text, and hands over the answers."""

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
        done: list[tuple[int, Result]] = []
        wait_s = _WAIT_S if self.num_pending >= self.capacity else _SHORT_WAIT_S
        try:
            while self.num_pending:
                ticket, result = self._results.get(timeout=0 if done else wait_s)
                if isinstance(result, BaseException) and not isinstance(result, ImageError):
                    self._model.connection.loop.call_soon_threadsafe(self._cancel)
                    raise result
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

    def _cancel(self) -> None:
        """Send nothing more: the run has ended."""
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
        streams = self._on_text is not None
        body = request_body(
            *(model.name, image, prompt.text, options),
            seed=seed,
            dialect=model.dialect,
            turns=prompt.turns,
            streams=streams,
        )

        def tell(so_far: bytes) -> None:
            self._results.put((ticket, model.connection.hide_key(text_so_far(so_far))))

        answer = await model.client.ask(body, image, tell if streams else None)
        return Generated(
            text=answer.text,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            num_tokens=answer.num_tokens,
            num_prompt_tokens=answer.num_prompt_tokens,
        )
