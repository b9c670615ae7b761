"""A hub on this machine that serves folders as repositories, and fails as the real one may."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

_LARGE = (".safetensors", ".bin")
"""Files that the hub knows by the hash of their content."""


class FakeHub:
    """Repositories, and what has been asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Path] = {}
        self.asked: list[str] = []
        """Every request: method, path and range."""
        self.refuse: tuple[int, str] | None = None
        """Status and X-Error-Code of every answer."""
        self.on_weights: Callable[[bytes], bytes] = lambda content: content
        """Changes the weights before they are sent."""
        self.after_weights: Callable[[], None] = lambda: None
        """Called when they are on their way."""
        self.breaks = False
        """True: a connection is closed after what `on_weights` has left, if that is not all."""
        self.answer_after_s = 0.0

    def commit(self, name: str) -> str:
        """Return the commit of a repository."""
        return hashlib.sha1(name.encode()).hexdigest()

    def files(self, name: str) -> dict[str, Path]:
        """Return the files of a repository by their names."""
        folder = self.repositories[name]
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def downloads(self) -> list[str]:
        """Return the requests for large files: their name and the range."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and ".safetensors" in line]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
        time.sleep(hub.answer_after_s)
        if hub.refuse is not None:
            return self._send(hub.refuse[0], b"{}", {"X-Error-Code": hub.refuse[1]})
        what, _, rest = path.removeprefix("/").partition("/")
        name = "/".join((rest if what == "api" else path.strip("/")).removeprefix("models/").split("/")[:2])
        if name not in hub.repositories:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if what == "api":
            return self._send(200, json.dumps(self._listing(name, tree="/tree/" in path)).encode())
        file = path.split("/resolve/")[1].partition("/")[2]
        content = hub.files(name)[file].read_bytes()
        etag = hashlib.sha256(content) if file.endswith(_LARGE) else hashlib.sha1(content)
        headers = {"X-Repo-Commit": hub.commit(name), "ETag": f'"{etag.hexdigest()}"'}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        content = content[start:]
        headers["Content-Length"] = str(len(content))
        if file.endswith(_LARGE) and self.command == "GET":
            content = hub.on_weights(content)
            self.close_connection = hub.breaks and len(content) < int(headers["Content-Length"])
        self._send(206 if start else 200, content, headers)
        if file.endswith(_LARGE) and self.command == "GET":
            hub.after_weights()
        return None

    def _listing(self, name: str, *, tree: bool) -> object:
        siblings, entries = [], []
        for file, path in self.hub.files(name).items():
            content = path.read_bytes()
            blob, size = hashlib.sha1(content).hexdigest(), len(content)
            lfs = {"size": size, "pointerSize": 135, "sha256": hashlib.sha256(content).hexdigest()}
            is_large = file.endswith(_LARGE)
            siblings.append({"rfilename": file, "blobId": blob, "size": size} | ({"lfs": lfs} if is_large else {}))
            entry = {"type": "file", "path": file, "oid": blob, "size": size}
            entries.append(entry | ({"lfs": lfs | {"oid": lfs["sha256"]}} if is_large else {}))
        return entries if tree else {"id": name, "sha": self.hub.commit(name), "siblings": siblings}

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """Serve a hub without repositories, and let huggingface_hub use it with the cache in `cache`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
        server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (
            ("HF_HUB_OFFLINE", False),
            ("ENDPOINT", hub.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_HUB_CACHE", str(cache)),
        ):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield hub
        server.shutdown()
