"""Each repository on the hub that the pages name, in its form: by its id and as a folder it gives the same texts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, Blip2ForImageTextRetrieval, T5ForConditionalGeneration

from blip2cap.errors import ModelError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.sampling import end_ids
from blip2cap.models.checkpoint import find
from blip2cap.models.matching import load as matching
from blip2cap.models.matching.model import Matcher
from blip2cap.options import ModelOptions
from blip2cap.records import Generated, MatchScore, Prompt
from tests.fake_hub import FakeHub, serve
from tests.hub_imitations import MATCHING, REPOSITORIES, imitate

CAPTIONING = tuple(name for name in REPOSITORIES if name not in MATCHING)
QUICK = ("Salesforce/blip2-opt-2.7b", "Salesforce/instructblip-vicuna-7b")
"""Repositories whose texts are compared in every run of the tests."""
PAGES = [Path(__file__).parent.parent / page for page in ("README.md", "docs/models.md")]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An imitation by its id, written when first asked for. Not to be changed."""
    parent, made = tmp_path_factory.mktemp("hub"), dict[str, Path]()

    def of(name: str) -> Path:
        if name not in made:
            made[name] = imitate(parent / name, REPOSITORIES[name])
        return made[name]

    return of


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with serve(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def load_named(name: str | Path) -> Blip2:
    options = ModelOptions(name=str(name), device="cpu", dtype="float32")
    return load(find(options, quiet=True), options)


def load_matching(name: str | Path) -> Matcher:
    options = ModelOptions(name=str(name), device="cpu", dtype="float32")
    return matching.load(find(options, quiet=True), options)


def texts(model: Blip2) -> list[Generated]:
    """Caption noise; sampling, as the likeliest tokens of random weights repeat themselves."""
    noise = np.random.default_rng(0).integers(0, 256, (8, model.image_size, model.image_size, 3), dtype=np.uint8)
    prompts = [Prompt(image=number, text="a photo of", name=str(number)) for number in range(len(noise))]
    options = GenerateOptions(max_new_tokens=16, temperature=1.5)
    results = model.generate(model.encode(list(noise)), prompts, options)
    return [result[0] for result in results if isinstance(result, list)]


def test_the_pages_name_these_repositories_and_no_others() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(Salesforce/[\w.-]+)`", page.read_text())}
    assert named == set(REPOSITORIES)
    tested = re.findall(r"^\| `(Salesforce/[\w.-]+)` .* form tested", PAGES[1].read_text(), re.MULTILINE)
    assert tested == [*REPOSITORIES]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in CAPTIONING]
)
def test_a_repository_gives_the_same_texts_by_its_id_and_as_a_folder(
    repository: Callable[[str], Path], hub: FakeHub, name: str
) -> None:
    hub.repositories[name] = repository(name)
    by_id, as_folder = load_named(name), load_named(repository(name))
    assert by_id.checkpoint.commit == hub.commit(name)
    made = texts(by_id)
    assert made == texts(as_folder)
    assert len({text.text for text in made}) > 4
    assert not [line for line in hub.asked if line.endswith(".bin")]


@pytest.mark.parametrize("name", MATCHING)
def test_a_matching_repository_gives_the_scores_of_transformers_by_its_id_and_as_a_folder(
    repository: Callable[[str], Path], hub: FakeHub, name: str
) -> None:
    hub.repositories[name] = repository(name)
    network = Blip2ForImageTextRetrieval.from_pretrained(repository(name)).eval()
    ids = AutoTokenizer.from_pretrained(repository(name))("A short image description.", return_tensors="pt")
    assert ids.input_ids[0].tolist() == [2, 5, 6, 7, 8, 9, 3]
    for model in (load_matching(name), load_matching(repository(name))):
        side = model.checkpoint.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        session = model.start_match(capacity=None)
        session.add(session.encode([pixels]), [Prompt(image=0, text="A short image description.", name="")])
        ((_, score),) = session.advance()
        assert isinstance(score, MatchScore)
        normalised = model._pixels.normalise(model._pixels.copy([pixels]))
        with torch.no_grad():
            matched = network(normalised, **ids, use_image_text_matching_head=True).logits_per_image.softmax(-1)
            contrasted = network(normalised, **ids).logits_per_image
        assert score.itm == pytest.approx(float(matched[0, 1]), abs=1e-6)
        assert score.itc == pytest.approx(float(contrasted[0, 0]), abs=1e-6)
    assert not [line for line in hub.asked if line.endswith(".bin")]


@pytest.mark.parametrize("name", ["Salesforce/blip2-opt-2.7b", "Salesforce/instructblip-flan-t5-xl"])
def test_a_tokenizer_is_read_as_transformers_reads_it_by_its_id(repository: Callable[[str], Path], name: str) -> None:
    config = AutoConfig.from_pretrained(repository(name))
    config._name_or_path = name  # where transformers looks for models that need another class than they name
    expected, model = AutoTokenizer.from_pretrained(repository(name), config=config), load_named(repository(name))
    assert type(model.tokenizer) is type(expected)
    prompt = "Question: what is it? Answer:"
    assert model.tokenise(prompt).ids == expected(prompt).input_ids


def test_vicuna_ends_at_the_end_of_its_tokenizer_and_the_disagreement_is_said(
    repository: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = repository("Salesforce/instructblip-vicuna-7b")
    model = load_named(folder)
    assert model.remark == "its settings end texts with <s>, its tokenizer with </s>; both end texts"
    assert end_ids(model.network.language_model.generation_config) == [1, 2]
    assert "stop" in {text.finish_reason for text in texts(model)}
    # The same from generation_config.json, when the tokenizer says nothing.
    silent = Path(shutil.copytree(folder, tmp_path / "silent"))
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((silent / file).read_text())
        (silent / file).write_text(json.dumps({key: value for key, value in content.items() if key != "eos_token"}))
    assert texts(load_named(silent)) == texts(model)


@pytest.mark.parametrize("name", ["Salesforce/blip2-opt-2.7b", "Salesforce/blip2-flan-t5-xl"])
def test_ends_that_do_not_disagree_are_not_spoken_of(repository: Callable[[str], Path], name: str) -> None:
    """OPT ends with a line break, by its configuration, or with the end of its tokenizer."""
    assert load_named(repository(name)).remark == ""


@pytest.fixture
def unshared(repository: Callable[[str], Path], tmp_path: Path) -> Path:
    """A T5 whose embeddings are saved for encoder and decoder, but not as the shared ones that both are."""
    folder = Path(shutil.copytree(repository("Salesforce/blip2-flan-t5-xl"), tmp_path / "model"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = index["weight_map"].pop("language_model.shared.weight")
    weights = load_file(folder / file)
    embedding = weights.pop("language_model.shared.weight")
    for stack in ("encoder", "decoder"):
        name = f"language_model.{stack}.embed_tokens.weight"
        weights[name], index["weight_map"][name] = embedding.clone(), file
    save_file(weights, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.skipif(transformers.__version__ < "5.23", reason="read wrongly, and refused")
def test_a_t5_without_shared_embeddings_in_its_files_is_read_rightly(
    repository: Callable[[str], Path], unshared: Path
) -> None:
    assert texts(load_named(unshared)) == texts(load_named(repository("Salesforce/blip2-flan-t5-xl")))


def test_a_t5_that_transformers_reads_wrongly_is_refused(unshared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ties = dict(T5ForConditionalGeneration._tied_weights_keys)
    before = {"lm_head.weight": ties.pop("lm_head.weight"), **ties}  # the order in transformers 5.22
    monkeypatch.setattr(T5ForConditionalGeneration, "_tied_weights_keys", before)
    with pytest.raises(ModelError, match=r"reads the embeddings of this T5 wrongly.*transformers>=5\.23"):
        load_named(unshared)


def test_the_files_of_a_slow_tokenizer_are_enough(repository: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(repository("Salesforce/blip2-opt-2.7b"), tmp_path / "model"))
    expected = texts(load_named(folder))
    (folder / "tokenizer.json").unlink()
    assert texts(load_named(folder)) == expected
