from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from blip2cap.models.checkpoint import TINY as TINY_FOLDER
from tests.commands import TINY, invoke

WRONG = {
    "caption": ["no INPUT given", "--files-from"],
    "caption missing": ["missing: no such file or folder", "Paths are relative to"],
    "caption images missing": ["missing: no such file or folder"],
    "caption --files-from missing": ["missing: no such file or folder"],
    "caption --files-from images": ["--files-from images: a folder", "INPUT"],
    "caption empty": ["no image found in empty", "skipped 1 other suffix", ".jpg"],
    "caption - -": ["`-` given more than once"],
    "caption - --files-from -": ["`-` given more than once"],
    "caption images -o captions.csv": ["--out captions.csv", ".parquet", ".jsonl", "`-`"],
    "caption images -o - --json": ["--json and --out - exclude each other"],
    "caption images -o - --overwrite": ["--overwrite and --out - exclude each other"],
    "caption images --quiet --verbose": ["--quiet and --verbose exclude each other"],
    "caption images --batch-size 0": ["--batch-size 0: must be 1 or more", "Leave it out"],
    "caption images --limit 0": ["--limit 0: must be 1 or more", "Leave it out"],
    "caption images --threads -1": ["--threads -1: must be 0 or more", "one per core"],
    "caption images --dtype int7": ["--dtype int7", "auto, float32, bfloat16, float16"],
    "caption images --quantize int4": ["--quantize int4: must be one of int8, nf4, int8-dynamic, fp8"],
    "caption images --quantize fp8 --dtype float32": ["--quantize fp8 and --dtype float32 exclude each other"],
    "caption images --model tiny --device cpu --quantize nf4": ["--quantize nf4: needs a GPU", "int8-dynamic"],
    "vqa images -q where? --device-map many": ["--device-map many: must be one of auto, balanced, sequential"],
    "caption images --device-map auto --device cuda:0": ["--device-map auto and --device cuda:0 exclude each other"],
    "caption images --device tpu": ["--device tpu", "auto, cpu, cuda or cuda:N"],
    "caption images --max-new-tokens 0": ["--max-new-tokens 0: must be 1 or more"],
    "caption images --min-new-tokens 40": ["--min-new-tokens 40 is more than --max-new-tokens 30", "Lower"],
    "caption images --temperature 0": ["--temperature 0.0: must be above 0", "Leave it out"],
    "caption images --top-p 0.5": ["--top-p 0.5 has no effect without sampling", "Add --temperature"],
    "caption images --top-k 5": ["--top-k 5 has no effect without sampling", "Add --temperature"],
    "caption images --temperature 1 --top-p 2": ["--top-p 2.0: must be above 0 and at most 1"],
    "caption images --temperature 1 --num-beams 2": ["--temperature 1.0 and --num-beams 2 exclude each other"],
    "caption images --length-penalty 2": ["--length-penalty 2.0 has no effect without beams", "Add --num-beams"],
    "caption images --num-captions 2": ["--num-captions 2 needs --temperature, or --num-beams of at least 2"],
    "caption images --repetition-penalty 0": ["--repetition-penalty 0.0: must be above 0", "1.0 turns it off"],
    "caption images --prompt {name}": ["unknown field {name}", "{stem} {folder} {file_name}"],
    "caption images --bogus": ["--bogus"],
    "caption images --batch-size many": ["--batch-size", "integer"],
    "vqa images": ["no question given", "-q TEXT", "--questions FILE"],
    "vqa images -q where? -q where?": ['question "where?" is asked twice'],
    "vqa images -q where? --template Question:": ["has no {question}"],
    "vqa images -q where? --template {question}{name}": ["unknown field {name}", "{question}"],
    "vqa images --questions missing": ["--questions missing: cannot be read: No such file"],
    "vqa images --questions empty/nothing.txt": ["contains no question", "one per line"],
    "show missing.jsonl": ["missing.jsonl: cannot be read: No such file"],
}


@pytest.fixture
def workplace(here: Path, scenes: Path) -> Path:
    (here / "images").symlink_to(scenes)
    (here / "empty").mkdir()
    (here / "empty" / "nothing.txt").touch()
    return here


@pytest.mark.parametrize("command", WRONG)
def test_wrong_usage_ends_with_2_says_what_was_given_and_expected_and_leaves_no_file(
    workplace: Path, command: str
) -> None:
    before = sorted(workplace.iterdir())
    # A model that cannot be loaded: what is wrong with the command is said first.
    result = invoke(*command.split(), env={"BLIP2CAP_MODEL": "./no-model"})
    assert result.exit_code == 2, result.output
    assert not [part for part in WRONG[command] if part not in result.stderr], result.stderr
    assert (result.stdout, sorted(workplace.iterdir())) == ("", before)


def test_an_empty_list_on_stdin_is_no_image(workplace: Path) -> None:
    result = invoke("caption", "-", *TINY, stdin=b"\n\n")
    assert (result.exit_code, result.stderr.split(".")[0]) == (2, "blip2cap: no image found in -")


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "caption" in result.output
    assert "vqa" in result.output


def make_model(folder: Path, **config: object) -> Path:
    """Copy the embedded model with another config.json."""
    shutil.copytree(TINY_FOLDER, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def check_model_error(workplace: Path, name: str, *reasons: str) -> None:
    result = invoke("caption", "images", "--model", name)
    assert result.exit_code == 4, result.output
    assert not [part for part in (f"--model {name}", *reasons, "--model tiny") if part not in result.stderr]
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)
    assert not (workplace / "captions.jsonl").exists()


def test_an_unknown_model_folder_ends_with_4(workplace: Path) -> None:
    check_model_error(workplace, "./missing", "no such folder")


