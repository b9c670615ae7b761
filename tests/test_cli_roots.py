"""The folder that names are relative to is a setting of an output only where names are relative to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip2cap.outputs.manifest import Manifest
from tests.archives import make_tar
from tests.commands import TINY, invoke
from tests.outputs import rows_of

DONE = "already done, nothing to do"


@pytest.fixture
def elsewhere(here: Path) -> Path:
    """A folder that is not the current one."""
    (here / "elsewhere").mkdir()
    return here / "elsewhere"


def test_absolute_inputs_are_resumed_from_any_folder(
    here: Path, scenes: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_tar(here / "x.tar", {"a.png": (scenes / "000.png").read_bytes()})
    listed = here / "list.txt"
    listed.write_text(f"{scenes}/002.png\n")
    inputs: list[list[str | Path]] = [[tar], [scenes / "more", scenes / "000.png"], ["--files-from", listed]]
    outs: list[str | Path] = [f"{here}/parts/", here / "0.jsonl", here / "1.jsonl", here / "2.jsonl"]
    for given, out in zip([inputs[0], *inputs], outs, strict=True):
        monkeypatch.chdir(here)
        assert invoke("caption", *given, *TINY, "-o", out).exit_code == 0
        monkeypatch.chdir(elsewhere)
        result = invoke("caption", *given, *TINY, "-o", out, "--dry-run")
        assert (result.exit_code, ": 0 of " in result.stderr) == (0, True), result.stderr
        result = invoke("caption", *given, *TINY, "-o", out)
        assert (result.exit_code, DONE in result.stderr) == (0, True), result.stderr


def test_outputs_of_older_releases_that_name_a_root_are_resumed_too(
    here: Path, scenes: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("caption", scenes / "more", scenes / "000.png", *TINY, "-o", here / "old.jsonl")
    assert invoke(*command).exit_code == 0
    path = here / "old.jsonl.run.json"
    content = json.loads(path.read_text())
    assert "input_root" not in content["settings"]
    content["settings"]["input_root"] = str(here)
    del content["state"]
    path.write_text(json.dumps(content))
    monkeypatch.chdir(elsewhere)
    assert DONE in invoke(*command).stderr


def test_a_list_may_go_on_elsewhere_as_long_as_its_paths_are_absolute(
    here: Path, scenes: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "captions.jsonl"
    (here / "a.png").write_bytes((scenes / "000.png").read_bytes())
    paths = f"a.png\n{scenes}/001.png\n".encode()
    assert invoke("caption", "-", *TINY, "-o", out, stdin=paths).exit_code == 0
    monkeypatch.chdir(elsewhere)
    before = out.read_bytes()
    for more in ([], ["--dry-run"]):
        result = invoke("caption", "-", *TINY, "-o", out, *more, stdin=f"{scenes}/001.png\na.png\n".encode())
        assert result.exit_code == 5
        assert f"a.png: in a list of paths, and relative to {elsewhere}" in result.stderr
        assert f"relative to {here}. Run the command there, or list absolute paths" in result.stderr
    assert out.read_bytes() == before
    paths = f"{scenes}/001.png\n{scenes}/002.png\n".encode()
    assert "1 ok, 0 failed, 1 already done" in invoke("caption", "-", *TINY, "-o", out, stdin=paths).stderr
    monkeypatch.chdir(here)
    paths = f"a.png\n{scenes}/002.png\n".encode()
    assert DONE in invoke("caption", "-", *TINY, "-o", out, stdin=paths).stderr


def test_relative_names_are_not_added_to_absolute_ones(here: Path, scenes: Path) -> None:
    assert invoke("caption", scenes / "000.png", *TINY).exit_code == 0
    (here / "b.png").write_bytes((scenes / "001.png").read_bytes())
    result = invoke("caption", "b.png", *TINY)
    assert (result.exit_code, "the input root was none, now" in result.stderr) == (5, True)


@pytest.mark.parametrize("out", ["captions.jsonl", "captions.parquet"])
def test_a_folder_that_was_renamed_is_continued_and_that_is_recorded(here: Path, scenes: Path, out: str) -> None:
    old, new = here / "old", here / "new"
    old.mkdir()
    for name in ("000.png", "001.png"):
        (old / name).write_bytes((scenes / name).read_bytes())
    assert invoke("caption", "old", *TINY, "-o", out).exit_code == 0
    old.rename(new)
    result = invoke("caption", "new", *TINY, "-o", out)
    assert (result.exit_code, f'the input root was "{old}", now "{new}"' in result.stderr) == (5, True)
    assert "--same-inputs" in result.stderr
    result = invoke("caption", "new", *TINY, "-o", out, "--same-inputs", "--dry-run")
    assert (result.exit_code, "0 of 2 images to do" in result.stderr) == (0, True)
    result = invoke("caption", "new", *TINY, "-o", out, "--same-inputs")
    assert (result.exit_code, DONE in result.stderr) == (0, True), result.stderr
    settings = json.loads(invoke("status", out, "--json").stdout)["settings"]
    assert settings["input_root"] == str(new)
    if out.endswith(".jsonl"):
        manifest = Manifest.read(here / f"{out}.run.json")
        assert manifest is not None
        assert manifest.input_roots_before == [str(old)]
    (new / "002.png").write_bytes((scenes / "002.png").read_bytes())
    result = invoke("caption", "new", *TINY, "-o", out)  # from here on without the option
    assert (result.exit_code, "1 ok, 0 failed, 2 already done" in result.stderr) == (0, True)
    assert len(rows_of(here / out)) == 3


def test_same_inputs_is_refused_where_it_means_nothing(here: Path, scenes: Path) -> None:
    assert invoke("caption", scenes / "000.png", *TINY).exit_code == 0
    for more in ([], ["--dry-run"]):
        result = invoke("caption", scenes / "000.png", *TINY, "--same-inputs", *more)
        assert (result.exit_code, "--same-inputs: expected a folder as the only INPUT" in result.stderr) == (2, True)
    result = invoke("caption", scenes, *TINY, "-o", "parts/", "--same-inputs")
    assert (result.exit_code, "has a plan with the paths of its images" in result.stderr) == (2, True)


def test_an_image_gets_no_second_row_by_its_absolute_name(
    here: Path, scenes: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here / "folder"
    folder.mkdir()
    (folder / "000.png").write_bytes((scenes / "000.png").read_bytes())
    assert invoke("caption", "folder", *TINY).exit_code == 0
    before = (here / "captions.jsonl").read_bytes()
    for more in ([], ["--dry-run"]):
        result = invoke("caption", folder, scenes / "more", *TINY, *more)
        assert (result.exit_code, f'the input root was "{folder}", now none' in result.stderr) == (5, True)
        assert "--same-inputs" not in result.stderr
        result = invoke("caption", "-", *TINY, *more, stdin=f"{folder}/000.png\n".encode())
        assert (result.exit_code, "it may have a row by another name" in result.stderr) == (5, True)
    assert (here / "captions.jsonl").read_bytes() == before


def test_same_inputs_that_are_others_are_refused(here: Path, scenes: Path) -> None:
    for name in ("old", "new"):
        (here / name).mkdir()
        (here / name / f"{name}.png").write_bytes((scenes / "000.png").read_bytes())
    assert invoke("caption", "old", *TINY).exit_code == 0
    result = invoke("caption", "new", *TINY, "--same-inputs")
    assert (result.exit_code, f"no image has a row of that name relative to {here / 'new'}" in result.stderr) == (
        2,
        True,
    )
    assert invoke("caption", here / "old", here / "new", *TINY, "-o", "absolute.jsonl").exit_code == 0
    result = invoke("caption", "new", *TINY, "-o", "absolute.jsonl")
    assert (result.exit_code, "--same-inputs" in result.stderr) == (5, False)
    result = invoke("caption", "new", *TINY, "-o", "absolute.jsonl", "--same-inputs")
    assert (result.exit_code, "the rows of absolute.jsonl are absolute" in result.stderr) == (2, True)
