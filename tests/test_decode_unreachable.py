"""Servers that do not answer: what is asked again, after which pause, and when a run ends."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from blip2cap.decode import http
from blip2cap.decode import read as reading
from blip2cap.decode.hosts import NUM_IN_A_ROW, Hosts
from blip2cap.decode.http import HttpClient
from blip2cap.errors import ImageError, UnreachableError
from blip2cap.urls import seconds_until
from tests.commands import TINY, invoke
from tests.outputs import rows_of

GONE = "http://127.0.0.1:1"
"""An address where nothing listens."""


class Server(ThreadingHTTPServer):
    """Answers with the next of `responses` (a status, or a status and Retry-After), then with `body`."""

    responses: list[tuple[int, str]]
    body = b"good"
    num_requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.server.num_requests += 1
        status, retry_after = self.server.responses.pop(0) if self.server.responses else (200, "")
        body = self.server.body if status == 200 else b""
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server, in an environment without proxies and with no host seen yet."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reading, "HOSTS", Hosts())
    with Server(("127.0.0.1", 0), Handler) as server:
        server.responses = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server: Server, name: str = "a.png") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


class Clock:
    """Records pauses and does not wait."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.mark.parametrize(
    ("responses", "pauses", "error"),
    [
        ([], [], ""),
        ([(503, ""), (429, "")], [0.5, 1.0], ""),
        ([(429, "7"), (502, "1")], [7.0, 1.0], ""),
        ([(503, "nonsense")], [0.5], ""),
        ([(500, "")] * 9, [0.5, 1.0, 2.0], "unreachable: the server responded with 500"),
        ([(429, "120")], [], "unreachable: the server responded with 429, and asks to wait 120 s"),
        ([(404, "")], [], "vanished: the server responded with 404"),
    ],
)
def test_a_request_is_repeated_after_pauses_that_the_server_may_make_longer(
    server: Server, responses: list[tuple[int, str]], pauses: list[float], error: str
) -> None:
    clock = Clock()
    server.responses = responses
    with closing(HttpClient(clock.sleep)) as client:
        if error:
            with pytest.raises(ImageError) as raised:
                client.get(url_of(server), 1000)
            assert str(raised.value) == error
        else:
            assert client.get(url_of(server), 1000) == b"good"
    assert clock.pauses == pauses
    assert server.num_requests == len(pauses) + 1


def test_a_refused_connection_is_tried_again_and_one_attempt_is_enough_for_a_host_that_is_down(server: Server) -> None:
    clock = Clock()
    with closing(HttpClient(clock.sleep)) as client:
        for retry, pauses in ((False, []), (True, [0.5, 1.0, 2.0])):
            with pytest.raises(ImageError, match="unreachable: no connection: ClientConnectorError"):
                client.get(f"{GONE}/a.png", 1000, retry=retry)
            assert clock.pauses == pauses


def test_a_name_that_no_server_has_is_not_looked_up_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    reason = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def read(client: HttpClient, url: str, max_bytes: int, answers: list[int]) -> bytes:
        key: Any = aiohttp.client_reqrep.ConnectionKey("x.invalid", 80, False, True, None, None, None)
        raise aiohttp.ClientConnectorError(key, reason)

    monkeypatch.setattr(HttpClient, "_read", read)
    with closing(HttpClient(clock.sleep)) as client:
        for number, num_pauses in ((socket.EAI_NONAME, 0), (socket.EAI_AGAIN, 3)):
            reason.errno = number
            with pytest.raises(ImageError, match=r"unreachable: .*Name or service not known"):
                client.get("http://x.invalid/a.png", 1000)
            assert len(clock.pauses) == num_pauses


def test_a_pause_ends_with_the_client_as_after_ctrl_c(server: Server) -> None:
    paused = threading.Event()

    async def sleep(seconds: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    server.responses = [(503, "")]
    client = HttpClient(sleep)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, url_of(server), 1000)
        assert paused.wait(10)
        client.close()
        assert isinstance(waiting.exception(10), CancelledError)


