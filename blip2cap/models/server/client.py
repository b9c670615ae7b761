"""Requests to a server with all rules about failures: which are repeated, which cost a row, which end the run."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from blip2cap.errors import ImageError, ServerError
from blip2cap.models.server.chat_api import Answer, NoAnswerError, parse_answer, quoted, words_of
from blip2cap.models.server.connection import Connection, OnBody
from blip2cap.models.server.failures import BrokenError, BusyError, LostError, RejectedError, SlowError
from blip2cap.models.server.throttle import Throttle

PATIENCE_S = 300.0
"""Longest time, in seconds, without an answer while the server is away or asks to wait; then the run ends."""
NUM_IN_A_ROW = 10
"""Number of different images in a row that failed, after which the server is to blame."""
_PAUSES_S = (0.25, 1.0)
"""Pauses before a request is repeated that the server failed at."""


class Client:
    """Asks a server, as fast as it can answer. Its coroutines run in the thread of the connection."""

    def __init__(self, name: str, connection: Connection, concurrency: int) -> None:
        self.name, self.connection, self.throttle = name, connection, Throttle(concurrency)
        self._has_answered = False
        self._failed: set[int] = set()
        """Images that failed since the last answer."""

    async def ask(self, body: bytes, image: bytes, on_body: OnBody | None = None) -> Answer:
        """Return the answer to a request about an image; `on_body` is called with the body so far as it comes.

        Raises ImageError if there is none, also after several attempts, and ServerError if the run is to end.
        """
        try:
            answer = await self.send(body, on_body)
            _check(answer)
        except ImageError as error:
            self._failed.add(hash(image))
            if len(self._failed) >= NUM_IN_A_ROW:
                raise self._error(
                    f"{len(self._failed)} different images in a row failed; the last: {error.detail}. The rows so far "
                    "are safe. When the server works, run the same command again; --retry-failed retries these images "
                    "too"
                ) from error
            raise
        self._failed.clear()
        return answer

    async def send(self, body: bytes, on_body: OnBody | None = None) -> Answer:
        """Return the answer to a request, whatever it is. Raises like `ask`, for this request alone."""
        num_failures = 0
        again = False
        while True:
            began = await self.throttle.enter(again=again)
            again = True
            try:
                content = await self.connection.post(body, on_body)
                answer = self._parse(content)
            except (BusyError, LostError) as error:
                if isinstance(error, LostError) and not self._has_answered:
                    raise self._error(f"{error}. Start the server, or give the --base-url of one that runs") from error
                seconds = error.pause_s if isinstance(error, BusyError) else 0.0
                if self.throttle.pause(began, seconds) > PATIENCE_S:
                    asks = f", and asks to wait {seconds:.0f} s" if seconds else ""
                    raise self._error(
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

    def _error(self, problem: str) -> ServerError:
        return ServerError(f"--model {self.name} at {self.connection.url}: {problem}.")


def _check(answer: Answer) -> None:
    """Raise ImageError for an answer that is none."""
    if answer.refusal or answer.finish_reason == "content_filter":
        raise ImageError("refused", f"the model does not answer: {answer.refusal or 'its text was filtered'}")
    if not answer.text and answer.finish_reason == "length":
        raise ImageError(
            "no_answer",
            f"{answer.num_tokens} tokens and no text, as of a model that thinks first. Raise --max-new-tokens",
        )
