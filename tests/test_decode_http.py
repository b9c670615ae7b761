"""Images from web servers: what is read, what is refused, and how connections are used."""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blip2cap.decode import http
from blip2cap.decode import read as reading
from blip2cap.decode.hosts import Hosts
from blip2cap.decode.http import HttpClient
from blip2cap.decode.read import read
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from tests.commands import TINY, invoke, read_rows

OPTIONS = DecodeOptions(allow_http=True, max_bytes=10_000)


class Pages(BaseHTTPRequestHandler):
    """A web server that behaves as badly as its paths say."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send one answer."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        try:
            if path == "/good.jpg":
                self.answer(200, b"good")
            elif path == "/agent":
                self.answer(200, self.headers["Accept-Encoding"].encode())
            elif path == "/huge.jpg":
                self.answer(200, Content_Length=str(1 << 40))
            elif path == "/endless.jpg":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(bytes(1000))
            elif path == "/gzip.jpg":
                self.answer(200, gzip.compress(bytes(5_000_000)), Content_Encoding="gzip")
            elif path == "/short.jpg":
                self.answer(200, b"half", Content_Length="8")
            elif path == "/silent.jpg":
                self.server.hold.wait(10)  # type: ignore[attr-defined]
            elif path == "/drip.jpg":
                self.send_response(200)
                self.end_headers()
                while not self.server.hold.wait(0.02):  # type: ignore[attr-defined]
                    self.wfile.write(b"x")
            elif path.startswith("/to/"):
                self.answer(302, Location=path.removeprefix("/to/"))
            elif path == "/round.jpg":
                self.answer(302, Location="/round.jpg")
            else:
                self.answer(int(path.strip("/")))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has had enough, as it should


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    """The address of a web server."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "PAUSES_S", (0.0,))
    monkeypatch.setattr(reading, "HOSTS", Hosts())
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as pages:
        pages.hold = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=pages.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{pages.server_port}"
        pages.hold.set()  # type: ignore[attr-defined]
        pages.shutdown()
        thread.join()


def fetch(url: str) -> bytes | str:
    try:
        return read(ImageRef(path=url, name=url), OPTIONS)
    except ImageError as error:
        return error.code


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("good.jpg", b"good"),
        ("good.jpg?size=large&sign=abc", b"good"),
        ("agent", b"identity"),
        ("404", "vanished"),
        ("410", "vanished"),
        ("401", "permission"),
        ("403", "permission"),
        ("504", "unreachable"),
        ("500", "unreachable"),
        ("429", "unreachable"),
        ("206", "unreadable"),
        ("huge.jpg", "too_large"),
        ("endless.jpg", "too_large"),
        ("short.jpg", "truncated"),
        ("to//good.jpg", b"good"),
        ("round.jpg", "unreadable"),
        ("to/file:///etc/passwd", "permission"),
        ("to/ftp://127.0.0.1/x.jpg", "permission"),
        ("to/", "unreadable"),
    ],
)
def test_a_web_server_is_believed_nothing(server, path, expected):
    assert fetch(f"http://{server}/{path}") == expected


def test_an_answer_is_not_decompressed(server):
    data = fetch(f"http://{server}/gzip.jpg")
    assert isinstance(data, bytes)
    assert gzip.decompress(data) == bytes(5_000_000)


@pytest.mark.parametrize(
    ("path", "limit", "expected"),
    [
        ("silent.jpg", "READ_S", "unreachable"),
        ("silent.jpg", "TIMEOUT_S", "unreachable"),
        ("drip.jpg", "TIMEOUT_S", "timeout"),
    ],
)
def test_a_slow_server_is_left(server, monkeypatch, path, limit, expected):
    monkeypatch.setattr(http, limit, 0.1)
    assert fetch(f"http://{server}/{path}") == expected


def test_a_redirect_leads_from_http_to_https_and_never_back():
    assert http.redirected("http://x.org/a", "https://x.org/a") == "https://x.org/a"
    for location in ("http://x.org/a", "data:image/png;base64,AA", "javascript:1"):
        with pytest.raises(ImageError, match="not followed"):
            http.redirected("https://x.org/a", location)


def test_no_server_at_all_is_a_failed_row(server):
    assert fetch("http://127.0.0.1:1/a.jpg") == "unreachable"


