"""A folder with a model appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip2cap.errors import OutputError, OutputGoneError, OutputLockedError, OutputRefusedError
from blip2cap.lavis.folder import write_folder
from tests.files import Killed, Killing
from tests.full_disk import files_of_at_most
from tests.lavis import read_network

TENSORS = {name: torch.full((100,), float(number)) for number, name in enumerate("abcde")}
SETTINGS = {"config.json": b"{}", "qformer_tokenizer/tokenizer.json": b"{}"}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_in_the_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", TENSORS, SETTINGS)
    assert [*tmp_path.iterdir()] == [tmp_path / "out"]
    assert content(tmp_path / "out").keys() == {*SETTINGS, "model.safetensors"}
    modes = {(tmp_path / "out" / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1  # those of the umask; safetensors would make files that only their owner can read


def test_large_weights_are_in_several_files_that_transformers_reads(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    network = read_network(checkpoints("instructblip-llama"))
    settings = {"config.json": (checkpoints("instructblip-llama") / "config.json").read_bytes()}
    write_folder(tmp_path / "out", network.state_dict(), settings, max_shard_bytes=100_000)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 3
    assert max((tmp_path / "out" / name).stat().st_size for name in names) < 120_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted({*index["weight_map"].values()}) == names
    again = read_network(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("when", ["before", "after", "within"])
def test_a_process_that_is_killed_leaves_the_whole_folder_or_none(when: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "whole", TENSORS, SETTINGS, max_shard_bytes=1000)
    whole, at, num_killed = content(tmp_path / "whole"), 0, 0
    while True:
        out = tmp_path / str(at)
        files = Killing(at, when)
        try:
            write_folder(out, TENSORS, SETTINGS, files=files, max_shard_bytes=1000)
        except Killed:
            num_killed += 1
            if out.exists():
                assert content(out) == whole
        else:
            assert content(out) == whole
            if at >= len(files.names):
                break
        at += 1
    assert num_killed > (5 if when == "within" else 40)


def test_what_a_killed_process_has_left_is_used_up(tmp_path: Path) -> None:
    left = tmp_path / ".out.importing"
    (left / "qformer_tokenizer").mkdir(parents=True)
    (left / "model-00001-of-00009.safetensors").write_bytes(b"half")
    write_folder(tmp_path / "out", TENSORS, SETTINGS)
    assert content(tmp_path / "out").keys() == {*SETTINGS, "model.safetensors"}
    assert not left.exists()


def test_a_folder_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ".out.importing"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{")
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(OutputLockedError, match="another process is writing it"):
        write_folder(tmp_path / "out", TENSORS, SETTINGS)
    os.close(lock)
    assert (folder / "config.json").read_bytes() == b"{"


def test_existing_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name, message in (("file", "not a folder"), ("folder", "a folder with files"), ("link", "not a folder")):
        with pytest.raises(OutputRefusedError, match=message):
            write_folder(tmp_path / name, TENSORS, SETTINGS)
    with pytest.raises(OutputGoneError, match="parent folder does not exist"):
        write_folder(tmp_path / "none" / "out", TENSORS, SETTINGS)
    write_folder(tmp_path / "empty", TENSORS, SETTINGS)
    assert (tmp_path / "empty" / "config.json").exists()


@pytest.mark.parametrize("largest", [1, 1000])
def test_a_full_disk_is_an_output_error_and_leaves_nothing(largest: int, tmp_path: Path) -> None:
    with files_of_at_most(largest), pytest.raises(OutputError, match=r"out: cannot be written: .*File too large"):
        write_folder(tmp_path / "out", TENSORS, SETTINGS)
    assert [*tmp_path.iterdir()] == []
