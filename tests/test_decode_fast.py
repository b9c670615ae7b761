"""Large JPEGs are reduced while they are decoded, and nothing else changes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from blip2cap.captioner import Captioner
from blip2cap.decode.image import Decoded, decode
from blip2cap.errors import ImageError, UsageError
from blip2cap.options import DecodeOptions
from blip2cap.tiny.scenes import draw
from tests.commands import TINY, invoke, read_rows
from tests.pictures import encode, photo

EXACT = DecodeOptions(mode="exact")
FAST = DecodeOptions()
LARGE = (640, 480)
SIZE = 64
"""At which LARGE is reduced by 2, to 320 x 240; by 4, 120 rows would be less than twice this."""


def scene(width: int = 640, height: int = 480) -> Image.Image:
    """A picture with hard edges, different in every corner."""
    return draw(3, (width, height)).image


def jpeg(image: Image.Image, **options: object) -> bytes:
    return encode(image, "JPEG", **({"quality": 90} | options))


def both(data: bytes, size: int = SIZE) -> tuple[Decoded, Decoded]:
    """Decode in full and fast."""
    return decode(data, size, EXACT), decode(data, size, FAST)


def levels(exact: Decoded, fast: Decoded) -> np.ndarray:
    """Return by how much the pixels differ."""
    return np.abs(exact.pixels_HWC.astype(int) - fast.pixels_HWC)


def assert_close(exact: Decoded, fast: Decoded) -> None:
    """Check that two results show the same, and that one of them was made another way."""
    difference = levels(exact, fast)
    assert 0 < difference.max() <= 24
    assert difference.mean() < 1
    assert (fast.width, fast.height) == (exact.width, exact.height)
    assert fast.pixels_HWC.shape == exact.pixels_HWC.shape


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes at which JPEGs were decoded."""
    sizes: list[tuple[int, int]] = []
    load_prepare = JpegImageFile.load_prepare

    def watched(image: JpegImageFile) -> None:
        sizes.append(image.size)
        load_prepare(image)

    monkeypatch.setattr(JpegImageFile, "load_prepare", watched)
    return sizes


def test_fast_is_the_default():
    assert DecodeOptions().mode == "fast"


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((640, 480), 112, (320, 240)),
        ((640, 480), 120, (320, 240)),
        ((640, 480), 121, (640, 480)),
        ((641, 483), 60, (161, 121)),
        ((640, 64), 16, (320, 32)),
        ((64, 640), 17, (64, 640)),
        ((2000, 1600), 16, (250, 200)),
    ],
)
def test_neither_side_comes_below_twice_the_size_of_the_model(reduced, shape, size, expected):
    data = jpeg(Image.new("RGB", shape))
    decode(data, size, FAST)
    decode(data, size, EXACT)
    assert reduced == [expected, shape]


@pytest.mark.parametrize("size", [16, 64, 112])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str
)
@pytest.mark.parametrize("picture", [photo, scene])
def test_fast_pixels_are_close_to_the_exact_ones(picture, options, size):
    assert_close(*both(jpeg(picture(*LARGE), **options), size))