def test_a_pause_beyond_the_time_for_an_image_is_no_hanging_decoder(server: Server) -> None:
    async def sleep(seconds: float) -> None:
        raise TimeoutError  # as asyncio.timeout does

    server.responses = [(503, "")]
    with closing(HttpClient(sleep)) as client, pytest.raises(ImageError, match="unreachable: the server responded"):
        client.get(url_of(server), 1000)


def test_the_time_to_wait_is_a_number_or_a_date() -> None:
    assert seconds_until("12") == 12
    for text in (
        "",
        "soon",
        "-3",
        "Mon, 01 Jan 2020 00:00:00 +9999999999999999",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "21 Oct 2015 07:28:00",
    ):
        assert seconds_until(text) == 0
    assert 50 < seconds_until(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60


def test_a_host_is_gone_after_twenty_failures_in_a_row() -> None:
    hosts = Hosts()
    for _ in range(2):
        for _ in range(NUM_IN_A_ROW - 1):
            hosts.failed("a", "no")
        hosts.answered("a")
    assert not hosts.is_down("a")
    for _ in range(NUM_IN_A_ROW - 1):
        hosts.failed("a", "no")
    with pytest.raises(UnreachableError, match=r"a: cannot be reached, 20 images in a row failed; the last: no way\."):
        hosts.failed("a", "no way")
    assert hosts.is_down("a")


def test_one_host_of_many_may_be_gone_but_not_all_of_them() -> None:
    hosts = Hosts()
    hosts.answered("b")
    for _ in range(3 * NUM_IN_A_ROW):
        hosts.failed("a", "no")
    assert hosts.is_down("a")
    hosts.answered("b")
    for number in range(NUM_IN_A_ROW - 1):
        hosts.failed(f"c{number}", "no")
    with pytest.raises(UnreachableError, match="b and 19 more: cannot be reached"):
        hosts.failed("b", "no")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES_S", (0.0,))


@pytest.mark.usefixtures("no_pauses")
def test_a_run_whose_server_is_gone_ends_with_6_and_goes_on_when_it_is_back(
    here: Path, scenes: Path, server: Server
) -> None:
    server.body = (scenes / "000.png").read_bytes()
    names = [f"{number}.png" for number in range(40)]
    command = ("caption", "-", *TINY, "--allow-http", "--batch-size", "4", "--threads", "2")
    paths = "\n".join(url_of(server, name) for name in names).encode()
    server.responses = [(200, "")] * 8 + [(503, "")] * 200
    result = invoke(*command, stdin=paths)
    assert result.exit_code == 6
    assert f"http://127.0.0.1:{server.server_port}: cannot be reached, 20 images in a row failed" in result.stderr
    assert "the last: the server responded with 503. The rows so far are safe." in result.stderr
    rows = rows_of(here / "captions.jsonl")
    assert 0 < len(rows) < 40
    assert {row["error"] for row in rows} <= {"", "unreachable"}
    assert json.loads(invoke("status", "captions.jsonl", "--json").stdout)["unfinished"]
    server.responses = []
    result = invoke(*command, "--retry-only", "unreachable", stdin=paths)
    assert result.exit_code == 0, result.stderr
    rows = rows_of(here / "captions.jsonl")
    assert sorted(row["file_name"] for row in rows) == sorted(url_of(server, name) for name in names)
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.usefixtures("no_pauses")
def test_a_few_images_of_a_server_that_is_gone_are_failed_rows(here: Path, scenes: Path, server: Server) -> None:
    server.body = (scenes / "000.png").read_bytes()
    paths = "\n".join([*(f"{GONE}/{number}.png" for number in range(5)), url_of(server)]).encode()
    result = invoke("caption", "-", *TINY, "--allow-http", stdin=paths)
    assert (result.exit_code, "1 ok, 5 failed (5 unreachable)" in result.stderr) == (3, True)
