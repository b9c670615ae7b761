"""Images per second from a web server on this machine: `python benchmarks/http_images.py --out FILE`.

Covered: the shared pool of connections that runs use, beside an event loop, a session and a connection for each image;
both read the same images in the same number of threads, in turn.
Not covered: networks, where a connection costs a round trip (three with TLS) and the difference is larger.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.measured_on import measured_on
from blip2cap.decode.http import HttpClient
from blip2cap.tiny.scenes import draw

NUM_ROUNDS = 10
SIZE = (256, 192)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--images", type=int, default=2000, help="images to read in each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help="be the server")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(sys.stdout))
        return
    result = {
        "command": shlex.join(["python", *sys.argv]),
        **measured_on(aiohttp),
        **measure(arguments.images, arguments.threads),
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


async def serve(announce: Any) -> None:
    """Answer every request with the same JPEG, until standard input ends."""
    body = jpeg()

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, content_type="image/jpeg")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], file=announce, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def jpeg() -> bytes:
    """Draw one small picture."""
    file = io.BytesIO()
    draw(2_000, SIZE).image.save(file, "JPEG", quality=90)
    return file.getvalue()


def get_alone(url: str) -> bytes:
    """Read an image with an event loop, a session and a connection of its own."""

    async def get() -> bytes:
        timeout = aiohttp.ClientTimeout(total=60, sock_connect=10, sock_read=20)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session, session.get(url) as response:
            data = bytearray()
            async for block in response.content.iter_chunked(1 << 16):
                data += block
            return bytes(data)

    return asyncio.run(get())


def measure(num_images: int, num_threads: int) -> dict[str, Any]:
    """Read images both ways, in turn."""
    command = [sys.executable, __file__, "--serve"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
        closing(HttpClient()) as client,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        ways: dict[str, Callable[[int], bytes]] = {
            "connection_for_each_image": lambda number: get_alone(f"{url}{number}.jpg"),
            "shared_pool": lambda number: client.get(f"{url}{number}.jpg", 1_000_000),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
        per_round, file_bytes = num_images // NUM_ROUNDS, len(jpeg())
        with ThreadPoolExecutor(num_threads) as pool:
            for number in range(NUM_ROUNDS + 1):
                for name, get in ways.items():
                    started, cpu = time.perf_counter(), time.process_time()
                    sizes = {len(data) for data in pool.map(get, range(per_round if number else num_threads))}
                    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
                    assert sizes == {file_bytes}, sizes
                    if number:  # the first round warms up
                        rates[name].append(per_round / seconds)
                        cpu_ms[name].append(1000 * cpu_s / per_round)
        server.stdin.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "num_images": NUM_ROUNDS * per_round,
        "file_bytes": file_bytes,
        "num_threads": num_threads,
        "images_per_s": {name: round(value, 1) for name, value in medians.items()},
        "images_per_s_by_round": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "client_cpu_ms": {name: round(statistics.median(values), 3) for name, values in cpu_ms.items()},
        "speedup": round(medians["shared_pool"] / medians["connection_for_each_image"], 2),
    }


if __name__ == "__main__":
    main()
