from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blip2cap import __version__
from blip2cap.bench.machine import decoding_rate, describe, matrix_rate, memory_rate, synchroniser
from blip2cap.decode.inputs import SquareInput
from blip2cap.options import DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.inputs import Source
from blip2cap.workers.devices import num_cores

CPU = torch.device("cpu")


def test_the_machine_is_described() -> None:
    described = describe(CPU)
    assert described.cpu
    assert described.num_cores == num_cores() >= 1
    assert described.memory_gb > 0
    assert (described.gpu, described.gpu_memory_gb, described.num_gpus) == ("", 0.0, 0)
    assert described.versions["blip2cap"] == __version__
    assert described.versions["torch"] == torch.__version__
    assert all(described.versions.values())


def test_the_gpus_that_were_not_measured_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="a card", total_memory=8_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    described = describe(torch.device("cuda:0"))
    assert (described.gpu, described.gpu_memory_gb, described.num_gpus) == ("a card", 8.0, 4)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@x", *arguments], check=True, capture_output=True
    )


def test_the_commit_is_that_of_a_repository_of_its_own(tmp_path: Path) -> None:
    package = tmp_path.resolve() / "project" / "blip2cap"
    package.mkdir(parents=True)
    (package / "a.py").touch()
    assert describe(CPU, package).commit == ""
    git(package.parent, "init")
    git(package.parent, "add", "blip2cap")
    git(package.parent, "commit", "-m", "x")
    (tmp_path / "project" / "b.py").touch()
    commit = describe(CPU, package).commit
    assert len(commit) == 12
    (package / "a.py").write_text("changed")
    assert describe(CPU, package).commit == f"{commit}+"
    installed = package / "site-packages" / "blip2cap"
    installed.mkdir(parents=True)
    assert describe(CPU, installed).commit == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_measured(dtype: torch.dtype) -> None:
    small: Any = {"shapes": [(64, 128)], "rows": 8, "budget_s": 0}
    assert matrix_rate(CPU, dtype, **small) > 0
    assert matrix_rate(CPU, dtype, "int8-dynamic", **small) > 0
    assert memory_rate(CPU, num_bytes=1 << 16, budget_s=0) > 0


def test_good_images_are_decoded_and_bad_ones_passed_over(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    refs = [
        ImageRef(path=str(tmp_path / "bad.png"), name="bad.png"),
        ImageRef(path=str(tmp_path / "gone.png"), name="gone.png"),
        *Source(SourceOptions(inputs=(str(scenes),))),
    ]
    decoding, good = decoding_rate(refs, SquareInput(16), DecodeOptions())
    assert good == refs[2:]
    assert decoding.num_images == 5
    assert decoding.read_s > 0
    assert decoding.decode_s > 0
    decoding, good = decoding_rate(refs, SquareInput(16), DecodeOptions(), budget_s=0)
    assert good == refs[2:3]
    decoding, good = decoding_rate(refs[:2], SquareInput(16), DecodeOptions())
    assert (decoding.num_images, good) == (0, [])


def test_on_a_cpu_there_is_nothing_to_wait_for() -> None:
    synchroniser(CPU)()
