"""Models are found by name, and refused with a reason before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.checkpoint import TINY, find
from blip2cap.options import ModelOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        find(ModelOptions(name=str(name)))
    assert "--model tiny" in caught.value.message, "every refusal names what always works"
    return caught.value.message


@pytest.mark.parametrize(("name", "meant"), [("tinny", "tiny"), ("blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b")])
def test_a_name_that_is_nearly_one_that_is_known_is_answered_with_that(name: str, meant: str) -> None:
    assert f"no such folder. Did you mean {meant}? Expected" in refusal(name)
    assert "Did you mean" not in refusal("./photos")


def test_the_tiny_model_is_found_by_name_and_as_a_folder() -> None:
    by_name, as_folder = find(ModelOptions(name="tiny")), find(ModelOptions(name=str(TINY)))
    assert by_name.family == as_folder.family == "opt"
    assert by_name.image_size == 112
    assert by_name.commit == as_folder.commit


def test_the_commit_of_a_folder_changes_with_its_weights_and_configs(folder: Path) -> None:
    before = find(ModelOptions(name=str(folder))).commit
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = find(ModelOptions(name=str(folder))).commit
    change_config(folder, note="changed")
    assert len({before, after, find(ModelOptions(name=str(folder))).commit}) == 3


def test_the_commit_of_a_finished_training_does_not_change_with_its_checkpoints(folder: Path) -> None:
    before = find(ModelOptions(name=str(folder))).commit
    (folder / "checkpoints/step-000001").mkdir(parents=True)
    (folder / "checkpoints/step-000001/trainable.safetensors").write_bytes(b"weights")
    assert find(ModelOptions(name=str(folder))).commit == before


def test_the_commit_changes_with_a_part_in_the_middle_of_large_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes()) * 3
    weights.write_bytes(content)
    before = find(ModelOptions(name=str(folder))).commit
    middle = len(content) // 2
    content[middle : middle + 400_000] = bytes(400_000)
    weights.write_bytes(content)
    assert find(ModelOptions(name=str(folder))).commit != before


def test_a_revision_of_what_has_none_is_refused(folder: Path) -> None:
    for name in ("tiny", str(folder)):
        with pytest.raises(UsageError, match="revision main"):
            find(ModelOptions(name=name, revision="main"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_damaged_files_are_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1"))
    assert name in refusal(folder)


def test_an_index_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "lists no weights" in refusal(folder)


def test_a_folder_that_does_not_exist_is_refused() -> None:
    assert "no such folder" in refusal("./nowhere")
    assert "no such folder" in refusal("nowhere")
    assert "no such folder" in refusal("/no/where/at/all")


def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "not in the local cache" in refusal("Salesforce/blip2-opt-2.7b")
    assert "neither a folder nor a hub id" in refusal("two words/and--more")


def test_a_snapshot_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--something"
    shutil.copytree(TINY, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoint = find(ModelOptions(name="someone/something"))
    assert checkpoint.commit == commit
    assert checkpoint.name == "someone/something"


def test_a_folder_with_only_a_pickle_is_refused_by_the_name_of_the_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pytorch_model.bin" in refusal(folder)


def test_a_folder_without_weights_or_config_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_a_folder_without_a_tokenizer_is_refused_with_the_names_of_its_files(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").exists()
    message = refusal(folder)
    assert f"no tokenizer in {folder}. Expected tokenizer.json, or vocab.json and merges.txt, or " in message
    assert "processor.save_pretrained" in message
    (folder / "vocab.json").touch()
    assert "no tokenizer" in refusal(folder)
    (folder / "merges.txt").touch()
    find(ModelOptions(name=str(folder)))


def test_an_instructblip_without_the_tokenizer_of_its_qformer_is_refused(folder: Path) -> None:
    change_config(folder, model_type="instructblip", text_config={"model_type": "t5"})
    assert f"no tokenizer in {folder / 'qformer_tokenizer'}. Expected tokenizer.json" in refusal(folder)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_a_tokenizer_of_sentencepiece_alone_takes_packages_that_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    installed = {"protobuf"}
    monkeypatch.setattr("importlib.metadata.distributions", lambda *, name: [name] if name in installed else [])
    (folder / name).touch()
    find(ModelOptions(name=str(folder)))  # not read beside tokenizer.json
    (folder / "tokenizer.json").unlink()
    message = refusal(folder)
    assert f"its tokenizer is {name} without tokenizer.json" in message
    assert "pip install sentencepiece." in message
    installed.add("sentencepiece")
    find(ModelOptions(name=str(folder)))


def test_missing_shards_are_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in refusal(folder)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../a.safetensors", "/tmp/a.safetensors", "sub/a.safetensors"])
def test_an_index_that_names_other_files_than_safetensors_beside_it_is_refused(folder: Path, file: str) -> None:
    index = {"weight_map": {"a": file, "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names {file}. Expected .safetensors files beside it" in refusal(folder)


def test_a_model_with_an_adapter_beside_it_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/somewhere/else"}))
    assert "a model and an adapter (adapter_config.json) in one folder" in refusal(folder)


def test_code_in_the_folder_is_never_run(folder: Path) -> None:
    change_config(folder, auto_map={"AutoConfig": "evil.Config"})
    assert "auto_map" in refusal(folder)
    change_config(folder, auto_map=None)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}))
    assert "auto_map" in refusal(folder)


def test_other_kinds_of_models_are_refused_by_their_type(folder: Path) -> None:
    change_config(folder, model_type="mllama")
    assert "'mllama'" in refusal(folder)
    change_config(folder, model_type="blip-2", text_config={"model_type": "gpt2"})
    assert "'gpt2'" in refusal(folder)
