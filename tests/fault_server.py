"""A server on the loopback that speaks the chat API of OpenAI, and fails as it is told.

`python -m tests.fault_server [DELAY_S]` runs one that never fails; it prints its address.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from blip2cap.models.server.model import small_image

MODEL, KEY = "vision-1", "sk-a-very-secret-key"
_TRIAL = small_image().decode()


def parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first turn of the user in a request: the image and a text."""
    first = next(message for message in body["messages"] if message["role"] == "user")
    return list(first["content"])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request for a text."""

    number: int
    """Number of requests for a text before this one."""
    attempt: int
    """Number of requests before this one with the same body."""
    body: dict[str, Any]
    headers: dict[str, str]
    is_trial: bool
    """True for the request with which a run tries the server."""

    @property
    def url(self) -> str:
        """The image, as a data URL."""
        return str(parts(self.body)[0]["image_url"]["url"])

    @property
    def prompt(self) -> str:
        return str(parts(self.body)[1]["text"])

    @property
    def image(self) -> bytes:
        """Bytes of the image file."""
        return base64.b64decode(self.url.split(",")[1])


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Response of the server to one request: an answer, or a fault."""

    status: int = 200
    body: Any = None
    """JSON content, or bytes; None: the usual answer."""
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    """Close the connection in the middle of the body."""
    silent: bool = False
    """Send nothing, until the server is closed."""
    drop: bool = False
    """Close the connection before the answer."""


Behaviour = Callable[[Asked], Reply]


def good(asked: Asked) -> Reply:
    """Answer every request."""
    return Reply()


def error(status: int, message: str = "out of order", **headers: str) -> Reply:
    """Return an error as vLLM sends it."""
    body = {"error": {"message": message, "type": "Error", "code": status}}
    return Reply(
        status=status, body=body, headers=tuple((name.replace("_", "-"), each) for name, each in headers.items())
    )


def text_of(image: bytes) -> str:
    """Return the text that the server generates for an image file."""
    return f"picture {hashlib.sha256(image).hexdigest()[:12]}"


def answer(text: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return the body of an answer."""
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }


def stream(*deltas: str, finish_reason: str = "stop") -> bytes:
    """Return the body of an answer as a stream of events."""
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": delta}}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    events.append({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 7}})
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


class FaultServer:
    """The server, in threads of this process; to be closed, or used as a context."""

    def __init__(
        self, behaviour: Behaviour = good, *, delay_s: float = 0.0, models: tuple[str, ...] = (MODEL,)
    ) -> None:
        self.behaviour, self.delay_s, self.models = behaviour, delay_s, models
        self.asked: list[Asked] = []
        """Requests so far, without those that tried the server."""
        self.most_in_flight = 0
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._num_in_flight = 0
        self._attempts: dict[str, int] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def options(self) -> tuple[str, ...]:
        """Options of a command that uses this server."""
        return ("-m", f"openai:{MODEL}", "--base-url", self.url)

    def reply(self, body: bytes, headers: dict[str, str]) -> Reply:
        """Count a request, and decide what happens."""
        parsed = json.loads(body)
        with self._lock:
            key = hashlib.sha256(body).hexdigest()
            attempt = self._attempts[key] = self._attempts.get(key, -1) + 1
            image = parts(parsed)[0]["image_url"]["url"]
            asked = Asked(
                number=len(self.asked),
                attempt=attempt,
                body=parsed,
                headers=headers,
                is_trial=image == _TRIAL,
            )
            if not asked.is_trial:
                self.asked.append(asked)
            self._num_in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._num_in_flight)
        try:
            if self.delay_s:
                time.sleep(self.delay_s)
            return self.behaviour(asked)
        finally:
            with self._lock:
                self._num_in_flight -= 1

    def close(self) -> None:
        """End it, and all connections."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    owner: FaultServer

    def __init__(self, *args: Any) -> None:
        self.sockets: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, address: Any) -> None:
        self.sockets.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self.sockets.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for each in list(self.sockets):  # wakes the threads that wait for the next request
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, address: Any) -> None:
        """Print nothing: clients may go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        owner: FaultServer = self.server.owner  # type: ignore[attr-defined]
        self._send(200, json.dumps({"object": "list", "data": [{"id": name} for name in owner.models]}).encode())

    def do_POST(self) -> None:
        owner: FaultServer = self.server.owner  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            self._send(404, b'{"detail":"Not Found"}')
            return
        asked = json.loads(body)
        reply = owner.reply(body, dict(self.headers))
        if reply.silent:
            owner.closed.wait(30)
            self.close_connection = True
            return
        if reply.drop:
            self.close_connection = True
            return
        content = reply.body
        if content is None:
            url = parts(asked)[0]["image_url"]["url"]
            content = answer(text_of(base64.b64decode(url.split(",")[1])))
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self._send(reply.status, content, reply.headers, cut=reply.cut)

    def _send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = (), *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut


def main() -> None:
    """Run a server that never fails until standard input ends."""
    with FaultServer(delay_s=float(sys.argv[1]) if sys.argv[1:] else 0.0) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
