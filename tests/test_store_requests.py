"""Requests of a run to a bucket, counted at the server, beside the table in docs/scale.md."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from tests.buckets import s3_server
from tests.commands import TINY, draw_scenes, invoke

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
KINDS = ("GET", "HEAD", "LIST", "PUT")
NO_SHARD = "99999/99999"
"""A shard without a part."""
Requests = Counter[str]
Counted = Callable[..., Requests]


def stated(what: str) -> Requests:
    """Read a row of the table."""
    (cells,) = re.findall(rf"^\| {what} \|(.*)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return Counter(dict(zip(KINDS, map(int, cells.split("|")), strict=True)))


def times(number: int, requests: Requests) -> Requests:
    return Counter({kind: number * count for kind, count in requests.items()})


def kind_of(line: str) -> str:
    """Read the kind of a request from a line of the server's log."""
    found = re.search(r'"(?:\x1b\[\d+m)*(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP', line)
    assert found, line
    return "LIST" if "?list-type" in found[2] else found[1]


class Log(logging.Handler):
    """The lines of the server's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with six images in two folders below `photos/`."""
    for folder, seed in (("a", 0), ("b", 3)):
        draw_scenes(tmp_path / "photos" / folder, 3, first_seed=seed)
    with s3_server(monkeypatch, tmp_path / "cache") as url:
        s3fs.S3FileSystem().put(f"{tmp_path}/photos/", f"{url}photos/", recursive=True)
        yield url


@pytest.fixture
def counted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Run `caption` into parts of two images; return its requests, all or those with `part` in their line."""
    log, logger = Log(), logging.getLogger("werkzeug")

    def run(*arguments: str, part: str = "") -> Requests:
        s3fs.S3FileSystem.clear_instance_cache()  # as in a new process
        log.lines.clear()
        result = invoke("caption", *arguments, *TINY, "-o", f"{bucket}captions/", "--part-size", "2")
        assert result.exit_code == 0, result.stderr
        return Counter(kind_of(line) for line in log.lines if part in line)

    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    yield run
    logger.setLevel(logging.ERROR)
    logger.removeHandler(log)


@pytest.mark.slow
def test_requests_to_a_bucket_are_those_that_the_page_states(bucket: str, counted: Counted) -> None:
    photos = f"{bucket}photos/"
    start, image, made = map(stated, ("each start of a process", "each image", "each part that is made"))
    planned = counted(photos, "--shard", NO_SHARD)
    assert planned == stated("the plan, once") + times(3, stated("each folder of images, once"))
    assert counted(photos, "--shard", "1/3") == start + made + times(2, image)
    found = stated("each part of its shard that a start finds finished")
    assert counted(photos) == start + times(2, made) + times(4, image) + found


@pytest.mark.slow
def test_an_image_in_a_list_takes_a_head_besides(bucket: str, counted: Counted, tmp_path: Path) -> None:
    images = tmp_path / "images.txt"
    images.write_text("".join(f"{bucket}photos/a/{number:03}.png\n" for number in (0, 1)), encoding="utf-8")
    assert counted("--files-from", str(images), part="/photos/a/") == {"GET": 2, "HEAD": 2}