@pytest.mark.parametrize("shape", [(633, 479), (639, 473), (521, 519), (1025, 1030)])
def test_sizes_that_are_no_multiple_are_not_stretched(shape):
    """Slanting waves: what lies beyond the edge of the picture would move them by up to half a pixel."""
    y, x = np.mgrid[: shape[1], : shape[0]]
    waves = 127.5 + 120 * np.sin((x + y) / 24)
    data = jpeg(Image.fromarray(waves.astype(np.uint8)).convert("RGB"), quality=95)
    assert levels(*both(data, 32)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_and_cmyk_are_reduced_too(reduced, mode, progressive):
    exact, fast = both(jpeg(scene().convert(mode), progressive=progressive))
    assert reduced == [LARGE, (320, 240)]
    assert_close(exact, fast)
    if mode == "L":
        assert (fast.pixels_HWC == fast.pixels_HWC[:, :, :1]).all()


def test_an_mpo_shows_its_first_picture(reduced):
    data = encode(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", LARGE, "red")], quality=90)
    exact, fast = both(data)
    assert_close(exact, fast)
    assert levels(fast, decode(jpeg(scene()), SIZE, FAST)).max() == 0
    assert reduced[:2] == [LARGE, (320, 240)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(640, 480), (637, 475)])
def test_the_picture_is_upright_and_its_size_as_displayed_in_full(shape, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = jpeg(scene(*shape), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        displayed = ImageOps.exif_transpose(image)
    exact, fast = both(data)
    assert_close(exact, fast)
    assert (fast.width, fast.height) == displayed.size
    assert sorted(displayed.size) == sorted(shape)


@pytest.mark.parametrize("shape", [(80, 60), (224, 1000), (1000, 255), (255, 255)])
def test_small_jpegs_are_the_same_bit_for_bit(shape):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for options in ({}, {"exif": exif}, {"progressive": True}):
        assert levels(*both(jpeg(photo(*shape), **options), 128)).max() == 0


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_are_the_same_bit_for_bit(format):
    assert levels(*both(encode(scene(), format), 16)).max() == 0


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_exact_is_what_pillow_makes_of_the_whole_picture(orientation, options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = jpeg(photo(*LARGE), exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert (decode(data, SIZE, EXACT).pixels_HWC == expected).all()
    assert (decode(data, SIZE, FAST).pixels_HWC != expected).any()


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_jpeg_is_truncated_however_it_is_decoded(mode, options, share):
    """Longer than the 64 KiB that Pillow reads at a time."""
    data = jpeg(photo(*LARGE).convert(mode), **options)
    assert len(data) > 70_000
    for chosen in (EXACT, FAST):
        with pytest.raises(ImageError) as caught:
            decode(data[: int(len(data) * share)], SIZE, chosen)
        assert caught.value.code == "truncated"


def test_damaged_jpegs_come_to_the_same_end_however_they_are_decoded():
    def end(data: bytes, options: DecodeOptions) -> tuple[str, int, int]:
        try:
            decoded = decode(data, 16, options)
        except ImageError as error:
            return error.code, 0, 0
        return "ok", decoded.width, decoded.height

    rng, ends = np.random.default_rng(0), []
    for whole in (jpeg(photo(160, 120)), jpeg(photo(160, 120), progressive=True)):
        for _ in range(150):
            data = bytearray(whole)
            for place in rng.integers(0, 700, 4):
                data[place] = rng.integers(256)
            ends.append((end(bytes(data), EXACT), end(bytes(data), FAST)))
    assert all(exact == fast for exact, fast in ends)
    assert {exact[0] for exact, _ in ends} >= {"ok", "corrupt"}


@pytest.mark.parametrize("options", [EXACT, FAST], ids=lambda options: options.mode)
def test_a_jpeg_is_decoded_in_one_piece(monkeypatch, options):
    """Between two pieces a thread would wait for the interpreter's lock."""
    data = jpeg(photo(*LARGE))
    pieces: list[int] = []
    load_read = JpegImageFile.load_read

    def watched(image: JpegImageFile, read_bytes: int) -> bytes:
        pieces.append(len(piece := load_read(image, read_bytes)))
        return piece

    monkeypatch.setattr(JpegImageFile, "load_read", watched)
    decode(data, SIZE, options)
    assert pieces == [len(data)]
    assert len(data) > 70_000


def test_the_limit_holds_for_the_full_size():
    data = jpeg(scene())
    assert decode(data, SIZE, DecodeOptions(max_pixels=640 * 480)).width == 640
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE, DecodeOptions(max_pixels=640 * 480 - 1))
    assert caught.value.code == "too_large"


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"^mode quick: must be one of fast, exact\.$"):
        DecodeOptions(mode="quick")


def test_the_python_interface_decodes_as_it_is_told(tmp_path, reduced):
    path = tmp_path / "scene.jpg"
    path.write_bytes(jpeg(scene()))
    for options, expected in ((None, (320, 240)), (EXACT, LARGE)):
        captioner = Captioner.load("tiny", device="cpu", decode=options)
        captioner.caption([path])
        assert [(row.width, row.height) for row in captioner.caption_folder(tmp_path)] == [LARGE]
        assert reduced == [expected, expected]
        reduced.clear()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two JPEGs that the small model takes reduced; the current one is beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in (3, 4):
        draw(seed).image.save(folder / f"{seed}.jpg", quality=90)
    return folder


COMMANDS = {"caption": ("captions.jsonl",), "vqa": ("answers.jsonl", "-q", "is it day or night?")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_goes_on_only_as_it_began(images: Path, command: str) -> None:
    out, *asked = COMMANDS[command]
    arguments: tuple[str | Path, ...] = (command, images, *TINY, *asked)
    path, manifest = Path(out), Path(f"{out}.run.json")
    assert invoke(*arguments, "--limit", "1").exit_code == 0
    assert json.loads(manifest.read_text())["settings"]["decode"] == "fast"
    for flags in ([], ["--dry-run"]):
        refused = invoke(*arguments, *flags, "--decode", "exact")
        assert refused.exit_code == 5
        assert f'{out} was made with other settings: --decode was "fast", now "exact". Give' in refused.stderr
    assert len(read_rows(path)) == 1
    assert invoke(*arguments, "--decode", "fast").exit_code == 0
    assert [(row["width"], row["height"], row["status"]) for row in read_rows(path)] == [(640, 480, "ok")] * 2


def test_rows_from_before_there_was_a_choice_are_exact(images: Path) -> None:
    invoke("caption", images, *TINY, "--limit", "1", "--decode", "exact")
    path = Path("captions.jsonl.run.json")
    content = json.loads(path.read_text())
    assert content["settings"].pop("decode") == "exact"
    path.write_text(json.dumps(content))
    refused = invoke("caption", images, *TINY)
    assert refused.exit_code == 5
    assert '--decode was "exact", now "fast"' in refused.stderr
    assert invoke("caption", images, *TINY, "--decode", "exact").exit_code == 0
    assert len(read_rows(Path("captions.jsonl"))) == 2


def test_an_unknown_mode_on_the_command_line_is_refused(images: Path) -> None:
    for command, (_, *asked) in COMMANDS.items():
        result = invoke(command, images, *asked, "--decode", "quick")
        assert result.exit_code == 2
        assert "--decode quick: must be one of fast, exact." in result.stderr
