"""A pool of connections to one server, and the thread with the event loop that serves it.

Redirects are not followed: the key would go with them. The key is in the headers of requests and nowhere else; words
of the server that repeat it are cleaned.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urljoin

import httpx2

from blip2cap.errors import ServerError, UsageError
from blip2cap.models.server.chat_api import error_code, model_names, quoted, words_of
from blip2cap.models.server.failures import BrokenError, BusyError, LostError, RejectedError, SlowError
from blip2cap.server_options import PREFIX, ServerOptions
from blip2cap.urls import host, seconds_until, shown

T = TypeVar("T")
OnBlock: TypeAlias = Callable[[bytes | None], None]
"""Called with None where an answer begins, then with each block of it."""
_CONNECT_S = 10.0
_CLOSE_S = 2.0
_MOST_BYTES = 8 << 20
"""Longest body of an answer."""
_NO_CREDIT = "insufficient_quota"
"""Code of a 429 of OpenAI that no waiting ends."""


class Connection:
    """A pool of connections to a server; to be closed. `key` may be empty."""

    def __init__(self, name: str, options: ServerOptions, key: str) -> None:
        assert options.base_url is not None
        key = key.strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError("OPENAI_API_KEY: holds characters that no key has. Expected printable ASCII.")
        self.url, self._name = options.base_url, name
        self._timeout_s, self._key = options.request_timeout_s, key
        try:
            self._chat_url = httpx2.URL(f"{self.url}/chat/completions")  # parsed once: it takes longer than the request
        except httpx2.InvalidURL as error:
            raise UsageError(
                f"--base-url {self.url}: not an address: {error}. Expected one like http://localhost:8000/v1."
            ) from error
        self._certificates = httpx2.create_ssl_context()
        self._idle: list[httpx2.AsyncClient] = []
        self._closed = asyncio.Event()
        self._opened = threading.Event()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self._runner.get_loop()
        """Event loop of the thread; every coroutine of this class runs there."""
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        self._opened.wait()

    def _run(self) -> None:
        with self._runner:  # its end cancels the requests in flight
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        async with AsyncExitStack() as self._clients:
            self._opened.set()
            await self._closed.wait()

    @contextmanager
    def _client(self) -> Iterator[httpx2.AsyncClient]:
        """Lend a client with one connection: a pool of httpx2 looks at all its connections for every request."""
        client = self._idle.pop() if self._idle else self._new_client()
        try:
            yield client
        finally:
            self._idle.append(client)

    def _new_client(self) -> httpx2.AsyncClient:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "blip2cap"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        client = httpx2.AsyncClient(
            headers=headers,
            limits=httpx2.Limits(max_connections=1),
            timeout=httpx2.Timeout(None, connect=_CONNECT_S),
            verify=self._certificates,
            follow_redirects=False,
            trust_env=False,  # a proxy would get the key
        )
        self._clients.push_async_callback(client.aclose)
        return client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, and wait for it."""
        running: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return running.result()
        finally:
            running.cancel()  # does nothing, unless a signal has ended the wait

    def close(self) -> None:
        """Cancel the requests in flight, close the connections, end the thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._closed.set)
            if threading.current_thread() is not self._thread:
                self._thread.join(_CLOSE_S)

    def hide_key(self, text: str) -> str:
        """Return a text of the server without the key."""
        return text.replace(self._key, "***") if self._key else text

    def hide_key_so_far(self, text: str) -> str:
        """Return the beginning of a text without the key, and without an end that the key may begin with."""
        text = self.hide_key(text)
        longest = min(len(self._key), len(text))
        return next((text[:-length] for length in range(longest, 0, -1) if text.endswith(self._key[:length])), text)

    def hide(self, words: str) -> str:
        """Return words of the server for a message: without the key, and without secrets of URLs."""
        return shown(self.hide_key(words))

    async def post(self, body: bytes, on_block: OnBlock | None = None) -> bytes:
        """Send a request for a text; return the body of the answer. `on_block` is told what comes of it.

        Raises RequestError, and ServerError if no request can succeed.
        """
        status, headers, answer = await self._request("POST", self._chat_url, body, on_block)
        if status == 200:
            return answer
        words = self._words(status, answer)
        if 300 <= status < 400:
            target = self.hide(host(urljoin(self.url, headers.get("location", ""))))
            raise self._error(f"{words}, a redirect to {target}, which is not followed. Give --base-url of that server")
        if status == 402 or (status == 429 and error_code(answer) == _NO_CREDIT):
            raise self._error(f"{words}. Add credit to the account of the key in OPENAI_API_KEY")
        if status in (401, 403):
            raise self._error(f"{words}. The variable OPENAI_API_KEY must hold a key of this server")
        if status == 404:
            raise self._error(
                f"{words}. Expected a model that the server knows and a --base-url of its API, which often ends in /v1"
                f"{await self.other_models()}"
            )
        if status in (429, 503):
            raise BusyError(words, seconds_until(headers.get("retry-after", "")))
        if status == 408 or status >= 500 or status < 400:
            raise BrokenError(words)
        raise RejectedError(words)

    async def other_models(self) -> str:
        """Return a phrase with the models of the server if it names some, and this one is not among them."""
        try:
            status, _, body = await self._request("GET", httpx2.URL(f"{self.url}/models"))
        except (LostError, BrokenError, SlowError):
            return ""
        names = model_names(body) if status == 200 else []
        if not names or self._name.removeprefix(PREFIX) in names:
            return ""
        return f". It has: {quoted(self.hide(', '.join(names)))}"

    async def _request(
        self, method: str, url: httpx2.URL, body: bytes | None = None, on_block: OnBlock | None = None
    ) -> tuple[int, httpx2.Headers, bytes]:
        """Send a request; return status, headers and body of the response."""
        try:
            with self._client() as client:
                async with (
                    asyncio.timeout(self._timeout_s) as limit,
                    client.stream(method, url, content=body) as response,
                ):
                    answer = bytearray()
                    if on_block is not None and response.status_code == 200:
                        on_block(None)
                    async for block in response.aiter_raw():
                        answer += block
                        if len(answer) > _MOST_BYTES:
                            raise BrokenError(f"its answer has more than {_MOST_BYTES:,} bytes")
                        if on_block is not None and response.status_code == 200:
                            on_block(block)
                            limit.reschedule(self.loop.time() + self._timeout_s)  # a stream that goes on may be long
            return response.status_code, response.headers, bytes(answer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise LostError(self.hide(f"no connection: {str(error) or type(error).__name__}")) from error
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise SlowError(f"no complete answer within {self._timeout_s:g} s (--request-timeout)") from error
        except httpx2.TransportError as error:
            words = self.hide(str(error) or type(error).__name__)
            raise BrokenError(f"the connection ended before the answer did: {words}") from error

    def _words(self, status: int, body: bytes) -> str:
        words = quoted(self.hide(words_of(body)))
        return f"the server responded with {status}" + (f': "{words}"' if words else "")

    def _error(self, problem: str) -> ServerError:
        return ServerError(f"--model {self._name} at {self.url}: {problem}.")
