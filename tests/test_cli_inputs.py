"""Inputs that change, vanish or do not fit into memory during a run; no run ever changes them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from blip2cap.decode.image import Pixels
from tests.commands import invoke, names_below, read_rows
from tests.zygote import LoadedStub, Stub, Zygote

RUN = ("caption", "images", "--model", "tiny", "--threads", "1")
NUM_IMAGES = 20


@pytest.fixture
def images(here: Path) -> Path:
    """Pictures that are all different."""
    folder = here / "images"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        Image.new("RGB", (8, 8), (10 * number, 0, 7)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def at_first_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Call a function when the first batch is in the model: a few more images have been read by then."""

    def arrange(happen: Callable[[], None]) -> None:
        class Meddling(LoadedStub):
            def encode(self, images: Sequence[Pixels]) -> list[str]:
                if not self.encode_sizes:
                    happen()
                return super().encode(images)

        ready = ModuleType("blip2cap.models.blip2.load")
        ready.__dict__["load"] = lambda checkpoint, options: Meddling(Stub())
        monkeypatch.setitem(sys.modules, ready.__name__, ready)

    return arrange


def test_what_happens_to_images_during_a_run_is_in_their_rows_and_the_run_goes_on(
    here: Path, images: Path, at_first_batch: Callable[[Callable[[], None]], None]
) -> None:
    def replace(name: str) -> Path:
        (images / name).unlink()
        return images / name

    def meddle() -> None:
        replace("10.png")
        replace("11.png").mkdir()
        os.mkfifo(replace("12.png"))
        Image.new("RGB", (640, 480), "red").save(images / "13.png")
        (images / "14.png").write_bytes(b"no image any more")
        (images / "15.png").write_bytes((images / "16.png").read_bytes()[:45])
        replace("17.png").symlink_to("17.png")
        replace("18.png").symlink_to("nowhere")
        (images / "18b.png").write_bytes((images / "00.png").read_bytes())

    at_first_batch(meddle)
    result = invoke(*RUN, "--batch-size", "1")
    assert result.exit_code == 3, result.output
    rows = {row["file_name"]: row for row in read_rows(here / "captions.jsonl")}
    assert [*rows] == [f"{number:02}.png" for number in range(NUM_IMAGES)]
    assert {name: row["error"] for name, row in rows.items() if row["status"] != "ok"} == {
        "10.png": "vanished",
        "11.png": "not_regular",
        "12.png": "not_regular",
        "14.png": "not_an_image",
        "15.png": "truncated",
        "17.png": "unreadable",
        "18.png": "vanished",
    }
    assert (rows["13.png"]["width"], rows["13.png"]["height"]) == (640, 480)


def test_a_folder_that_vanishes_during_a_run_fails_its_images_only(
    here: Path, images: Path, at_first_batch: Callable[[Callable[[], None]], None]
) -> None:
    at_first_batch(lambda: os.rename(images, here / "elsewhere"))
    result = invoke(*RUN, "--batch-size", "1")
    assert result.exit_code == 3, result.output
    rows = read_rows(here / "captions.jsonl")
    assert [row["file_name"] for row in rows] == names_below(here / "elsewhere")
    assert {row["error"] for row in rows} == {"", "vanished"}


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return content, time and mode of everything below a folder."""
    return {
        str(path): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
        )
        for path in sorted([folder, *folder.rglob("*")])
    }


def test_inputs_are_never_changed(zygote: Zygote, here: Path, images: Path) -> None:
    (images / "bad.png").write_bytes(b"no image")
    (images / "link.png").symlink_to("03.png")
    (images / "05.png").chmod(0o444)
    before = state(images)
    for command in ((), ("--overwrite",), ("--dry-run",)):
        assert zygote.run(*RUN, *command, cwd=here) in (0, 3)
    assert zygote.run("vqa", "images", "-q", "what?", "-m", "tiny", cwd=here) == 3
    assert state(images) == before


@pytest.mark.parametrize("batch_size", [["--batch-size", "16"], []])
def test_without_room_batches_are_halved_and_what_never_fits_fails_alone(
    zygote: Zygote, here: Path, images: Path, batch_size: list[str]
) -> None:
    assert zygote.run(*RUN, *batch_size, "-o", "undisturbed.jsonl", cwd=here) == 0
    Image.new("RGB", (8, 8), "white").save(images / "05b.png")
    log = here / "log"
    stub = Stub(max_images=5, white_never_fits=True, log=str(log))
    assert zygote.run(*RUN, *batch_size, cwd=here, stub=stub) == 3, (here / "said").read_text()
    said = (here / "said").read_text()
    assert "05b.png: out_of_memory: not enough memory" in said
    assert f"captions.jsonl: {NUM_IMAGES} ok, 1 failed (1 out_of_memory)" in said
    rows = read_rows(here / "captions.jsonl")
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["file_name"], row["error"], row["width"]) for row in failed] == [("05b.png", "out_of_memory", 8)]
    assert [row for row in rows if row["status"] == "ok"] == read_rows(here / "undisturbed.jsonl")
    assert len(log.read_text().splitlines()) == NUM_IMAGES, "nothing that fitted is encoded twice"
