"""Real command lines in processes of their own that start in milliseconds: children of one that has imported it all.

The children have a stand-in for the model. The parent never has a second thread, which a fork would lose.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any

from PIL import Image
from typer.testing import CliRunner

from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError
from blip2cap.models.checkpoint import TINY
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated
from tests.fakes import FakeModel, FakeSession


@dataclass(frozen=True, kw_only=True)
class Stub:
    """How the stand-in for the model behaves."""

    log: str = ""
    """A file that gets one line for each image that is encoded."""
    load_s: float = 0.0
    """What loading takes."""
    gate: str = ""
    """A file that loading waits for."""
    encode_s: float = 0.0
    """What encoding a batch takes."""
    slow_after: int = 0
    """Batches that take no time before those that do."""
    step_s: float = 0.0
    """What a step of all texts takes."""
    most_steps: int = 1
    """Texts take 1 to so many steps, each by its name."""
    max_images: int | None = None
    """A batch with more has no room."""
    white_never_fits: bool = False
    """An image that is all white has no room in any company."""


class SlowSession(FakeSession):
    """Texts whose steps take their time."""

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
        """Note what is encoded, and take its time."""
        features = super().encode(images)
        if self.stub.log:
            file = os.open(self.stub.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, "".join(f"{feature}\n" for feature in features).encode())
            os.close(file)
        time.sleep(self.stub.encode_s if len(self.encode_sizes) > self.stub.slow_after else 0)
        return features

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
        """Begin the text side of a run."""
        return SlowSession(self, options, capacity or 16)

    def check(self, options: object) -> None:
        """Every option fits."""


def put_in_place_of_the_model(stub: Stub) -> ModuleType:
    """Make a module that stands in for `blip2cap.models.blip2.load`."""
    ready = ModuleType("blip2cap.models.blip2.load")
    ready.__dict__["load"] = lambda checkpoint, options: LoadedStub(stub)
    return ready


class Zygote:
    """A process that starts commands, as children of its own."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()

    def _ask(self, question: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self, *args: str | Path, cwd: Path, stub: Stub | None = None, said: str = "said", out: str | None = None
    ) -> int:
        """Start a command; return its process id. What it says goes to the file `said`, stdout too unless to `out`."""
        arguments = [os.fsencode(arg).hex() for arg in args]
        streams = {"said": str(cwd / said), "out": str(cwd / (out or said))}
        return self._ask({"args": arguments, "cwd": str(cwd), "stub": vars(stub or Stub()), **streams})

    def wait(self, process: int) -> int:
        """Wait until a command ends; return its exit code, less than 0 if a signal has ended it."""
        return os.waitstatus_to_exitcode(self._ask({"wait": process}))

    def has_ended(self, process: int) -> bool:
        """Whether a command has ended that was not waited for yet."""
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    def run(
        self, *args: str | Path, cwd: Path, stub: Stub | None = None, said: str = "said", out: str | None = None
    ) -> int:
        """Run a command to its end; return its exit code."""
        return self.wait(self.start(*args, cwd=cwd, stub=stub, said=said, out=out))


def serve() -> None:
    """Start and wait as the lines of standard input ask."""
    # A kill loses nothing that was written, only a power cut does: waiting for the disk would prove nothing here.
    vars(os).update(fsync=_no_wait, fdatasync=_no_wait)
    importlib.import_module("blip2cap.engine.run")  # with torch
    from blip2cap.cli import app

    CliRunner().invoke(app, ["caption", str(TINY), "--model", "tiny", "--dry-run"])  # imports the rest
    Image.init()
    gc.freeze()
    num_threads = len(os.listdir("/proc/self/task"))
    assert num_threads == 1, f"{num_threads} threads: what they hold would be held for ever in a child"
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitpid(question["wait"], 0)[1]
        else:
            answer = os.fork()
            if not answer:
                with leaving():
                    become(app, question)
        print(answer, flush=True)


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
            stream.flush()
        os._exit(code)


def become(app: Any, question: dict[str, Any]) -> None:
    """Do in a child what a new process would do."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(question["cwd"])
    for target, name in enumerate((os.devnull, question["out"], question["said"])):
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND if target else os.O_RDONLY
        os.dup2(os.open(name, how | os.O_NOCTTY), target)
    # Anew, as they decide by what they write to.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    arguments = [os.fsdecode(bytes.fromhex(argument)) for argument in question["args"]]
    sys.modules["blip2cap.models.blip2.load"] = put_in_place_of_the_model(Stub(**question["stub"]))
    sys.argv = ["blip2cap", *arguments]
    app(arguments)


if __name__ == "__main__":
    serve()
