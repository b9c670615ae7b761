"""How many workers there are, and where."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint
from blip2cap.options import ModelOptions
from blip2cap.workers import devices
from blip2cap.workers.devices import choose_devices
from blip2cap.workers.options import WorkerOptions


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    return Checkpoint(name="small", folder=tmp_path, commit="", family="opt", config={})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four cores, no GPU, memory for ten processes."""
    monkeypatch.setattr(devices, "count_gpus", lambda: 0)
    monkeypatch.setattr(devices, "num_cores", lambda: 4)
    memory = type("Memory", (), {"available": 20 * (devices._PROCESS_BYTES + 4000)})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    return monkeypatch


def chosen(checkpoint: Checkpoint, *, large: bool = True, workers: str = "auto", gpus: str | None = None, **model: Any):
    options = WorkerOptions(workers=workers, devices=gpus)
    return choose_devices(options, ModelOptions(name="small", **model), checkpoint, lambda: large)


def test_auto_on_a_cpu_is_a_process_for_each_core_if_the_model_is_small(machine, checkpoint) -> None:
    assert chosen(checkpoint) == ("cpu",) * 4
    assert chosen(checkpoint, large=False) == ("cpu",)
    machine.setattr(devices, "_SMALL_MODEL", 1000)
    assert chosen(checkpoint) == ("cpu",)


def test_auto_takes_no_more_processes_than_fit_into_half_of_the_memory(machine, checkpoint) -> None:
    machine.setattr(devices, "_PROCESS_BYTES", 5 * devices._PROCESS_BYTES)
    assert chosen(checkpoint) == ("cpu",) * 2


def test_weights_of_unknown_size_are_loaded_once(machine, checkpoint, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert chosen(replace(checkpoint, folder=tmp_path / "empty")) == ("cpu",)


def test_a_number_is_taken_as_it_is(machine, checkpoint) -> None:
    assert chosen(checkpoint, workers="3", large=False) == ("cpu",) * 3
    assert chosen(checkpoint, workers="1") == ("auto",)


def test_every_gpu_is_used_or_those_that_were_named(machine, checkpoint) -> None:
    machine.setattr(devices, "count_gpus", lambda: 4)
    assert chosen(checkpoint, large=False) == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert chosen(checkpoint, workers="2") == ("cuda:0", "cuda:1")
    assert chosen(checkpoint, workers="1") == ("auto",)
    assert chosen(checkpoint, gpus="2,0") == ("cuda:2", "cuda:0")
    assert chosen(checkpoint, device="cuda:3") == ("cuda:3",)
    assert chosen(checkpoint, device_map="auto") == ("auto",)
    assert chosen(checkpoint, device="cpu") == ("cpu",) * 4


def test_one_gpu_needs_no_worker(machine, checkpoint) -> None:
    machine.setattr(devices, "count_gpus", lambda: 1)
    assert chosen(checkpoint) == ("auto",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": "5"}, "--workers 5: torch can use 4 GPUs here, one process each. Use fewer."),
        ({"workers": "2", "device": "cuda:1"}, "--workers 2 and --device cuda:1 exclude each other"),
        ({"workers": "2", "device_map": "auto"}, "--workers 2 and --device-map auto exclude each other"),
        ({"gpus": "0,1", "device_map": "auto"}, "--devices 0,1 and --device-map auto exclude each other"),
        ({"gpus": "0,1", "device": "cpu"}, "--devices 0,1 and --device cpu exclude each other"),
        ({"gpus": "0,4"}, "--devices 0,4: torch can use 4 GPUs here, numbered from 0. Give others."),
        ({"gpus": "0,1", "workers": "3"}, "--devices 0,1 and --workers 3 exclude each other"),
        ({"gpus": "0,0"}, "--devices 0,0: must be different numbers of GPUs, like 0,2."),
        ({"gpus": "cuda"}, "--devices cuda: must be different numbers of GPUs, like 0,2."),
        ({"workers": "0"}, "--workers 0: must be auto, or a number from 1."),
        ({"workers": "many"}, "--workers many: must be auto, or a number from 1."),
    ],
)
def test_what_cannot_be_is_refused(machine, checkpoint, options, message) -> None:
    machine.setattr(devices, "count_gpus", lambda: 4)
    with pytest.raises(UsageError) as refused:
        chosen(checkpoint, **options)
    assert message in refused.value.message


def test_without_a_driver_no_torch_is_asked(monkeypatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert devices.count_gpus() == 0
