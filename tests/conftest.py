"""The environment of every test: one thread, no network, no settings of the person who runs it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.commands import draw_scenes
from tests.loading import build_commands_once, read_packaged_once
from tests.matching import register
from tests.zygote import Zygote, start_parent, the_zygote

# Both are read when torch and huggingface_hub are imported, which no fixture comes before.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Share the imports of the zygotes between processes that run tests."""
    if config.getoption("numprocesses", None):
        start_parent()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("BLIP2CAP_") or name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _made_once() -> None:
    build_commands_once()
    read_packaged_once()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five drawn scenes, two of them in a separate folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 3)
    draw_scenes(folder / "more", 2, first_seed=3)
    return folder


@pytest.fixture
def model(here: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The option that names a stand-in for a matching model."""
    return "--model", str(register(monkeypatch, here / "matcher"))


@pytest.fixture
def images(here: Path) -> Path:
    """A red, a green and a purple image, the last in a folder below."""
    folder = here / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (20, 10), (255, 0, 0)).save(folder / "a.png")
    Image.new("RGB", (20, 10), (0, 255, 0)).save(folder / "b.png")
    Image.new("RGB", (20, 10), (102, 0, 204)).save(folder / "sub" / "c.png")
    return folder


@pytest.fixture(scope="session")
def zygote() -> Zygote:
    """A process that starts commands in milliseconds."""
    return the_zygote()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small random checkpoint of each of `tests.checkpoints.KINDS`, saved when first asked for. Not to be changed."""

    @functools.cache
    def saved(kind: str) -> Path:
        from tests.checkpoints import make_checkpoint  # imports transformers

        return make_checkpoint(tmp_path_factory.mktemp(kind), kind)

    return saved


@pytest.fixture(scope="session")
def vlm_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same for each of `tests.vlm_checkpoints.VLM_KINDS`, in a folder named after it."""

    @functools.cache
    def saved(kind: str) -> Path:
        from tests.vlm_checkpoints import make_vlm

        return make_vlm(tmp_path_factory.mktemp("vlm") / kind, kind)

    return saved


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start servers of `tests.fault_server`, which end with the test; pauses of the client are short."""
    from blip2cap.models.server import client, throttle
    from tests.fault_server import FaultServer, good

    monkeypatch.setattr(client, "_PAUSES_S", (0.01, 0.02))
    monkeypatch.setattr(throttle, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers: list[FaultServer] = []

    def start(behaviour: Any = good, **settings: Any) -> FaultServer:
        servers.append(FaultServer(behaviour, **settings))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


@pytest.fixture
def pictures(here: Path) -> Path:
    """A folder with 12 images."""
    return draw_scenes(here / "pictures", 12)