def test_web_servers_are_asked_only_if_that_is_allowed_and_no_message_holds_a_secret(server, here, scenes):
    url = f"http://user:secret@{server}/404?signature=secret"
    refused = invoke("caption", url, *TINY)
    assert refused.exit_code == 2
    assert f"http://{server}/404?...: nothing is fetched from web servers without --allow-http" in refused.stderr
    allowed = invoke("caption", url, *TINY, "--allow-http")
    assert allowed.exit_code == 3
    assert f"http://{server}/404?...: vanished: the server responded with 404" in allowed.stderr
    assert "secret" not in refused.stderr + allowed.stderr
    (row,) = read_rows(here / "captions.jsonl")
    assert row["file_name"] == f"http://{server}/404?signature=secret"


class KeptOpen(BaseHTTPRequestHandler):
    """A web server that keeps connections open, and answers with what it was sent."""

    protocol_version = "HTTP/1.1"
    hang_up = False
    """Close the connection after each answer, without having said so."""
    num_connections = 0
    reached: threading.Event
    """Set by a request for /hang, which is answered when `go_on` is set."""
    go_on: threading.Event

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def setup(self) -> None:
        super().setup()
        type(self).num_connections += 1

    def do_GET(self) -> None:
        if self.path == "/hang":
            self.reached.set()
            self.go_on.wait(10)
        body = f"{self.path} {self.headers['Cookie']}".encode() + bytes(5_000_000 * (self.path == "/large"))
        self.send_response(302 if self.path == "/redirect" else 200)
        self.send_header("Location", "/redirected")
        self.send_header("Set-Cookie", "session=1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have hung up
            self.wfile.write(body)
        self.close_connection = self.hang_up


@pytest.fixture
def kept_open(server) -> Iterator[tuple[str, type[KeptOpen]]]:
    """The address of a server that keeps connections open, and its class."""

    class Handler(KeptOpen):
        reached, go_on = threading.Event(), threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://localhost:{listener.server_port}", Handler  # cookies need a name
        Handler.go_on.set()
        listener.shutdown()
        thread.join()


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with closing(HttpClient()) as client:
        yield client


def test_images_share_connections_one_for_each_thread(kept_open, client):
    address, handler = kept_open
    with ThreadPoolExecutor(4) as pool:
        bodies = list(pool.map(lambda number: client.get(f"{address}/{number}", 10_000), range(100)))
    assert bodies == [f"/{number} None".encode() for number in range(100)]
    assert handler.num_connections <= 4


def test_cookies_last_for_the_redirects_of_one_image_only(kept_open, client):
    address, _ = kept_open
    assert client.get(f"{address}/redirect", 10_000) == b"/redirected session=1"
    assert client.get(f"{address}/a", 10_000) == b"/a None"


def test_a_connection_that_the_server_has_closed_meanwhile_is_replaced(kept_open, client):
    address, handler = kept_open
    handler.hang_up = True
    for number in range(5):
        assert client.get(f"{address}/{number}", 10_000) == f"/{number} None".encode()
    assert handler.num_connections == 5


def test_a_connection_on_which_too_much_was_sent_is_not_used_again(kept_open, client):
    address, handler = kept_open
    with pytest.raises(ImageError, match="too_large"):
        client.get(f"{address}/large", 10_000)
    assert client.get(f"{address}/a", 10_000) == b"/a None"
    assert handler.num_connections == 2


def test_a_closed_client_leaves_no_thread_and_may_be_used_again(kept_open, client):
    address, handler = kept_open
    before = {*threading.enumerate()}
    for _ in range(2):
        assert client.get(f"{address}/a", 10_000) == b"/a None"
        client.close()
        assert not [thread.name for thread in threading.enumerate() if thread not in before and thread.name == "http"]
    assert handler.num_connections == 2


def test_closing_a_client_ends_the_requests_in_flight(kept_open, client):
    address, handler = kept_open
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(client.get, f"{address}/hang", 10_000)
        assert handler.reached.wait(10)
        client.close()
        assert isinstance(hanging.exception(10), CancelledError)


_EVERY_PROCESS = """
import os, sys
from blip2cap.decode.http import shared_client

def get():
    assert shared_client().get(sys.argv[1], 10_000) == b"/a None"

get()
child = os.fork()
get()
if child:
    assert os.waitpid(child, 0)[1] == 0
    get()
"""


def test_a_forked_child_has_connections_of_its_own_and_each_process_ends_in_silence(kept_open):
    address, handler = kept_open
    command = [sys.executable, "-W", "error", "-c", _EVERY_PROCESS, f"{address}/a"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert handler.num_connections == 2
