"""Cost of `caption` with a server on this machine: `python benchmarks/servers.py --out FILE`.

Covered: CPU time of the client for each image, from two runs of different length, so that imports do not count; the
time of a run while the server fails at a fifth of the images, beside undisturbed ones, in turns; and images/s of a
server that answers at once, with and without a link of a given speed before it. The server is a program of its own on
this machine that computes nothing; it takes as long to read a request as the link would.
Not covered: real networks, and real models. The shorter an answer takes, the more the pauses weigh that the server asks
for.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.measured_on import measured_on
from blip2cap.tiny.scenes import draw

SIZE = (1024, 768)
NUM_DRAWN = 20
SHARE = 0.2
RETRY_AFTER_S = 1
LINK_BYTES_PER_S = 100e6 / 8
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "a picture"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 20},
}
GOOD = json.dumps(ANSWER).encode()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--delay-s", type=float, default=0.5, help="time of the server for an answer")
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--faults", action="store_true", help="be one that fails at a fifth of the images")
    parser.add_argument("--bytes-per-s", type=float, help="be one behind a link of this speed")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.delay_s, faults=arguments.faults, bytes_per_s=arguments.bytes_per_s))
        return
    measured = measure(arguments.images, arguments.rounds, arguments.delay_s)
    result = {"command": shlex.join(["python", *sys.argv]), **measured_on(httpx2), **measured}
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


async def serve(delay_s: float, *, faults: bool, bytes_per_s: float | None) -> None:
    """Answer every request after a time, until standard input ends; with `faults`, fail first at a fifth of them."""
    seen: set[bytes] = set()
    idle_at = 0.0

    async def cross_link(num_bytes: int) -> None:
        """Wait until the link has let these bytes through, after all before them."""
        nonlocal idle_at
        if bytes_per_s is not None:
            idle_at = max(idle_at, time.monotonic()) + num_bytes / bytes_per_s
            await asyncio.sleep(idle_at - time.monotonic())

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length.split(b":")[1]))
                await cross_link(len(head) + len(body))
                await asyncio.sleep(delay_s)
                status, answer, cut = fault(body, seen) if faults else ("200 OK", GOOD, False)
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n\r\n".encode())
                writer.write(answer[: len(answer) // 2] if cut else answer)
                await writer.drain()
                if cut:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def fault(body: bytes, seen: set[bytes]) -> tuple[str, bytes, bool]:
    """Return status, body, and whether to cut it: a fifth of the images fail at the first attempt.

    Twice in a run of thousands the server asks all to wait.
    """
    digest = hashlib.sha256(body).digest()
    if digest in seen:
        return "200 OK", GOOD, False
    seen.add(digest)
    if len(seen) in (500, 1500):
        return f"429 Too Many Requests\r\nRetry-After: {RETRY_AFTER_S}", b"{}", False
    if len(seen) == 1 or digest[0] >= SHARE * 256:  # not at the first: it tries the server
        return "200 OK", GOOD, False
    kind = digest[1] % 4
    if kind == 0:
        return "200 OK", GOOD, True
    if kind == 1:
        return "200 OK", b'{"choices": [', False
    return ("500 Internal Server Error", "502 Bad Gateway")[kind - 2], b'{"error": {"message": "x"}}', False


def make_images(folder: Path, count: int) -> int:
    """Write JPEG files that differ in a comment; return the mean size in bytes."""
    drawn = []
    for seed in range(NUM_DRAWN):
        file = io.BytesIO()
        draw(seed, SIZE).image.save(file, "JPEG", quality=90)
        drawn.append(file.getvalue())
    folder.mkdir()
    total = 0
    for number in range(count):
        data = drawn[number % NUM_DRAWN]
        data = data[:2] + b"\xff\xfe\x00\x0a%08d" % number + data[2:]
        (folder / f"{number:06}.jpg").write_bytes(data)
        total += len(data)
    return total // count


def run(folder: Path, out: Path, url: str, num_images: int) -> tuple[float, float]:
    """Caption images; return the seconds that the run reports, and the CPU seconds of its process."""
    command = [sys.executable, "-m", "blip2cap", "caption", str(folder), "-o", str(out), "--limit", str(num_images)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "-m", "openai:fake", "--base-url", url, "--quiet", "--json"], capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = json.loads(done.stdout)
    assert facts["rows_ok"] == num_images, facts
    rows = [json.loads(line)["file_name"] for line in out.read_text().splitlines()]
    assert rows == sorted(set(rows)), "a row is missing, twice, or in the wrong place"
    assert len(rows) == num_images
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return facts["seconds"], cpu_s


@contextmanager
def served(*options: str) -> Iterator[str]:
    """Start a server with these options; yield its URL."""
    command = [sys.executable, __file__, "--serve", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        server.stdin.close()


def measure(num_images: int, num_rounds: int, delay_s: float) -> dict[str, Any]:
    """Run in turns against a server that works and one that fails, then against fast ones."""
    seconds: dict[str, list[float]] = {"undisturbed": [], "with_faults": []}
    fast: dict[str, list[float]] = {"at_once": [], "through_link": []}
    cpu_ms: dict[str, list[float]] = {kind: [] for kind in (*seconds, *fast)}
    few = num_images // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        file_bytes = make_images(folder, num_images)
        for number in range(num_rounds):
            for kind in seconds:
                command = ["--delay-s", str(delay_s), *(["--faults"] if kind == "with_faults" else [])]
                out = Path(name) / f"{kind}-{number}"
                with served(*command) as url:
                    _, cpu_few = run(folder, out.with_suffix(".few.jsonl"), url, few)
                with served(*command) as url:
                    run_s, cpu_all = run(folder, out.with_suffix(".jsonl"), url, num_images)
                seconds[kind].append(run_s)
                cpu_ms[kind].append(1000 * (cpu_all - cpu_few) / (num_images - few))
            for kind, seconds_fast in fast.items():
                link = ["--bytes-per-s", str(LINK_BYTES_PER_S)] if kind == "through_link" else []
                out = Path(name) / f"{kind}-{number}"
                with served("--delay-s", "0", *link) as url:
                    _, cpu_few = run(folder, out.with_suffix(".few.jsonl"), url, few)
                    run_s, cpu_all = run(folder, out.with_suffix(".jsonl"), url, num_images)
                seconds_fast.append(run_s)
                cpu_ms[kind].append(1000 * (cpu_all - cpu_few) / (num_images - few))
    rates = {kind: num_images / statistics.median(values) for kind, values in fast.items()}
    median_s = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "num_images": num_images,
        "file_bytes": file_bytes,
        "delay_s": delay_s,
        "concurrency": 32,
        "share_of_faults": SHARE,
        "client_cpu_ms": {kind: round(statistics.median(values), 3) for kind, values in cpu_ms.items()},
        "client_cpu_ms_by_round": {kind: [round(value, 3) for value in values] for kind, values in cpu_ms.items()},
        "seconds": {kind: round(value, 2) for kind, value in median_s.items()},
        "seconds_by_round": {kind: [round(value, 2) for value in values] for kind, values in seconds.items()},
        "images_per_s": {kind: round(num_images / value, 1) for kind, value in median_s.items()},
        "time_with_faults": round(median_s["with_faults"] / median_s["undisturbed"], 2),
        "link_mbit_per_s": LINK_BYTES_PER_S * 8 / 1e6,
        "images_per_s_fast": {kind: round(rate, 1) for kind, rate in rates.items()},
        # Images in base64 alone: headers and prompts come on top.
        "share_of_link": round(rates["through_link"] * file_bytes * 4 / 3 / LINK_BYTES_PER_S, 3),
    }


if __name__ == "__main__":
    main()