def test_a_folder_without_a_model_ends_with_4(workplace: Path) -> None:
    check_model_error(workplace, str(workplace / "empty"), "no config.json")


def test_a_model_with_pickled_weights_only_ends_with_4(workplace: Path) -> None:
    folder = make_model(workplace / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    check_model_error(workplace, str(folder), "only pytorch_model.bin", "may run code", "model.safetensors")


def test_a_model_with_code_of_its_own_ends_with_4(workplace: Path) -> None:
    folder = make_model(workplace / "model", auto_map={"AutoModel": "evil.Model"})
    check_model_error(workplace, str(folder), "auto_map", "never runs")


class Evil:
    """Creates a file when unpickled: the proof that code was run."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("was-run", "w")


EVIL_CODE = "open('was-run', 'w')\n"


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    (folder / "model.pt").write_bytes(pickle.dumps(Evil()))


def pickle_by_another_name(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))


def link_to_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder.parent / "elsewhere.bin").write_bytes(pickle.dumps(Evil()))
    (folder / "model.safetensors").symlink_to("../elsewhere.bin")


def index_of_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder.parent / "elsewhere.bin").write_bytes(pickle.dumps(Evil()))
    index = {"metadata": {}, "weight_map": {"query_tokens": "../elsewhere.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(EVIL_CODE)


def code_of_its_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    (folder / "evil.py").write_text(EVIL_CODE)


def another_type_with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py"):
        (folder / name).write_text(EVIL_CODE)


def truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def link_to_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/nowhere/model.safetensors")


def folder_in_place_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        pickle_only,
        pickle_by_another_name,
        link_to_a_pickle,
        index_of_a_pickle,
        code_of_its_own,
        code_of_its_tokenizer,
        another_type_with_code,
        truncated_weights,
        link_to_nowhere,
        folder_in_place_of_weights,
    ],
)
def test_a_model_folder_that_is_not_safe_or_not_whole_ends_with_4_and_nothing_in_it_is_run(
    workplace: Path, spoil: Callable[[Path], None]
) -> None:
    folder = make_model(workplace / "model")
    (folder / "conftest.py").write_text(EVIL_CODE)
    spoil(folder)
    check_model_error(workplace, str(folder))
    assert not [*workplace.rglob("was-run")]


def test_a_link_to_whole_weights_is_followed_as_in_the_cache_of_the_hub(workplace: Path) -> None:
    folder = make_model(workplace / "model")
    (folder / "model.safetensors").rename(workplace / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    (folder / "modeling_evil.py").write_text(EVIL_CODE)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    result = invoke("caption", "images/000.png", "--model", folder)
    assert (result.exit_code, [*workplace.rglob("was-run")]) == (0, []), result.output


def test_the_pickle_of_these_tests_would_make_a_file_if_it_were_loaded(here: Path) -> None:
    pickle.loads(pickle.dumps(Evil())).close()
    assert (here / "was-run").exists()


def test_a_model_of_another_type_ends_with_4(workplace: Path) -> None:
    folder = make_model(workplace / "model", model_type="bert")
    check_model_error(workplace, str(folder), "model_type 'bert'", "Expected blip-2")


def test_a_model_on_the_hub_that_cannot_be_reached_ends_with_4(workplace: Path) -> None:
    check_model_error(workplace, "nobody/no-such-model", "not in the local cache", "hub cannot be reached")


def test_a_model_with_damaged_weights_ends_with_4(workplace: Path) -> None:
    folder = make_model(workplace / "model")
    (folder / "model.safetensors").write_bytes(b"\x08")
    check_model_error(workplace, str(folder), "cannot be loaded")


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("missing/new/captions.jsonl", "its folder does not exist. Create it first, with mkdir -p missing/new, or"),
        ("empty/nothing.txt/captions.jsonl", "Not a directory"),
        ("folder.jsonl", "Is a directory"),
    ],
)
def test_an_output_that_cannot_be_opened_ends_with_6(workplace: Path, out: str, reason: str) -> None:
    (workplace / "folder.jsonl").mkdir()
    result = invoke("caption", "images", *TINY, "--out", out)
    assert result.exit_code == 6
    assert f"{out} cannot be opened for writing: {reason}" in result.stderr
    assert "another --out" in result.stderr


@pytest.mark.parametrize("out", ["pipe.jsonl", "pipe.parquet"])
def test_an_output_that_is_a_fifo_is_refused_and_nothing_hangs(workplace: Path, out: str) -> None:
    os.mkfifo(workplace / out)
    (workplace / "link.jsonl").symlink_to(out)
    commands = (("caption", "images", *TINY, "-o"), ("caption", "images", *TINY, "--dry-run", "-o"), ("status",))
    for command in commands:
        for name in (out, "link.jsonl"):
            result = invoke(*command, name)
            assert (result.exit_code, result.stdout) == (5, "")
            assert f"{name}: a FIFO, a socket or a device, which keeps no rows." in result.stderr
            assert f"--out - > {name}" in result.stderr
    assert stat.S_ISFIFO((workplace / out).stat().st_mode)
    assert sorted(path.name for path in workplace.glob("pipe*")) == [out]


def test_a_prompt_for_all_images_that_is_too_long_ends_with_2_before_the_first_row(workplace: Path) -> None:
    long = "a house " * 300
    for command in (("caption", "images", "--prompt", long), ("vqa", "images", "-q", "what?", "-q", long)):
        result = invoke(*command, *TINY)
        assert result.exit_code == 2
        assert 'prompt "' in result.stderr
        assert '...": too long for this model: ' in result.stderr
        assert not [*workplace.glob("*.jsonl")]
    result = invoke("caption", "images", *TINY, "--prompt", long + "{stem}")
    assert (result.exit_code, "unsupported" in result.stderr) == (3, True)
