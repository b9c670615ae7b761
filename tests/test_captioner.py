"""The Python interface."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import blip2cap
from blip2cap import Captioner
from blip2cap.errors import ImageError, InputError, ModelError, UsageError
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.models.blip2.model import Blip2
from blip2cap.options import DecodeOptions
from blip2cap.rows import Row
from blip2cap.tiny.scenes import draw


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.load("tiny", device="cpu", dtype="float32", batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(5):
        draw(seed, (160, 120)).image.save(folder / f"{seed}.png")
    (folder / "3.png").write_bytes(b"no picture")
    return folder


def test_captions_come_in_order_for_pictures_and_paths_alike(captioner: Captioner, folder: Path) -> None:
    paths = [folder / f"{seed}.png" for seed in (0, 1, 2, 4)]
    from_paths = captioner.caption(paths)
    assert len(from_paths) == 4
    assert all(from_paths)
    assert from_paths == captioner.caption([Image.open(path) for path in paths])
    assert from_paths == [captioner.caption([str(path)])[0] for path in paths]


def test_answers_are_shorter_than_captions(captioner: Captioner, folder: Path) -> None:
    answers = captioner.ask([folder / "0.png", folder / "1.png"], "is it day or night?")
    assert set(answers) <= {"day", "night"}


def test_a_prompt_and_options_change_the_caption(captioner: Captioner, folder: Path) -> None:
    (text,) = captioner.caption([folder / "0.png"], prompt="a photo of", options=GenerateOptions(max_new_tokens=2))
    assert text
    assert not text.startswith("a photo of")


def test_rules_for_texts_are_those_of_the_command_line(captioner: Captioner, folder: Path) -> None:
    paths, rules = [folder / f"{seed}.png" for seed in (0, 1, 2, 4)], TextOptions(strip=("two", "a"), loop_guard=True)
    plain, ruled = captioner.caption(paths), captioner.caption(paths, text_options=rules)
    assert [text.removeprefix("a ").removeprefix("two ") for text in plain] == ruled != plain
    rows = list(captioner.caption_folder(folder, text_options=rules))
    assert [row.text for row in rows if row.status == "ok"] == ruled
    assert {row.flag for row in rows} == {""}
    question = "Answer:"  # `tiny` says nothing more about some scenes
    assert "" in captioner.ask(paths, question)
    assert "" not in captioner.ask(paths, question, text_options=rules)


def test_a_folder_yields_typed_rows_bad_images_too(captioner: Captioner, folder: Path) -> None:
    seen: list[int] = []
    rows = captioner.caption_folder(folder, on_progress=lambda summary: seen.append(summary.num_images))
    assert isinstance(rows, Iterator)
    listed = list(rows)
    assert all(isinstance(row, Row) for row in listed)
    assert [row.file_name for row in listed] == [f"{seed}.png" for seed in range(5)]
    assert [row.status for row in listed] == ["ok", "ok", "ok", "failed", "ok"]
    assert listed[3].error == "not_an_image"
    assert seen == sorted(seen)
    assert seen[-1] == 5
    assert len(seen) > 1


def test_a_folder_equals_its_images_one_by_one(captioner: Captioner, folder: Path) -> None:
    good = [row for row in captioner.caption_folder(folder) if row.status == "ok"]
    assert [row.text for row in good] == captioner.caption([folder / row.file_name for row in good])


def test_sampled_texts_do_not_depend_on_the_order(captioner: Captioner, folder: Path) -> None:
    options = GenerateOptions(temperature=3.0, max_new_tokens=8)
    paths = [folder / f"{seed}.png" for seed in (0, 1, 2, 4)]
    for images in (paths, [Image.open(path) for path in paths]):
        texts = captioner.caption(images, options=options)
        assert captioner.caption(images[::-1], options=options) == texts[::-1]


def test_prompts_and_options_are_checked_as_on_the_command_line(captioner: Captioner, folder: Path) -> None:
    images = [folder / "0.png"]
    with pytest.raises(UsageError, match="nonsense"):
        captioner.caption(images, prompt="a {nonsense}")
    with pytest.raises(UsageError, match="empty"):
        captioner.ask(images, " ")
    with pytest.raises(UsageError, match="caption_folder"):
        captioner.caption(images, options=GenerateOptions(num_beams=2, num_captions=2))
    with pytest.raises(UsageError, match="max_new_tokens"):
        captioner.caption(images, options=GenerateOptions(max_new_tokens=1_000))


def test_images_may_be_decoded_in_a_process_of_their_own(captioner: Captioner, folder: Path) -> None:
    before = psutil.Process().children()
    isolated = Captioner(captioner.model, decode=DecodeOptions(isolate=True))
    paths = [path for path in sorted(folder.glob("*.png")) if path.name != "3.png"]
    assert isolated.caption(paths) == captioner.caption(paths)
    assert list(isolated.caption_folder(folder)) == list(captioner.caption_folder(folder))
    assert psutil.Process().children() == before


def test_a_picture_that_was_cut_off_is_an_image_error(captioner: Captioner) -> None:
    file = io.BytesIO()
    draw(0, (160, 120)).image.save(file, "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        captioner.caption([Image.open(io.BytesIO(file.getvalue()[:1500]))])


def test_a_model_is_quantised_and_spread_as_on_the_command_line(folder: Path) -> None:
    small = Captioner.load("tiny", device="cpu", quantize="int8-dynamic")
    assert any(type(module).__name__ == "Int8Linear" for module in small.model.network.modules())  # type: ignore[attr-defined]
    assert small.caption([folder / "0.png"])[0]
    with pytest.raises(UsageError, match="device_map auto and device cpu exclude each other"):
        Captioner.load("tiny", device="cpu", device_map="auto")


def test_errors_are_ours(captioner: Captioner, folder: Path) -> None:
    with pytest.raises(ImageError, match="not_an_image"):
        captioner.caption([folder / "3.png"])
    with pytest.raises(ImageError, match="vanished"):
        captioner.ask(["nowhere.jpg"], "what is it?")
    with pytest.raises(InputError):
        list(captioner.caption_folder("nowhere"))
    with pytest.raises(ModelError):
        Captioner.load("./nowhere")
    with pytest.raises(TypeError, match="in a list"):
        captioner.caption("one.jpg")


def test_arrays_are_images_too(captioner: Captioner, folder: Path) -> None:
    with Image.open(folder / "0.png") as image:
        pixels_HWC = np.array(image.convert("RGB"))
    pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
    (text,) = captioner.caption([folder / "0.png"])
    upside_down = Image.fromarray(pixels_HWC[::-1].copy())
    texts = captioner.caption([pixels_HWC, pixels_CHW, pixels_HWC[::-1]])
    assert texts == [text, text, *captioner.caption([upside_down])]
    assert captioner.caption(list(pixels_CHW[None])) == [text]
    with pytest.raises(TypeError, match="got one ndarray: put it in a list"):
        captioner.caption(pixels_HWC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (np.zeros((4, 5, 3)), r"numpy.ndarray of float64 \[4, 5, 3\]"),
        (np.zeros((4, 5), np.uint8), r"numpy.ndarray of uint8 \[4, 5\]"),
        (torch.zeros(3, 4, 5), r"torch.Tensor of float32 \[3, 4, 5\]"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"torch.Tensor of uint8 \[4, 5, 3\]"),
        (7, "int"),
    ],
)
def test_what_is_no_image_is_refused_with_what_is(captioner: Captioner, image: Any, given: str) -> None:
    expected = (
        r"Expected a path, a Pillow image, a numpy array of uint8 \[height, width, 3\] or a torch tensor of uint8"
    )
    with pytest.raises(TypeError, match=rf"^images\[0\]: {given}\. {expected} \[3, height, width\]"):
        captioner.caption([image])


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (0, 0)), np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 4, 0).byte()]
)
def test_an_image_without_pixels_is_an_error_that_names_it(captioner: Captioner, folder: Path, image: Any) -> None:
    with pytest.raises(ImageError, match=r"^images\[1\]: corrupt: .x. has no pixels$") as caught:
        captioner.caption([folder / "0.png", image])
    assert (caught.value.code, caught.value.image) == ("corrupt", "images[1]")


def test_an_error_names_its_path_and_no_secrets(captioner: Captioner, folder: Path) -> None:
    for path, name in (
        (folder / "3.png", str(folder / "3.png")),
        ("http://me:pw@host/a.png?key", "http://host/a.png?..."),
    ):
        with pytest.raises(ImageError) as caught:
            captioner.ask([folder / "0.png", path], "what is it?")
        assert caught.value.image == name
        assert str(caught.value) == f"{name}: {caught.value.code}: {caught.value.detail}".replace(
            "--allow-http", "allow_http"
        )


def test_an_image_that_fails_in_the_model_is_named_too(
    captioner: Captioner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(model: Blip2, images: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(Blip2, "encode", encode)
    with Image.open(folder / "0.png") as image, pytest.raises(ImageError, match=r"^images\[0\]: out_of_memory"):
        captioner.caption([image])


def test_the_package_offers_nothing_by_accident() -> None:
    assert blip2cap.__version__
    with pytest.raises(AttributeError):
        blip2cap.captions  # noqa: B018
