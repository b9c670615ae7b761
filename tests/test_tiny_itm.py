"""The matching model inside the package: finds the samples by words, and a valid model for plain transformers code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval, Blip2Processor

from blip2cap.decode.image import decode
from blip2cap.models.checkpoint import TINY
from blip2cap.options import DecodeOptions
from blip2cap.tiny.scenes import draw
from blip2cap.train.tiny_itm_accuracy import Scores
from tests.make_samples import FOLDER, GOLDEN

TINY_ITM = TINY.parent / "tiny_itm"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "tiny_itm.json"


@pytest.fixture(scope="module")
def scores() -> Scores:
    model = Blip2ForImageTextRetrieval.from_pretrained(TINY_ITM, dtype=torch.float32).eval()
    return Scores(model, AutoTokenizer.from_pretrained(TINY_ITM))


@pytest.fixture(scope="module")
def captions() -> dict[str, str]:
    return dict(line.split("\t") for line in GOLDEN.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def encoded(scores: Scores, captions: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    return scores.images([decode((FOLDER / name).read_bytes(), 112, DecodeOptions()).pixels_HWC for name in captions])


def test_a_sample_is_found_by_some_words_of_it(
    scores: Scores, captions: dict[str, str], encoded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    cosines = scores.cosines(encoded[1], ["a boat on the sea", "in the snow"])
    texts = list(captions.values())
    best = [texts[index] for index in cosines.argmax(dim=0).tolist()]
    assert "boat" in best[0]
    assert "on the sea" in best[0]
    assert "in the snow" in best[1]


def test_plain_transformers_code_gives_the_same_scores(scores: Scores) -> None:
    processor = Blip2Processor.from_pretrained(TINY_ITM)
    image = draw(3, (112, 112)).image
    texts = ["a boat on the sea", "two red cars in the snow"]
    inputs = processor(images=[image, image], text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        itc = scores.model(**inputs).logits_per_image
        itm = scores.model(**inputs, use_image_text_matching_head=True).logits_per_image
    image_BPD, queries_BQD = scores.images([np.asarray(image)] * 2)
    torch.testing.assert_close(scores.cosines(queries_BQD, texts), itc, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.itm(image_BPD, texts), itm[:, 1] - itm[:, 0], atol=1e-4, rtol=0)


def test_the_package_carries_it_as_at_most_8_megabytes_of_safetensors() -> None:
    weights = TINY_ITM / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    assert not [path for path in TINY_ITM.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_the_measured_accuracy_is_committed_and_good_enough() -> None:
    accuracy = json.loads(RESULTS.read_text(encoding="utf-8"))
    weights = (TINY_ITM / "model.safetensors").read_bytes()
    assert accuracy["weights_sha256"] == hashlib.sha256(weights).hexdigest(), "run make measure-tiny"
    assert accuracy["set_size"] == 100
    assert accuracy["num_sets"] >= 10
    assert min(accuracy["itc_text_recall"], accuracy["itc_image_recall"]) >= 0.9
    assert min(accuracy["reranked_text_recall"], accuracy["reranked_image_recall"]) >= 0.95
    assert accuracy["changed_accuracy"] >= 0.9
    assert accuracy["true_accuracy"] >= 0.9
    card = (TINY_ITM / "README.md").read_text(encoding="utf-8")
    for name in (
        "itc_text_recall",
        "itc_image_recall",
        "reranked_text_recall",
        "reranked_image_recall",
        "true_accuracy",
        "changed_accuracy",
        "balanced_accuracy",
    ):
        assert f"{accuracy[name]:.1%}" in card, name
