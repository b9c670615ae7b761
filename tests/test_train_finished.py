"""A finished checkpoint replaces the one before it, whole, beside other files of the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip2cap.errors import ModelError, OutputError
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.outputs.files import OsFiles
from blip2cap.train.checkpoints import Checkpoints
from blip2cap.train.model.finished import save_checkpoint
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.model import TuneOptions
from blip2cap.train.trainer import WEIGHTS, save_trainable
from tests.training import read_base


class KilledError(Exception):
    """Stands for a kill."""


class KilledFiles(OsFiles):
    """Files of a process that is killed at the n-th renaming."""

    def __init__(self, num_renames: int) -> None:
        self.num_left = num_renames

    def replace(self, source: Path, target: Path) -> None:
        """Rename, or be killed before."""
        if self.num_left == 0:
            raise KilledError
        self.num_left -= 1
        super().replace(source, target)


class FullFiles(OsFiles):
    """Files on a full disk."""

    def fsync(self, file: int) -> None:
        """Fail."""
        raise OSError(28, "No space left on device")


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["opt", "instructblip-t5", "matching"])
def test_a_checkpoint_has_the_files_of_the_hub_and_leaves_others_alone(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    base = read_base(checkpoints(kind), "stage1" if kind == "matching" else "caption")
    (tmp_path / "recipe.toml").touch()
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    for _ in range(2):  # the second replaces the first
        save_checkpoint(base, tmp_path, state=base.model.state_dict())
        assert files_of(tmp_path) == files_of(checkpoints(kind)) | {"recipe.toml"}
    assert (tmp_path / "processor_config.json").read_text() == (checkpoints(kind) / "processor_config.json").read_text()


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_have_the_permissions_that_the_umask_leaves(
    checkpoints: Callable[[str], Path], tmp_path: Path, umask: int, expected: int
) -> None:
    base = read_base(checkpoints("opt"))
    before = os.umask(umask)
    try:
        save_checkpoint(base, tmp_path / "RUN", state=base.model.state_dict())
        with Checkpoints(tmp_path / "RUN/checkpoints").writing(1, writer=True, wait=lambda: None) as folder:
            save_trainable(Trainee(base, stage="caption", tune=TuneOptions(), seed=0), folder / WEIGHTS)
    finally:
        os.umask(before)
    paths = [path for path in (tmp_path / "RUN").rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} == {".json", ".safetensors"}
    assert {path.stat().st_mode & 0o777 for path in paths} == {expected}


def test_a_kill_leaves_the_old_checkpoint_or_none_or_the_new_one(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    base = read_base(checkpoints("opt"))
    save_checkpoint(base, tmp_path, state=base.model.state_dict())
    new = {name: value + 1 for name, value in base.model.state_dict().items()}
    new["language_model.lm_head.weight"] = new["language_model.model.decoder.embed_tokens.weight"]  # tied
    for num_renames in range(8):
        try:
            save_checkpoint(base, tmp_path, state=dict(new), files=KilledFiles(num_renames))
        except KilledError:
            with pytest.raises(ModelError, match=r"has no config\.json"):
                find(ModelOptions(name=str(tmp_path)))
        else:
            break
    assert num_renames > 3
    again = read_base(tmp_path)
    assert torch.equal(again.model.query_tokens, new["query_tokens"])
    assert not [name for name in files_of(tmp_path) if ".tmp" in name]


def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    base = read_base(checkpoints("opt"))
    save_checkpoint(base, tmp_path, state=base.model.state_dict())
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        save_checkpoint(base, tmp_path, state=base.model.state_dict(), files=FullFiles())
    assert torch.equal(read_base(tmp_path).model.query_tokens, base.model.query_tokens)
