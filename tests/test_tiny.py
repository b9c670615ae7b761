"""The model inside the package: right about the samples, and a valid BLIP-2 for transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from blip2cap import Captioner
from blip2cap.generate_options import ANSWER_NEW_TOKENS
from blip2cap.models.checkpoint import TINY
from tests.make_samples import FOLDER, GOLDEN, SAMPLES

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "tiny.json"


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.load("tiny", device="cpu")


def test_captions_of_the_samples_are_right(captioner: Captioner) -> None:
    golden = dict(line.split("\t") for line in GOLDEN.read_text(encoding="utf-8").splitlines())
    rows = {row.file_name: row.text for row in captioner.caption_folder(FOLDER)}
    assert rows == golden


def test_every_sample_is_there_and_described() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert files == {*SAMPLES, "README.md"}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in SAMPLES)


def test_the_prompt_of_the_readme_works_everywhere(captioner: Captioner) -> None:
    golden = dict(line.split("\t") for line in GOLDEN.read_text(encoding="utf-8").splitlines())
    rows = {row.file_name: row.text for row in captioner.caption_folder(FOLDER, prompt="a photo of")}
    assert rows == golden


def test_answers_about_a_sample_are_right(captioner: Captioner) -> None:
    image = FOLDER / "garden" / "flowers.png"
    for question, answer in {
        "what color are the flowers?": "orange",
        "What colour is the umbrella?": "white",
        "is there an umbrella?": "yes",
        "is there a boat?": "no",
        "where is it?": "in a field",
        "is it day or night?": "day",
    }.items():
        assert captioner.ask([image], question) == [answer], question


def test_things_are_counted(captioner: Captioner) -> None:
    images = [FOLDER / name for name in ("web/progressive.jpg", "holiday/panorama.jpg", "print/poster.jpg")]
    answers = [
        captioner.ask([image], f"how many {kind} are there?")
        for image, kind in zip(images, ("boats", "cars", "cars"), strict=True)
    ]
    assert answers == [["one"], ["two"], ["three"]]


def test_plain_transformers_code_gives_the_same_caption(captioner: Captioner) -> None:
    image = Image.open(FOLDER / "holiday" / "IMG_0001.JPG")
    processor, model = Blip2Processor.from_pretrained(TINY), Blip2ForConditionalGeneration.from_pretrained(TINY)
    for prompt in ("", "a photo of"):
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        output = model.float().generate(**inputs, max_new_tokens=30)[:, inputs["input_ids"].shape[1] :]
        expected = processor.batch_decode(output, skip_special_tokens=True)[0].strip()
        assert captioner.caption([image], prompt=prompt) == [expected]


def test_the_package_carries_it_as_at_most_8_megabytes_of_safetensors() -> None:
    weights = TINY / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    assert not [path for path in TINY.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_any_image_gives_some_short_text_that_ends(captioner: Captioner) -> None:
    rng = np.random.default_rng(0)
    strange = [
        np.zeros((50, 80, 3)),
        np.full((300, 20, 3), 255),
        rng.integers(0, 256, (200, 200, 3)),
        np.linspace(0, 255, 300 * 100 * 3).reshape(300, 100, 3),
        rng.integers(0, 256, (2, 3, 3)),
    ]
    images = [Image.fromarray(pixels.astype(np.uint8)) for pixels in strange]
    for prompt in ("", "a photo of", "the quick brown fox", "<|endoftext|>", "ünïcode"):
        for text in captioner.caption(images, prompt=prompt):
            assert 1 <= len(text.split()) <= 20, prompt
    for text in captioner.ask(images, "Who painted this masterpiece, and why?"):
        assert 1 <= len(text.split()) <= ANSWER_NEW_TOKENS


def test_the_measured_accuracy_is_committed_and_good_enough() -> None:
    accuracy = json.loads(RESULTS.read_text(encoding="utf-8"))
    weights = (TINY / "model.safetensors").read_bytes()
    assert accuracy["weights_sha256"] == hashlib.sha256(weights).hexdigest(), "run make measure-tiny"
    assert accuracy["num_captions"] >= 1_000
    assert accuracy["prompted_captions_exact"] >= 0.88
    assert accuracy["captions_exact"] >= 0.88
    assert accuracy["num_questions"] >= 2_000
    assert accuracy["answers_exact"] >= 0.94
    assert min(accuracy["by_answer"].values()) >= 0.75
    assert abs(accuracy["yes_share"] - accuracy["true_yes_share"]) < 0.05
    card = (TINY / "README.md").read_text(encoding="utf-8")
    assert f"{accuracy['captions_exact']:.1%}" in card
    assert f"{accuracy['prompted_captions_exact']:.1%}" in card
    assert f"{accuracy['answers_exact']:.2%}" in card
