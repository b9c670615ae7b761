"""A bucket on this machine for tests: S3 as moto speaks it, over a real socket, with no network."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[str]:
    """Serve an empty bucket while the block runs, to this process and to those that it starts; yield its URL."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its thread outlives what pytest captures
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(cache),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # they keep the address of the server before
    bucket = f"bucket-{next(_NUMBERS)}"  # moto remembers the buckets of earlier servers
    s3fs.S3FileSystem().mkdir(bucket)
    try:
        yield f"s3://{bucket}/"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
