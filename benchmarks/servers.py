"""Cost of `caption` with a server on this machine: `python benchmarks/servers.py --out FILE`.

Covered: CPU time of the client for each image, from two runs of different length, so that imports do not count; and the
time of a run while the server fails at a fifth of the images, beside undisturbed ones, in turns. The server is a
program of its own on this machine that answers after a given time and computes nothing.
Not covered: networks, and real models. The shorter an answer takes, the more the pauses weigh that the server asks for.
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
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.measured_on import measured_on
from blip2cap.tiny.scenes import draw

SIZE = (1024, 768)
NUM_DRAWN = 20
SHARE = 0.2
RETRY_AFTER_S = 1
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
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.delay_s, faults=arguments.faults))
        return
    measured = measure(arguments.images, arguments.rounds, arguments.delay_s)
    result = {"command": shlex.join(["python", *sys.argv]), **measured_on(httpx2), **measured}
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


async def serve(delay_s: float, *, faults: bool) -> None:
    """Answer every request after a time, until standard input ends; with `faults`, fail first at a fifth of them."""
    seen: set[bytes] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length.split(b":")[1]))
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


def measure(num_images: int, num_rounds: int, delay_s: float) -> dict[str, Any]:
    """Run in turns against a server that works and one that fails."""
    seconds: dict[str, list[float]] = {"undisturbed": [], "with_faults": []}
    cpu_ms: dict[str, list[float]] = {"undisturbed": [], "with_faults": []}
    few = num_images // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        file_bytes = make_images(folder, num_images)
        for number in range(num_rounds):
            for kind in seconds:
                command = [sys.executable, __file__, "--serve", "--delay-s", str(delay_s)]
                command += ["--faults"] if kind == "with_faults" else []
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
                    assert server.stdin is not None
                    assert server.stdout is not None
                    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
                    out = Path(name) / f"{kind}-{number}"
                    _, cpu_few = run(folder, out.with_suffix(".few.jsonl"), url, few)
                    server.stdin.close()
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
                    assert server.stdin is not None
                    assert server.stdout is not None
                    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
                    run_s, cpu_all = run(folder, out.with_suffix(".jsonl"), url, num_images)
                    server.stdin.close()
                seconds[kind].append(run_s)
                cpu_ms[kind].append(1000 * (cpu_all - cpu_few) / (num_images - few))
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
    }


if __name__ == "__main__":
    main()
