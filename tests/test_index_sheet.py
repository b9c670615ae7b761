"""The contact sheet as a parser and as a browser see it."""

from __future__ import annotations

import base64
import glob
import io
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2cap.errors import ImageError, OutputError, UsageError
from blip2cap.index.sheet import Card, Section, SheetCounts, write_sheet
from blip2cap.index.target import HTML, check_target
from blip2cap.index.thumbnails import SIZE, Thumbnail, make_thumbnails
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from tests.test_cli_names import STEERING, hostile_names

MARKUP = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload="document.title=\'owned\'">',
    "' onmouseover='x' a='",
    "</bdi></div></li></ol><h1>owned</h1>",
    "</style></title><iframe src=javascript:alert(1)>",
    "--><!-- ]]> &lt;b&gt; &#60;b&#62; &amp",
]
COLOURS = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220)}


class Page(HTMLParser):
    """Every element of a page with its attributes, and all of its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)

    handle_comment = handle_pi = unknown_decl

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        Image.new("RGB", (400, 300), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def card(path: Path, name: str = "", **more: Any) -> Card:
    return Card(ref=ImageRef(path=str(path), name=name or path.name), **more)


def write(folder: Path, *sections: Section, title: str = "Title", note: str = "") -> Page:
    write_sheet(str(folder / "sheet.html"), sections, title=title, note=note, decode=DecodeOptions(num_threads=1))
    return Page((folder / "sheet.html").read_text(encoding="utf-8"))


def test_a_sheet_holds_thumbnails_names_scores_and_texts_in_order(pictures: Path) -> None:
    cards = tuple(card(pictures / f"{name}.png", scores="0.5", text=f"a {name} sheet") for name in COLOURS)
    page = write(pictures, Section(heading="a sheet", note="3 of 3", cards=cards), note="3 images")
    assert page.texts == [
        *("Title", "Title", "3 images", "a sheet", "3 of 3"),
        *(text for name in COLOURS for text in ("0.5", f"{name}.png", f"a {name} sheet")),
        "3 images.",
    ]
    for attributes, (name, colour) in zip(page.all("img"), COLOURS.items(), strict=True):
        assert attributes["alt"] == f"{name}.png"
        kind, _, data = str(attributes["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (int(str(attributes["width"])), int(str(attributes["height"]))) == (SIZE, 240)
        assert max(abs(a - b) for a, b in zip(image.getpixel((9, 9)), colour, strict=True)) < 8  # type: ignore[arg-type]
    assert not page.open


def test_hostile_names_texts_and_queries_add_no_element_and_no_attribute(pictures: Path) -> None:
    names = [*MARKUP, *(os.fsdecode(name) for name in hostile_names())]

    def sheet(words: list[str]) -> Page:
        cards = tuple(card(pictures / "red.png", name) for name in words[::40])
        missing = tuple(card(pictures / "no.png", name, scores=name, text=name) for name in words)
        queries = tuple(Section(heading=name, note=name, cards=()) for name in words)
        every = Section(heading="all", cards=cards + missing)
        return write(pictures, every, *queries, title=words[0], note=words[0])

    ordinary, hostile = sheet(["x"] * len(names)), sheet(names)
    assert hostile.shape == ordinary.shape
    assert not STEERING.search((pictures / "sheet.html").read_bytes().decode("utf-8"))
    assert {*MARKUP} <= {*hostile.texts}


def test_the_policy_allows_the_own_style_and_images_inside_and_nothing_else(pictures: Path) -> None:
    page = write(pictures, Section(heading="", cards=(card(pictures / "red.png"),)))
    first, second = page.all("meta")[:2]
    assert first == {"charset": "utf-8"}
    assert second["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.strip().split(" ", 1) for rule in str(second["content"]).split(";"))
    style = rules.pop("style-src")
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", style)
    loading = {"src", "href", "style", "srcset", "data", "action"}
    assert {name for _, names in page.shape for name in names} & loading == {"src"}


@pytest.mark.parametrize("isolate", [False, True])
def test_an_image_that_cannot_be_read_has_its_reason_in_its_place(pictures: Path, isolate: bool) -> None:
    (pictures / "text.png").write_text("no image")
    os.mkfifo(pictures / "fifo.png")
    refs = [ImageRef(path=str(pictures / name), name=name) for name in ("text.png", "red.png", "no.png", "fifo.png")]
    found = [*make_thumbnails(refs, DecodeOptions(isolate=isolate, num_threads=1))]
    codes = [each.code if isinstance(each, ImageError) else (each.width, each.height) for each in found]
    assert codes == ["not_an_image", (320, 240), "vanished", "not_regular"]
    cards = tuple(Card(ref=ref) for ref in refs)
    counts = write_sheet(
        str(pictures / "sheet.html"), [Section(heading="", cards=cards)], title="", decode=DecodeOptions()
    )
    assert counts == SheetCounts(num_images=4, num_missing=3)
    page = Page((pictures / "sheet.html").read_text(encoding="utf-8"))
    assert [text for text in page.texts if text in ("not an image", "vanished", "not regular")] == [
        *("not an image", "vanished", "not regular")
    ]
    assert "4 images, 3 of them without a picture." in page.texts


@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1), (30, 20), (320, 320), (2000, 1000)])
def test_a_thumbnail_keeps_the_aspect_ratio_and_is_never_larger_than_the_image(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "image.png")
    (made,) = make_thumbnails([ImageRef(path=str(tmp_path / "image.png"), name="image.png")], DecodeOptions())
    assert isinstance(made, Thumbnail)
    scale = min(1, SIZE / max(size))
    assert (made.width, made.height) == tuple(max(1, round(side * scale)) for side in size)
    assert Image.open(io.BytesIO(made.jpeg)).size == (made.width, made.height)


def test_an_interrupted_sheet_leaves_the_old_one_and_no_other_file(pictures: Path) -> None:
    write(pictures, Section(heading="old", cards=(card(pictures / "red.png"),)))
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}

    def sections() -> Any:
        yield Section(heading="new", cards=(card(pictures / "red.png"),))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sheet(str(pictures / "sheet.html"), sections(), title="", decode=DecodeOptions())
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("sheet.txt", UsageError, "must end in .html or .htm"),
        ("old.html", UsageError, "--html .*old.html: exists. Use another --html, or --overwrite"),
        ("folder.html", OutputError, "Is a directory"),
        ("fifo.html", OutputError, "not a regular file"),
        ("link.html", OutputError, "not a regular file"),
        ("no/sheet.html", OutputError, "there is no folder"),
    ],
)
def test_what_is_no_new_file_is_refused_and_left(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "old.html").touch()
    os.mkfifo(tmp_path / "fifo.html")
    (tmp_path / "link.html").symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error) as raised:
        check_target(str(tmp_path / name), flag="--html", suffixes=HTML)
    assert re.search(message, raised.value.message)  # type: ignore[attr-defined]
    if error is OutputError:
        with pytest.raises(error):
            write_sheet(str(tmp_path / name), [], title="", decode=DecodeOptions())
        check_target(str(tmp_path / "old.html"), flag="--html", suffixes=HTML, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path) -> None:
    from blip2cap.outputs.files import OsFiles

    class Full(OsFiles):
        def write(self, file: int, data: bytes | memoryview) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        write_sheet(str(tmp_path / "sheet.html"), [], title="", decode=DecodeOptions(), files=Full())
    assert [*tmp_path.iterdir()] == []


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    playwright = glob.glob(os.path.expanduser("~/.cache/ms-playwright/chromium*/chrome-linux*/*chrom*"))
    programs = [path for path in playwright if os.access(path, os.X_OK) and os.path.isfile(path)]
    return next(filter(None, (*map(shutil.which, names), *programs)), None)


def browse(*arguments: str, profile: Path) -> subprocess.CompletedProcess[str]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed")
    return subprocess.run(
        [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", "--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=2000"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(500, True), (1200, False)])  # Chromium has no narrower window than 500
def test_a_browser_shows_the_grid_in_light_and_dark_and_runs_nothing(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory, width: int, dark: bool
) -> None:
    Image.new("RGB", (100, 900), (230, 0, 230)).save(pictures / "tall.png")
    cards = [*(card(pictures / f"{name}.png", scores="0.5") for name in (*COLOURS, "tall")), card(pictures / "no.png")]
    hostile = tuple(card(pictures / "no.png", name, scores=name, text=name) for name in MARKUP)
    write(pictures, Section(heading="colours", cards=tuple(cards)), Section(heading=MARKUP[0], cards=hostile))
    profile = tmp_path_factory.mktemp("profile")
    sheet, scheme = (pictures / "sheet.html").as_uri(), f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shot = pictures / "shot.png"
    done = browse(f"--screenshot={shot}", f"--window-size={width},1000", scheme, sheet, profile=profile)
    assert "CONSOLE" not in done.stderr  # where a browser says that the policy has refused something
    pixels = Image.open(shot).convert("RGB")
    assert pixels.width == width
    counts = Counter(map(tuple, (np.asarray(pixels) // 32).reshape(-1, 3).tolist()))
    page = (22, 23, 21) if dark else (244, 244, 241)
    assert pixels.getpixel((2, 2)) == page
    columns = {500: 2, 1200: 5}[width]
    area = (width / columns) ** 2
    for colour in COLOURS.values():  # 4:3 in a square
        assert 0.5 * area < counts[tuple(each // 32 for each in colour)] < area
    assert 0.05 * area < counts[(7, 0, 7)] < 0.15 * area  # 1:9, in a square as well

    dom = browse("--dump-dom", sheet, profile=profile).stdout
    assert "<title>Title</title>" in dom
    assert Page(dom).shape == Page((pictures / "sheet.html").read_text(encoding="utf-8")).shape


@pytest.mark.slow
def test_the_browser_of_the_tests_would_run_a_script(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<title>Title</title>{MARKUP[0]}")
    assert (
        "owned</title>" in browse("--dump-dom", (tmp_path / "page.html").as_uri(), profile=tmp_path / "profile").stdout
    )
