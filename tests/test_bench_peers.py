"""The scripts that blip2cap is compared with do the same work and generate the same texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import tuned_transformers, vllm_opt
from blip2cap.bench import plain_transformers
from blip2cap.captioner import Captioner
from blip2cap.generate_options import GenerateOptions
from tests.benches import tiny_captioner
from tests.checkpoints import KINDS, make_checkpoint

KEYS = {
    *("peer", "images", "rows", "seconds", "images_per_s", "load_s", "batch_size", "dtype", "device"),
    *("peak_rss_mb", "versions", "texts"),
}
Peer = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[[ModuleType, tuple[Any, ...]], dict[str, Any]]:
    """Run a peer in this process and return what it printed."""

    def run(module: ModuleType, args: tuple[Any, ...]) -> dict[str, Any]:
        assert module.main([str(arg) for arg in args]) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    return run


@pytest.fixture
def plain(run: Any, scenes: Path) -> Peer:
    return lambda *args: run(plain_transformers, ("--images", scenes, *args))


@pytest.fixture
def tuned(run: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    return lambda *args: run(tuned_transformers, ("--images", scenes, *args))


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.long] if kind.startswith("instructblip") else []) for kind in KINDS],
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def first_three(scenes: Path) -> list[Path]:
    return sorted(scenes.rglob("*.png"))[:3]


def test_the_plain_script_says_what_blip2cap_says(plain: Peer, scenes: Path) -> None:
    result = plain("--model", "tiny", "--limit", 3, "--warmup", 1, "--json")
    assert result["texts"] == tiny_captioner().caption(first_three(scenes), options=GenerateOptions(max_new_tokens=20))
    assert set(result) == KEYS
    assert (result["peer"], result["images"], result["rows"]) == ("plain_transformers", 3, 3)
    assert (result["dtype"], result["batch_size"]) == ("float32", 16)
    # Both are rounded; a pass over three images takes few milliseconds.
    assert result["images_per_s"] == pytest.approx(3 / result["seconds"], abs=0.001 * result["images_per_s"] ** 2)
    assert result["peak_rss_mb"] > 100


def test_the_plain_script_takes_prompts_and_beams_as_blip2cap(plain: Peer, scenes: Path) -> None:
    result = plain("--model", "tiny", "--limit", 3, "--prompt", "two", "--num-beams", 3, "--max-new-tokens", 8)
    options = GenerateOptions(max_new_tokens=8, num_beams=3)
    assert result["texts"] == tiny_captioner().caption(first_three(scenes), prompt="two", options=options)


@pytest.mark.parametrize("kind", ["llava", "paligemma", "florence2"])
def test_the_plain_script_takes_vision_language_models(
    plain: Peer, scenes: Path, kind: str, vlm_checkpoints: Callable[[str], Path]
) -> None:
    folder = vlm_checkpoints(kind)
    result = plain("--model", folder, "--limit", 3, "--max-new-tokens", 6, "--device", "cpu")
    captioner = Captioner.load(str(folder), device="cpu", dtype="float32")
    texts = captioner.caption(first_three(scenes), options=GenerateOptions(max_new_tokens=6))
    # The script also writes the token that ends a text, where that is no special token, as in these checkpoints.
    assert any(texts)
    assert all(theirs.startswith(ours) for theirs, ours in zip(result["texts"], texts, strict=True))
    assert len(set(result["texts"])) > 1
    assert plain("--model", folder, "--random-weights", "--limit", 1, "--max-new-tokens", 2)["rows"] == 1


@pytest.mark.parametrize("peer", ["plain", "tuned"])
def test_every_question_is_asked_of_every_image(peer: str, request: pytest.FixtureRequest, scenes: Path) -> None:
    questions = ("is it day or night?", "is there a house?")
    flags = [part for question in questions for part in ("--question", question)]
    run_peer = request.getfixturevalue(peer)
    result = run_peer("--model", "tiny", "--limit", 3, "--dtype", "float32", *flags)
    assert (result["images"], result["rows"]) == (3, 6)
    assert result["texts"] == tiny_captioner().ask(first_three(scenes), questions[0])


def test_a_question_alone_is_answered_as_among_others_by_the_tuned_script(tuned: Peer, checkpoint: Path) -> None:
    common = ("--model", checkpoint, "--limit", 3, "--dtype", "float32", "--num-workers", 0, "--max-new-tokens", 6)
    alone = tuned(*common, "--question", "what is it ?")
    padded = tuned(*common, "--question", "what is it ?", "--question", "w1 w2 w3 w4 w5 w6 w7 w8")
    assert alone["texts"] == padded["texts"]


def test_texts_of_the_plain_script_do_not_depend_on_its_batches(plain: Peer, checkpoint: Path) -> None:
    common = ("--model", checkpoint, "--limit", 3, "--max-new-tokens", 6, "--prompt", "a photo of")
    batched, single = plain(*common), plain(*common, "--batch-size", 1)
    assert batched["texts"] == single["texts"]
    assert len(set(batched["texts"])) > 1, "the image must matter"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_tuned_script_says_what_the_plain_one_says(
    plain: Peer, tuned: Peer, checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    common = ("--model", checkpoint, "--limit", 3, "--max-new-tokens", 6, "--dtype", "float32", "--batch-size", 2)
    num_workers = 2 if "opt" in request.node.name else 0  # where images are decoded does not depend on the model
    expected, result = plain(*common), tuned(*common, "--num-workers", num_workers, "--warmup", 1)
    assert result["texts"] == expected["texts"]
    assert set(result) == KEYS
    assert result["peer"] == "tuned_transformers"


def test_the_tuned_script_chooses_a_dtype(tuned: Peer) -> None:
    assert tuned("--model", "tiny", "--limit", 1, "--num-workers", 0)["dtype"] in ("float32", "bfloat16")


def test_random_weights_need_no_more_than_a_configuration(
    plain: Peer, tuned: Peer, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    common = ("--model", tmp_path, "--random-weights", "--limit", 2, "--max-new-tokens", 4, "--dtype", "float32")
    result = plain(*common)
    assert result["rows"] == 2
    assert all(word.startswith("t") for text in result["texts"] for word in text.split())
    assert tuned(*common, "--num-workers", 0)["texts"] == result["texts"]


def test_folders_without_images_are_refused(plain: Peer, here: Path) -> None:
    with pytest.raises(SystemExit, match="no images"):
        plain_transformers.main(["--images", str(here), "--model", "tiny"])


def test_vllm_is_skipped_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert vllm_opt.main(["--images", str(here), "--model", "Salesforce/blip2-opt-2.7b"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert set(result) == {"peer", "skipped"}
    assert result["peer"] == "vllm"
    assert "not installed" in result["skipped"]
    assert output.err.startswith("vllm_opt: skipped:")
