"""Real command lines in separate processes that start in milliseconds: children of one that has imported everything.

A child is a process like any other: it has a terminal or pipes, gets signals and ends with an exit code. It runs the
model inside the package (`Zygote.open`), or a stand-in for a model (`Zygote.start`). The parent never has a second
thread, which a fork would lose.

The imports take seconds, so that the processes of one test run share them: each has a zygote of its own, forked from a
common parent.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any

from PIL import Image
from typer.testing import CliRunner

from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.checkpoint import TINY
from blip2cap.records import Generated
from tests.fakes import FakeModel, FakeSession
from tests.loading import read_packaged_once

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY
_MOST_BYTES = 1 << 17
"""Length of the longest question: arguments and the environment."""
_ADDRESS = "TESTS_ZYGOTE"
"""Variable with the name of the abstract Unix socket at which the parent of all zygotes listens."""


@dataclass(frozen=True, kw_only=True)
class Stub:
    """Behaviour of the stand-in for the model."""

    log: str = ""
    """A file that gets one line for each image that is encoded."""
    load_s: float = 0.0
    """Time that loading takes."""
    gate: str = ""
    """A file that loading waits for."""
    encode_s: float = 0.0
    """Time that encoding a batch takes."""
    slow_after: int = 0
    """Number of batches that take no time, before those that do."""
    step_s: float = 0.0
    """Time that a step of all texts takes."""
    most_steps: int = 1
    """Greatest number of steps of a text; its own number depends on its name."""
    max_images: int | None = None
    """Largest batch that fits into memory."""
    white_never_fits: bool = False
    """True: an image that is all white never fits into memory."""


class SlowSession(FakeSession):
    """Texts whose steps take time."""

    model: LoadedStub

    def advance(self) -> list[tuple[int, list[Generated] | ImageError]]:
        """Take a step."""
        time.sleep(self.model.stub.step_s)
        return super().advance()


class LoadedStub(FakeModel):
    """A fake that a whole command can load."""

    dtype = "torch.float32"
    device = SimpleNamespace(type="cpu")

    def __init__(self, stub: Stub) -> None:
        super().__init__(
            max_images=stub.max_images,
            never_fits=lambda pixels: stub.white_never_fits and bool(pixels.min() == 255),
            num_steps=lambda prompt: 1 + sum(prompt.name.encode()) % stub.most_steps,
        )
        self.stub = stub
        time.sleep(stub.load_s)
        while stub.gate and not os.path.exists(stub.gate):
            time.sleep(0.001)

    def encode(self, images: Sequence[Pixels]) -> list[str]:
        """Record the images, and take the time of a batch."""
        features = super().encode(images)
        if self.stub.log:
            file = os.open(self.stub.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, "".join(f"{feature}\n" for feature in features).encode())
            os.close(file)
        time.sleep(self.stub.encode_s if len(self.encode_sizes) > self.stub.slow_after else 0)
        return features

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
        """Open a session."""
        return SlowSession(self, options, capacity or 16)

    def check(self, options: object, prompts: object = ()) -> None:
        """Every option fits."""


def put_in_place_of_the_model(stub: Stub) -> ModuleType:
    """Make a module that stands in for `blip2cap.models.blip2.load`."""
    ready = ModuleType("blip2cap.models.blip2.load")
    ready.__dict__["load"] = lambda checkpoint, options: LoadedStub(stub)
    return ready


class Command:
    """A command in a separate process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self, zygote: Zygote, process: int, stdin: IO[bytes] | None, stdout: IO[bytes] | None, stderr: IO[bytes] | None
    ) -> None:
        self.zygote, self.pid = zygote, process
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, less than 0 if a signal has ended the process; None while it runs."""
        if self.returncode is None and self.zygote.has_ended(self.pid):
            self.returncode = self.zygote.wait(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends; raise TimeoutError after `timeout` seconds."""
        if self.returncode is None:
            watched = os.pidfd_open(self.pid)
            try:
                if not select.select([watched], [], [], timeout)[0]:
                    raise TimeoutError(f"still runs after {timeout} s")
            finally:
                os.close(watched)
            self.returncode = self.zygote.wait(self.pid)
        return self.returncode

    def communicate(self) -> tuple[bytes, bytes]:
        """Close its input, read all that it prints and wait; a stream without a pipe gives nothing."""
        if self.stdin is not None:
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            stdout, stderr = pool.map(lambda pipe: pipe.read() if pipe else b"", (self.stdout, self.stderr))
        self.wait()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Zygote:
    """A process that starts commands, as children of its own."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(address)

    def close(self) -> None:
        """End the process."""
        self._socket.close()

    def _ask(self, question: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
        answer = self._socket.recv(_MOST_BYTES)
        assert answer, "the zygote has ended: what it said is above"
        return int(answer)

    def open(
        self,
        *args: str | Path,
        cwd: Path,
        program: str = "blip2cap.__main__",
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.PIPE,
        process_group: int | None = None,
    ) -> Command:
        """Start `python -m PROGRAM ARGS`; streams are as for `subprocess.Popen`, except that None is a closed one."""
        streams = (stdin, stdout, stderr)
        ours, theirs = zip(*(_stream(which, target) for target, which in enumerate(streams)), strict=True)
        question = {
            "args": [os.fsencode(arg).hex() for arg in args],
            "cwd": str(cwd),
            "program": program,
            "env": dict(os.environ if env is None else env),
            "open": [descriptor is not None for descriptor in theirs],
            "group": process_group,
        }
        opened = [descriptor for descriptor in theirs if descriptor is not None]
        process = self._ask(question, opened)
        for descriptor, which in zip(theirs, streams, strict=True):
            if descriptor is not None and descriptor != which:
                os.close(descriptor)
        return Command(self, process, *ours)

    def start(
        self, *args: str | Path, cwd: Path, stub: Stub | None = None, said: str = "said", out: str | None = None
    ) -> int:
        """Start a command with a stand-in for the model; return its process id.

        What it says goes to the file `said`, stdout too unless to `out`.
        """
        streams = [os.open(os.devnull, os.O_RDONLY)]
        streams += [os.open(cwd / name, _APPEND, 0o666) for name in (out or said, said)]
        question = {
            "args": [os.fsencode(arg).hex() for arg in args],
            "cwd": str(cwd),
            "stub": vars(stub or Stub()),
            "open": [True] * 3,
        }
        try:
            return self._ask(question, streams)
        finally:
            for descriptor in streams:
                os.close(descriptor)

    def wait(self, process: int) -> int:
        """Wait until a command ends; return its exit code, less than 0 if a signal has ended it."""
        return os.waitstatus_to_exitcode(self._ask({"wait": process}))

    def has_ended(self, process: int) -> bool:
        """Return whether a command has ended; it has not been waited for."""
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    def run(
        self, *args: str | Path, cwd: Path, stub: Stub | None = None, said: str = "said", out: str | None = None
    ) -> int:
        """Run a command to its end; return its exit code."""
        return self.wait(self.start(*args, cwd=cwd, stub=stub, said=said, out=out))


@functools.cache
def the_zygote() -> Zygote:
    """Return the one process that starts commands for all tests of this process; it ends with this one."""
    if _ADDRESS not in os.environ:
        start_parent()
    zygote = Zygote("\0" + os.environ[_ADDRESS])
    atexit.register(zygote.close)
    return zygote


def start_parent() -> None:
    """Start the parent of all zygotes, which ends with this process."""
    address = f"blip2cap-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address)
        listener.listen()
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    os.environ[_ADDRESS] = address
    atexit.register(parent.wait)
    atexit.register(parent.terminate)  # what is registered last comes first


def _stream(which: int | None, target: int) -> tuple[IO[bytes] | None, int | None]:
    """Return our end of a stream, if it is a pipe, and the descriptor that the command gets."""
    if which == subprocess.PIPE:
        reader, writer = os.pipe()
        return (os.fdopen(writer, "wb"), reader) if target == 0 else (os.fdopen(reader, "rb"), writer)
    if which == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    return None, which


def be_the_parent(listener: socket.socket) -> None:
    """Fork a zygote for each process that connects, until the one that started this process has ended."""
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for zygotes
    while listener in select.select([sys.stdin, listener], [], [])[0]:
        questions, _ = listener.accept()
        if not os.fork():
            with leaving():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                serve(questions)
        questions.close()


def import_everything() -> None:
    """Import all that commands import, and read the models inside the package."""
    # A kill loses nothing that was written, only a power cut does: waiting for the disk would prove nothing here.
    vars(os).update(fsync=_no_wait, fdatasync=_no_wait)
    from blip2cap.captioner import Captioner
    from blip2cap.cli import app

    read_packaged_once()
    CliRunner().invoke(app, ["caption", str(TINY), "--model", "tiny", "--dry-run"])
    Captioner.load("tiny", dtype="float32")  # now the rest is imported
    Image.init()
    gc.collect()
    gc.freeze()
    num_threads = len(os.listdir("/proc/self/task"))
    assert num_threads == 1, f"{num_threads} threads: what they hold would be held for ever in a child"


def serve(questions: socket.socket) -> None:
    """Start commands and wait for them, as requested."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(questions, _MOST_BYTES, 3)
        if not message:
            return
        question = json.loads(message)
        if "wait" in question:
            answer = os.waitpid(question["wait"], 0)[1]
        else:
            answer = os.fork()
            if not answer:
                with leaving():
                    questions.close()
                    become(question, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        questions.send(str(answer).encode())


def _no_wait(descriptor: Any) -> None:
    """Stand in for fsync."""


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """End the child as the interpreter would, without what belongs to the parent."""
    code: Any = 1
    try:
        yield
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def become(question: dict[str, Any], descriptors: list[int]) -> None:
    """Set up a child like a new process."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if question.get("group") is not None:
        os.setpgid(0, question["group"])
    os.chdir(question["cwd"])
    for target, is_open in enumerate(question["open"]):
        if is_open:
            os.dup2(descriptors[0], target)
            os.close(descriptors.pop(0))
        else:
            os.close(target)
    # Opened again, as they decide by what they write to.
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w") if question["open"][1] else None
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace") if question["open"][2] else None
    arguments = [os.fsdecode(bytes.fromhex(argument)) for argument in question["args"]]
    sys.argv = ["blip2cap", *arguments]
    if "stub" in question:
        from blip2cap.cli import app

        sys.modules["blip2cap.models.blip2.load"] = put_in_place_of_the_model(Stub(**question["stub"]))
        app(arguments)
        return
    os.environ.clear()
    os.environ.update(question["env"])
    # Both are kept by a process once they are known.
    tempfile.tempdir = None
    random.seed()
    runpy.run_module(question["program"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    be_the_parent(socket.socket(fileno=int(sys.argv[1])))
