"""`blip2cap index` and searches by text, with the matching model inside the package, as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip2cap import Index
from blip2cap.errors import InputError, OutputRefusedError, UsageError
from tests.commands import invoke
from tests.test_cli_names import STEERING, check, hostile_names
from tests.test_index_sheet import MARKUP, Page

SAMPLES = Path(__file__).parent.parent / "sample_images"
M = ("-m", "tiny-itm", "--dtype", "float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `samples` and `my.index`, made by the command. Not to be changed."""
    folder = tmp_path_factory.mktemp("index")
    shutil.copytree(SAMPLES, folder / "samples")
    result = invoke("index", folder / "samples", "-o", folder / "my.index", *M)
    assert result.exit_code == 0, result.stderr
    assert f"{folder / 'my.index'}: 14 images: 14 new, 0 failed, skipped 1 other suffix" in result.stderr
    return folder


@pytest.fixture
def find(made: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that searches, and returns the hits."""

    def found(*arguments: str, code: int = 0, stdin: bytes = b"") -> list[dict[str, Any]]:
        result = invoke("search", made / "my.index", *arguments, "-o", "-", stdin=stdin)
        assert result.exit_code == code, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    return found


def names(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["file_name"] for hit in hits]


def test_words_find_the_images_that_show_them(find: Callable[..., Any]) -> None:
    assert names(find("a boat on the sea", "-k", "1")) == ["holiday/IMG_0001.JPG"]
    assert names(find("a pink house in the snow", "-k", "1")) == ["winter/cut_out.png"]
    assert names(find("two green fish in the sea", "-k", "1")) == ["web/animation.gif"]


def test_queries_come_from_arguments_and_from_standard_input(find: Callable[..., Any]) -> None:
    asked = find("a boat on the sea", "a yellow tree", "-k", "1")
    assert [(hit["query"], hit["file_name"]) for hit in asked] == [
        ("a boat on the sea", "holiday/IMG_0001.JPG"),
        ("a yellow tree", "garden/tall.png"),
    ]
    assert find("-", "-k", "1", stdin=b"a boat on the sea\na yellow tree\n") == asked


@pytest.mark.long
def test_hostile_queries_reach_no_terminal_and_no_page_raw(made: Path, here: Path) -> None:
    texts = [name.decode("utf-8", "replace").replace("\n", " ") for name in hostile_names() if len(name) < 40][::8]
    lines = "\n".join([*texts, *MARKUP]).encode()
    command = ("search", made / "my.index", "-", "-k", "1")
    printed = invoke(*command, stdin=lines)
    assert printed.exit_code == 0, printed.stderr
    check(printed.output)
    assert invoke(*command, "--html", "sheet.html", stdin=lines).exit_code == 0
    content = Path("sheet.html").read_text(encoding="utf-8")
    assert not STEERING.search(content)
    page = Page(content)
    assert len(page.all("section")) == len(texts) + len(MARKUP)
    assert {*MARKUP} <= {*page.texts}
    assert len(page.all("script")) + len(page.all("iframe")) + len(page.all("svg")) == 0
    answered = invoke(*command, "-o", "-", stdin=lines).stdout
    check(answered)
    assert [json.loads(line)["query"] for line in answered.splitlines()] == [*texts, *MARKUP]


def test_an_image_file_finds_itself_first(find: Callable[..., Any], made: Path) -> None:
    hits = find("--image", str(made / "samples/winter/fish.webp"), "-k", "3")
    assert hits[0]["file_name"] == "winter/fish.webp"
    assert hits[0]["score"] == pytest.approx(1, abs=0.01)
    by_name = find("--like", "winter/fish.webp", "-k", "2")
    assert names(by_name) == names(hits)[1:]
    (made / "no_image.png").write_text("no image")
    find("--image", str(made / "no_image.png"), code=2)


def test_the_match_head_ranks_again_and_an_image_that_is_gone_is_reported(
    find: Callable[..., Any], made: Path, tmp_path: Path
) -> None:
    plain = find("a boat on the sea", "-k", "14")
    ranked = find("a boat on the sea", "--rerank", "5", "-k", "14")
    assert set(names(ranked)[:5]) == set(names(plain)[:5])
    assert names(ranked)[5:] == names(plain)[5:]
    assert [*map(len, ranked)] == [len(plain[0]) + 1] * 5 + [len(plain[0])] * 9
    assert all(0 <= hit["itm"] <= 1 for hit in ranked[:5])
    gone = made / "samples" / plain[0]["file_name"]
    shutil.move(gone, tmp_path / "elsewhere")
    try:
        result = invoke("search", made / "my.index", "a boat on the sea", "--rerank", "3", "-k", "3", "-o", "-")
    finally:
        shutil.move(tmp_path / "elsewhere", gone)
    assert result.exit_code == 3
    assert f"{plain[0]['file_name']}: vanished: no such file" in result.stderr
    assert json.loads(result.stdout.splitlines()[2])["file_name"] == plain[0]["file_name"]


def test_members_of_an_archive_are_on_the_sheet_and_ranked_again(here: Path) -> None:
    shutil.make_archive("x", "tar", SAMPLES / "holiday")
    assert invoke("index", "x.tar", "-o", "tar.index", *M).exit_code == 0
    result = invoke("search", "tar.index", "a house", "-k", "3", "--rerank", "3", "--html", "sheet.html")
    assert (result.exit_code, "sheet.html: 3 images\n" in result.stderr) == (0, True), result.stderr
    assert len(Page(Path("sheet.html").read_text(encoding="utf-8")).all("img")) == 3
    result = invoke("search", "tar.index", "a house", "-k", "3", "-0")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "3 hits left out: in archives or behind URLs, not files" in result.stderr


def test_an_index_is_brought_up_to_date_and_finds_what_is_new(here: Path) -> None:
    shutil.copytree(SAMPLES / "winter", "imgs")
    command = ("index", "imgs", "-o", "my.index", *M, "--json")

    def counts(code: int = 0) -> dict[str, int]:
        result = invoke(*command)
        assert result.exit_code == code, result.stderr
        facts = json.loads(result.stdout)
        return {name: facts[name] for name in ("images", "new", "changed", "unchanged", "removed", "failed")}

    nothing = {"images": 2, "new": 0, "changed": 0, "unchanged": 2, "removed": 0, "failed": 0}
    assert counts() == nothing | {"new": 2, "unchanged": 0}
    assert counts() == nothing
    shutil.copy(SAMPLES / "holiday/IMG_0001.JPG", "imgs/boat.jpg")
    Path("imgs/fish.webp").unlink()
    Path("imgs/bad.png").write_text("no image")
    assert counts(3) == nothing | {"new": 2, "unchanged": 1, "removed": 1, "failed": 1}
    assert "boat.jpg" in invoke("search", "my.index", "a boat on the sea", "-k", "1").stdout


def test_narrower_inputs_remove_most_of_an_index_on_request_only(made: Path, here: Path) -> None:
    shutil.copytree(made / "my.index", "my.index")
    command = ("index", made / "samples", "-o", "my.index", *M, "--include", "winter/*")
    result = invoke(*command)
    assert (result.exit_code, "12 of its 14 images are not among the inputs" in result.stderr) == (5, True)
    assert "--allow-removal" in result.stderr
    assert invoke("search", "my.index", "a boat", "-k", "14").exit_code == 0
    result = invoke(*command, "--allow-removal")
    assert (result.exit_code, "2 images: 12 removed, 2 unchanged" in result.stderr) == (0, True), result.stderr


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("index", "samples"), 2, "--out is missing: name the folder of the index"),
        (("index", "nothing", "-o", "x.index", *M), 2, "nothing: no such file or folder"),
        (("index", "samples", "-o", "x.index", "-m", "tiny"), 2, "--model tiny"),
        (("index", "samples/winter", "-o", "my.index", *M), 5, "the input root was"),
        (("search", "my.index", "boat " * 100), 2, "too long"),
        (("search", "my.index", "a boat", "-m", "tiny"), 2, "--model tiny: the index was made with tiny-itm"),
        (("search", "my.index", "a boat", "-k", "15"), 2, "-k 15: expected 1 to 14"),
    ],
)
def test_wrong_arguments_are_errors_in_one_line(
    made: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(made)
    result = invoke(*command, *(["--quiet"]))
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.stderr
    assert message in result.stderr
    assert not (made / "x.index/index.json").exists()


def test_an_index_is_made_and_searched_from_python(tmp_path: Path) -> None:
    summary = Index.update(tmp_path / "my.index", SAMPLES, model="tiny-itm", dtype="float32")
    assert (summary.num_images, summary.num_new, summary.complete) == (14, 14, True)
    index = Index.open(tmp_path / "my.index", dtype="float32")
    assert (index.num_images, len(index.names), index.settings["model"]) == (14, 14, "tiny-itm")
    hits = index.search("a boat on the sea", k=2)
    assert hits[0].file_name == "holiday/IMG_0001.JPG"
    assert (hits[0].path, hits[0].itm) == (str(SAMPLES.resolve() / hits[0].file_name), None)
    assert hits[0].score >= hits[1].score
    assert index.search("a boat on the sea", rerank=2, k=1)[0].itm is not None
    assert index.search(images=[SAMPLES / "winter/fish.webp"], k=1)[0].file_name == "winter/fish.webp"
    assert "winter/fish.webp" not in [hit.file_name for hit in index.search(like=["winter/fish.webp"], without=["sun"])]
    assert [len(group) for group in index.duplicates(0.5)]
    counts = index.write_sheet(tmp_path / "sheet.html", {"boats": hits})
    assert (counts.num_images, counts.num_missing) == (2, 0)
    with pytest.raises(UsageError, match="exists"):
        index.write_sheet(tmp_path / "sheet.html", {"boats": hits})
    with pytest.raises(TypeError, match="put it in a list"):
        index.search(like="winter/fish.webp")
    with pytest.raises(InputError):
        Index.open(tmp_path)
    with pytest.raises(OutputRefusedError, match="the input root was"):
        Index.update(tmp_path / "my.index", SAMPLES / "winter", model="tiny-itm", dtype="float32")


def test_a_captioning_model_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    result = invoke("index", SAMPLES, "-o", tmp_path / "my.index", "-m", "tiny")
    assert result.exit_code == 2
    assert "family opt, which has no vectors of texts" in result.stderr
    assert "tiny-itm" in result.stderr
