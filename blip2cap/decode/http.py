"""URL of a web server -> bytes, through one pool of connections for the whole process.

Covered: limits on size and time; redirects; connections that stay open between images; calls from many threads;
requests are repeated, after a pause, where a server does not answer or asks to wait.
Not covered: nothing is cached, and no cookie goes from one image to the next.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin, urlsplit

import aiohttp

from blip2cap.errors import ImageError
from blip2cap.urls import TIMEOUT_S, check_size, seconds_until, shown

CONNECT_S, READ_S = 10.0, 20.0
"""Longest time to connect, and to wait for the next bytes."""
_CLOSE_S = 2.0
_NUM_REDIRECTS = 5
_BLOCK = 1 << 16
# Identity: a compressed response would be larger than its Content-Length.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "blip2cap"}
_STATUS_ERRORS = {
    **dict.fromkeys((404, 410), "vanished"),
    **dict.fromkeys((401, 403, 407, 451), "permission"),
}
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Responses of a server that may give the file later."""
PAUSES_S = (0.5, 1.0, 2.0)
"""Pauses before a request is repeated; longer if the server asks for it with Retry-After."""
MOST_PAUSE_S = 30.0
"""Longest pause: a server that asks for more is not asked again."""
_NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class _NoAnswerError(Exception):
    """A request without an answer that is worth anything."""

    def __init__(self, detail: str, *, pause_s: float = 0.0, is_final: bool = False) -> None:
        super().__init__(detail)
        self.pause_s = pause_s
        """Pause that the server asks for."""
        self.is_final = is_final
        """True if the same request would fail again."""


class HttpClient:
    """A pool of connections, and a thread with the event loop that serves it; to be closed.

    `get` may be called from any number of threads.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, url: str, max_bytes: int, timeout_s: float = TIMEOUT_S, *, retry: bool = True) -> bytes:
        """Read one file; with `retry`, repeat a request that may succeed later. Raises ImageError."""
        timeout_s = min(timeout_s, TIMEOUT_S)
        try:
            with self._lock:
                if self._thread is None:
                    self._start()
            reading = asyncio.run_coroutine_threadsafe(self._fetch(url, max_bytes, timeout_s, retry), self._loop)
            try:
                return reading.result()
            finally:
                reading.cancel()  # does nothing, unless Ctrl-C has ended the wait
        except TimeoutError as error:
            raise ImageError("timeout", f"the server took too long: at most {timeout_s:g} s for a file") from error
        except _NoAnswerError as error:
            raise ImageError("unreachable", str(error)) from error
        except aiohttp.ClientPayloadError as error:
            raise ImageError("truncated", "the connection ended before the file did") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ImageError("unreadable", f"cannot be read: {type(error).__name__}: {shown(str(error))}") from error

    def close(self) -> None:
        """Cancel the requests in flight, close the connections, end the thread."""
        with self._lock:
            if self._thread is not None:
                self._loop.call_soon_threadsafe(self._closed.set)
                self._thread.join(_CLOSE_S)
                self._thread = None

    def _start(self) -> None:
        # With a factory, the loop is not made the current one of this thread.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        self._closed = asyncio.Event()
        opened = threading.Event()

        async def serve() -> None:
            async with aiohttp.TCPConnector(limit=0) as self._connector:
                opened.set()
                await self._closed.wait()

        def run() -> None:
            with runner:  # its end cancels the requests in flight
                runner.run(serve())

        self._thread = threading.Thread(target=run, name="http", daemon=True)
        self._thread.start()
        opened.wait()

    async def _fetch(self, url: str, max_bytes: int, timeout_s: float, retry: bool) -> bytes:
        """Read one file within a time limit for all attempts. Raises _NoAnswerError for the last of them."""
        last: _NoAnswerError | None = None
        answers: list[int] = []
        """Statuses of the answers that have begun."""
        try:
            async with asyncio.timeout(timeout_s):
                for pause_s in PAUSES_S:
                    try:
                        return await self._attempt(url, max_bytes, answers)
                    except _NoAnswerError as error:
                        last = error
                    if not retry or last.is_final or last.pause_s > MOST_PAUSE_S:
                        raise last
                    await self._sleep(max(pause_s, last.pause_s))
                return await self._attempt(url, max_bytes, answers)
        except TimeoutError:
            if last is None and not answers:
                last = _NoAnswerError(f"no answer within {timeout_s:g} s")
            if last is None:
                raise
            raise last from None

    async def _attempt(self, url: str, max_bytes: int, answers: list[int]) -> bytes:
        """Read one file. Raises _NoAnswerError if the server cannot be reached."""
        try:
            return await self._read(url, max_bytes, answers)
        except aiohttp.ServerTimeoutError as error:
            raise _NoAnswerError(f"the server does not answer: {shown(str(error))}") from error
        except aiohttp.ClientConnectionError as error:
            reason = getattr(error, "os_error", error)
            is_final = isinstance(error, aiohttp.ClientSSLError) or (
                isinstance(reason, socket.gaierror) and reason.errno in _NO_SUCH_HOST
            )
            raise _NoAnswerError(
                f"no connection: {type(error).__name__}: {shown(str(error))}", is_final=is_final
            ) from error

    async def _read(self, url: str, max_bytes: int, answers: list[int]) -> bytes:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        # A session for each image: it holds the cookies that a chain of redirects may need.
        async with aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            timeout=timeout,
            headers=_HEADERS,
            trust_env=True,
            auto_decompress=False,
        ) as session:
            for _ in range(_NUM_REDIRECTS + 1):
                async with session.get(url, allow_redirects=False) as response:
                    answers.append(response.status)
                    if response.status in (301, 302, 303, 307, 308):
                        url = redirected(url, response.headers.get("Location", ""))
                        continue
                    return await _body(response, max_bytes)
        raise ImageError("unreadable", f"more than {_NUM_REDIRECTS} redirects")


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    if response.status in _STATUS_ERRORS:
        raise ImageError(_STATUS_ERRORS[response.status], f"the server responded with {response.status}")
    if response.status in _PASSING:
        pause_s = seconds_until(response.headers.get("Retry-After", ""))
        waits = f", and asks to wait {pause_s:.0f} s" if pause_s else ""
        raise _NoAnswerError(f"the server responded with {response.status}{waits}", pause_s=pause_s)
    if response.status != 200:
        raise ImageError("unreadable", f"cannot be read: the server responded with {response.status}")
    check_size(response.content_length or 0, max_bytes)
    data = bytearray()
    async for block in response.content.iter_chunked(_BLOCK):
        data += block
        check_size(len(data), max_bytes)
    return bytes(data)


def redirected(url: str, location: str) -> str:
    """Return the target of a redirect, with the same scheme or from http to https. Raises ImageError for others."""
    target = urljoin(url, location)
    old, new = urlsplit(url).scheme, urlsplit(target).scheme
    if new != old and (old, new) != ("http", "https"):
        raise ImageError("permission", f"the server redirects from {old} to {new or 'nowhere'}: not followed")
    return target


_clients: dict[int, HttpClient] = {}
"""Process id -> client. A forked child has the connections of its parent, but not the thread that serves them."""


def shared_client() -> HttpClient:
    """Return the client of this process, which is closed when the process ends."""
    pid = os.getpid()
    return _clients.get(pid) or _clients.setdefault(pid, HttpClient())  # atomic: of two threads one wins


@atexit.register
def _close() -> None:
    if (client := _clients.get(os.getpid())) is not None:
        client.close()
