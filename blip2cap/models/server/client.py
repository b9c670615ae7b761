"""Requests to a server with all rules about failures: which are repeated, which cost a row, which end the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from blip2cap.errors import ImageError, ServerError
from blip2cap.models.server.chat_api import Answer, NoAnswerError, parse_answer, quoted, words_of
from blip2cap.models.server.connection import Connection, OnBlock
from blip2cap.models.server.failures import BrokenError, BusyError, LostError, RejectedError, SlowError
from blip2cap.models.server.throttle import Throttle

MakeBody: TypeAlias = Callable[[], bytes]
"""Makes the body of a request when it is sent: those that wait would fill the memory."""
PATIENCE_S = 300.0
"""Longest time, in seconds, without an answer while the server is away or asks to wait; then the run ends."""
NUM_IN_A_ROW = 10
"""Number of different images in a row that failed, after which the server is to blame."""
_PAUSES_S = (0.25, 1.0)
"""Pauses before a request is repeated that the server failed at."""
_MOST_BUSY, _FIRST_BUSY, _OVERTAKEN = 8, 2, 3
"""A request that is turned away goes last after the second time, and fails after the eighth, if others were answered in
between three times: then the server does not take this image."""


class Client:
    """Asks a server, as fast as it can answer. Its coroutines run in the thread of the connection."""

    def __init__(self, name: str, connection: Connection, concurrency: int) -> None:
        self.name, self.connection, self.throttle = name, connection, Throttle(concurrency)
        self._has_answered = False
        self._failed: set[int] = set()
        """Images that failed since the last answer."""

    async def ask(
        self, make_body: MakeBody, image: bytes, *, on_block: OnBlock | None = None, counts: bool = True
    ) -> Answer:
        """Return the answer to a request about an image; `on_block` is told what comes of it.

        `counts`: a failure may be one of many that end the run. Raises ImageError if there is no answer, also after
        several attempts, and ServerError if the run is to end.
        """
        try:
            answer = await self.send(make_body, on_block)
            _check_text(answer)
        except ImageError as error:
            if not counts:
                raise
            self._failed.add(hash(image))
            if len(self._failed) >= NUM_IN_A_ROW:
                raise self._give_up(
                    f"{len(self._failed)} different images in a row failed; the last: {error.detail}. The rows so far "
                    "are safe. When the server works, run the same command again; --retry-failed retries these images "
                    "too"
                ) from error
            raise
        self._failed.clear()
        _check_refusal(answer)  # by a model that works
        return answer

    async def send(self, make_body: MakeBody, on_block: OnBlock | None = None) -> Answer:
        """Return the answer to a request, whatever it is. Raises like `ask`, for this request alone."""
        num_failures = num_busy = num_overtaken = num_answers = 0
        while True:
            began = await self.throttle.enter(again=num_failures > 0 or 0 < num_busy <= _FIRST_BUSY)
            try:
                content = await self.connection.post(make_body(), on_block)
                answer = self._parse(content)
            except (BusyError, LostError) as error:
                if isinstance(error, LostError) and not self._has_answered:
                    raise self._give_up(
                        f"{error}. Start the server, or give the --base-url of one that runs"
                    ) from error
                seconds = error.pause_s if isinstance(error, BusyError) else 0.0
                num_overtaken += num_busy > 0 and self.throttle.num_answers > num_answers
                num_busy, num_answers = num_busy + 1, self.throttle.num_answers
                if num_busy >= _MOST_BUSY and num_overtaken >= _OVERTAKEN:
                    raise ImageError("no_answer", f"{error}, {num_busy} times while others were answered") from error
                if self.throttle.pause(began, seconds) > PATIENCE_S:
                    asks = f", and asks to wait {seconds:.0f} s" if seconds else ""
                    raise self._give_up(
                        f"{error}{asks}. Given up after {PATIENCE_S:.0f} s without an answer, or before a longer wait. "
                        "The rows so far are safe. When the server works, run the same command again"
                    ) from error
                continue
            except RejectedError as error:
                raise ImageError("refused", str(error)) from error
            except (BrokenError, SlowError) as error:
                is_slow = isinstance(error, SlowError)
                if is_slow:
                    self.throttle.slow(began)
                if num_failures == len(_PAUSES_S):
                    raise ImageError("timeout" if is_slow else "no_answer", f"{error}, after 3 attempts") from error
                num_failures += 1
            else:
                self.throttle.answered()
                self._has_answered = True
                return answer
            finally:
                self.throttle.leave()
            await asyncio.sleep(_PAUSES_S[num_failures - 1])

    def _parse(self, content: bytes) -> Answer:
        hide = self.connection.hide_key
        try:
            answer = parse_answer(content)
            return replace(answer, text=hide(answer.text), refusal=hide(answer.refusal))
        except NoAnswerError as error:
            words = quoted(self.connection.hide(words_of(content)))
            raise BrokenError(f'{error}: "{words}"') from error

    def _give_up(self, problem: str) -> ServerError:
        """Return the error that ends the run; forget what led to it, as another run may find another server."""
        self._failed.clear()
        self.throttle.reset()
        return ServerError(f"--model {self.name} at {self.connection.url}: {problem}.")


def _check_refusal(answer: Answer) -> None:
    """Raise ImageError if the model refuses to answer."""
    if answer.refusal or answer.finish_reason == "content_filter":
        raise ImageError("refused", f"the model does not answer: {answer.refusal or 'its text was filtered'}")


def _check_text(answer: Answer) -> None:
    """Raise ImageError if all tokens were used before a text began."""
    if not answer.text and answer.finish_reason == "length":
        raise ImageError(
            "no_answer",
            f"{answer.num_tokens} tokens and no text, as of a model that thinks first. Raise --max-new-tokens",
        )
