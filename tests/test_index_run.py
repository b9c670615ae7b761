"""An index is made by a real run with the model inside the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from blip2cap.errors import ImageError
from blip2cap.index.index import Index
from blip2cap.index.update import update_index
from blip2cap.jobs.job import Listener
from blip2cap.models.base import Model
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import load
from blip2cap.options import BatchOptions, ModelOptions
from blip2cap.records import ImageRef
from tests.indexes import index_job

TINY = ModelOptions(name="tiny-itm")


@pytest.fixture(scope="module")
def model() -> Model:
    return load(find(TINY), TINY)


class Failures(Listener):
    """Collects the names of images that fail."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def failure(self, ref: ImageRef, error: ImageError) -> None:
        self.names.append(ref.name)


def test_an_index_is_made_and_only_what_changes_is_embedded_again(tmp_path, scenes, model):
    images, folder = Path(shutil.copytree(scenes, tmp_path / "images")), tmp_path / "index"
    (images / "broken.jpg").write_bytes(b"no image")
    job, failures = index_job(folder, images, model=TINY), Failures()
    summary = update_index(job, model=model, listener=failures)
    assert (summary.num_images, summary.failed, failures.names) == (5, {"not_an_image": 1}, ["broken.jpg"])
    assert summary.stats is not None
    names = Index.open(folder).names
    rows = pq.read_table(folder / "segment-000001" / "embeddings.parquet")
    assert {*names, "broken.jpg"} == {*rows["file_name"].to_pylist()}

    for path in images.rglob("*"):
        os.utime(path, ns=(1, 1))  # new times: all are hashed
    assert update_index(job, model=model).stats is None
    shutil.copy(images / names[0], images / names[1])
    (images / "broken.jpg").unlink()
    summary = update_index(job, model=model)
    assert (summary.num_changed, summary.num_removed, summary.num_unchanged) == (1, 1, 4)
    index = Index.open(folder)
    assert (index.vectors_of(names[0]) == index.vectors_of(names[1])).all()
    (group,) = index.duplicates(1.0)
    assert {hit.file_name for hit in group} == {*names[:2]}


_KILLED = """
import os, sys
from pathlib import Path
from blip2cap.index.update import update_index
from blip2cap.jobs.job import Listener
from blip2cap.options import BatchOptions, ModelOptions
from tests.indexes import index_job

class Killed(Listener):
    def progress(self, stats):
        if stats.num_images >= int(sys.argv[3]):
            os._exit(9)

if __name__ == "__main__":
    options = {"model": ModelOptions(name="tiny-itm"), "batch": BatchOptions(batch_size=1)}
    update_index(index_job(Path(sys.argv[1]), Path(sys.argv[2]), **options), listener=Killed())
"""


def killed(folder: Path, images: Path, num_images: int) -> None:
    """Update an index in a process that ends after some images."""
    root = Path(__file__).parent.parent
    arguments: Sequence[str] = (str(folder), str(images), str(num_images))
    done = subprocess.run([sys.executable, "-c", _KILLED, *arguments], cwd=root, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_update_whose_process_ends_keeps_its_images_and_the_next_embeds_the_others(tmp_path, scenes, model):
    folder = tmp_path / "index"
    killed(folder, scenes, 2)
    assert not (folder / "index.json").exists()
    job = index_job(folder, scenes, model=TINY, batch=BatchOptions(batch_size=1))
    summary = update_index(job, model=model)
    assert (summary.num_images, summary.num_unchanged) == (5, 2)
    assert summary.stats is not None
    assert summary.stats.num_images == 3
    undisturbed = tmp_path / "undisturbed"
    update_index(index_job(undisturbed, scenes, model=TINY, batch=BatchOptions(batch_size=1)), model=model)
    index, other = Index.open(folder), Index.open(undisturbed)
    for name in other.names:
        assert (index.vectors_of(name) == other.vectors_of(name)).all()
