"""Images decoded in separate processes: the same pixels, and any failure costs one image."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import cache
from pathlib import Path

import psutil
import pytest
from PIL import ExifTags, Image

from blip2cap.decode import isolate
from blip2cap.decode.image import Resizer, decode
from blip2cap.decode.isolate import Isolation
from blip2cap.errors import ImageError, UsageError
from blip2cap.models.blip2.resize import resize_pixels
from blip2cap.options import DecodeOptions
from tests import crashing
from tests.pictures import encode, photo

SIZE = 32
ROOT = Path(__file__).parent.parent


@cache
def files() -> dict[str, bytes]:
    """Make one file of every kind that is decoded differently."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    large, small = photo(321, 243), photo(50, 20)
    whole = {format: encode(large, format) for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000")}
    return whole | {
        "GIF": encode(large.quantize(64), "GIF"),
        "16 bits": encode(Image.new("I;16", (90, 70), 12345), "PNG"),
        "CMYK": encode(large.convert("CMYK"), "JPEG"),
        "transparent": encode(Image.new("RGBA", (90, 70), (9, 99, 199, 77)), "PNG"),
        "sideways": encode(large, "JPEG", exif=exif),
        "small": encode(small, "PNG"),
        "of the size": encode(photo(SIZE, SIZE), "PNG"),
        "progressive": encode(photo(640, 480), "JPEG", progressive=True),
    }


BAD = {
    "empty": b"",
    "text": b"this is no picture",
    "half": encode(photo(), "PNG")[:2000],
    "large": encode(Image.new("1", (2000, 2000)), "PNG"),
}


@pytest.fixture
def isolation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolation]:
    """Workers whose decoders may misbehave."""
    monkeypatch.setattr(isolate, "PROGRAM", crashing.PROGRAM)
    with closing(Isolation(DecodeOptions(timeout_s=60), SIZE, None)) as isolation:
        yield isolation


def failure(isolation: Isolation, width: int) -> str:
    """Decode a picture that fails; return the error."""
    with pytest.raises(ImageError) as caught:
        isolation.decode(crashing.picture(width))
    return str(caught.value)


def is_fine(isolation: Isolation) -> bool:
    """Return whether other pictures are still decoded."""
    data = encode(photo(), "JPEG")
    return bool((isolation.decode(data).pixels_HWC == decode(data, SIZE, DecodeOptions()).pixels_HWC).all())


def workers(parent: int | None = None) -> list[psutil.Process]:
    """List the worker processes of an Isolation; earlier tests may have left others, such as a zygote."""
    alive = [each for each in psutil.Process(parent).children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in alive if "-P" in each.cmdline()]


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    """Wait until processes have ended; zombies count as ended."""
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
        time.sleep(0.01)


@pytest.mark.parametrize("resizer", [None, resize_pixels], ids=["Pillow resizes", "torch resizes"])
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_pixels_are_those_of_the_fast_way_bit_for_bit(mode: str, resizer: Resizer | None) -> None:
    options = DecodeOptions(mode=mode)
    with closing(Isolation(options, SIZE, resizer)) as isolation:
        for name, data in files().items():
            expected, decoded = decode(data, SIZE, options, resizer), isolation.decode(data)
            assert (decoded.pixels_HWC == expected.pixels_HWC).all(), name
            assert (decoded.width, decoded.height, decoded.digest) == (expected.width, expected.height, expected.digest)
            assert decoded.pixels_HWC.flags.writeable


def test_what_is_wrong_with_an_image_is_said_in_the_same_words() -> None:
    options = DecodeOptions(max_pixels=1_000_000)
    with closing(Isolation(options, SIZE, None)) as isolation:
        for data in BAD.values():
            said = []
            for way in (isolation.decode, lambda data: decode(data, SIZE, options)):
                with pytest.raises(ImageError) as caught:
                    way(data)
                said.append(str(caught.value))
            assert said[0] == said[1]
        assert len(workers()) == 1  # none of them has cost it


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (crashing.SEGFAULT, "was ended by SIGSEGV"),
        (crashing.KILLED, "was ended by SIGKILL"),
        (crashing.EXIT, "ended with code 7"),
        (crashing.NONSENSE, "sent no valid response"),
    ],
)
def test_a_crash_costs_its_image_only_and_the_worker_is_replaced(isolation: Isolation, width: int, said: str) -> None:
    assert is_fine(isolation)
    (before,) = workers()
    assert failure(isolation, width) == f"decoder_crashed: the process that decoded it {said}"
    assert is_fine(isolation)
    (after,) = workers()
    assert before.pid != after.pid


def test_images_in_work_beside_a_crash_are_not_touched(isolation: Isolation) -> None:
    def do(number: int) -> bool:
        if number % 3 == 1:
            return failure(isolation, crashing.SEGFAULT).startswith("decoder_crashed")
        return is_fine(isolation)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(do, range(9)))


@pytest.mark.parametrize("width", crashing.ANSWERS)
def test_a_worker_that_was_taken_over_is_not_believed(
    isolation: Isolation, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(isolate, "_LEAST_S", 0.2)  # it is waited for
    said = "decoder_crashed: the process that decoded it sent no valid response"
    assert failure(isolation, width) == said
    assert not isolation._idle
    assert is_fine(isolation)


GOOD_ANSWER = {"width": 90, "height": 70, "shape": [70, 90, 3]}


@pytest.mark.parametrize(
    ("answer", "to_square", "is_good"),
    [
        ({}, False, True),
        ({"shape": [SIZE, SIZE, 3]}, False, True),
        ({"shape": [SIZE, SIZE, 3]}, True, True),
        ({"shape": [35, 45, 3]}, False, True),
        ({}, True, False),
        ({"shape": [71, 90, 3]}, False, False),
        ({"shape": [70, 91, 3]}, False, False),
        ({"shape": [SIZE, SIZE - 1, 3]}, False, False),
        ({"shape": [70, 90, 4]}, False, False),
        ({"shape": [70, 90]}, False, False),
        ({"shape": [70, 90, 3, 1]}, False, False),
        ({"shape": [70.0, 90, 3]}, False, False),
        ({"shape": [-70, -90, 3]}, False, False),
        ({"shape": None}, False, False),
        ({"width": True, "shape": [SIZE, SIZE, 3]}, True, False),
        ({"height": 0, "shape": [SIZE, SIZE, 3]}, True, False),
        ({"width": 90.5, "shape": [SIZE, SIZE, 3]}, True, False),
        ({"width": 1001, "height": 1000, "shape": [SIZE, SIZE, 3]}, True, False),
    ],
)
def test_sizes_are_those_that_an_image_can_have(answer: dict[str, object], to_square: bool, is_good: bool) -> None:
    with nullcontext() if is_good else pytest.raises((ValueError, TypeError)):
        isolate._sizes(GOOD_ANSWER | answer, SIZE, 1_000_000, to_square=to_square)


def test_a_byte_now_and_then_makes_no_time_limit_longer(isolation: Isolation) -> None:
    assert is_fine(isolation)
    isolation.options = DecodeOptions(timeout_s=0.01)
    assert failure(isolation, crashing.DRIP).startswith("timeout: it takes more than 1 s")
    isolation.options = DecodeOptions()
    assert is_fine(isolation)


@pytest.mark.parametrize("width", [crashing.HANG, pytest.param(crashing.HANG_WITH_LOCK, marks=pytest.mark.long)])
def test_a_decoder_that_hangs_is_ended_when_its_time_is_over(isolation: Isolation, width: int) -> None:
    assert is_fine(isolation)
    before = workers()
    isolation.options = DecodeOptions(timeout_s=0.01)
    assert failure(isolation, width).startswith("timeout: it takes more than 1 s")
    wait_for_the_end_of(before)
    isolation.options = DecodeOptions()
    assert is_fine(isolation)


def test_more_memory_than_is_allowed_costs_the_image_only() -> None:
    huge, small = encode(Image.new("L", (4_000, 4_000)), "PNG"), encode(photo(), "PNG")
    with closing(Isolation(DecodeOptions(max_memory=30_000_000), SIZE, None)) as isolation:
        for _ in range(2):
            with pytest.raises(ImageError, match="out_of_memory: it takes more than 30,000,000 bytes"):
                isolation.decode(huge)
            assert isolation.decode(small).width == 80
    with closing(Isolation(DecodeOptions(), SIZE, None)) as isolation:
        assert isolation.decode(huge).width == 4_000


def test_memory_without_end_is_never_given(isolation: Isolation) -> None:
    assert failure(isolation, crashing.EAT_MEMORY).startswith("out_of_memory")
    assert is_fine(isolation)


def test_what_a_decoder_prints_goes_nowhere(isolation: Isolation, capfd: pytest.CaptureFixture[str]) -> None:
    assert isolation.decode(crashing.picture(crashing.PRINT)).width == crashing.PRINT
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_cannot_start_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "PROGRAM", "import no_such_module")
    with (
        closing(Isolation(DecodeOptions(), SIZE, None)) as isolation,
        pytest.raises(UsageError, match=r"No module named 'no_such_module'\. Use fewer num_threads"),
    ):
        isolation.decode(crashing.picture(40))


def test_a_worker_imports_nothing_heavy_and_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIL", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger has written this')")
    program = "from blip2cap.decode.worker import main; import sys; assert 'torch' not in sys.modules; main()"
    monkeypatch.setattr(isolate, "PROGRAM", program)
    monkeypatch.chdir(tmp_path)
    with closing(Isolation(DecodeOptions(), SIZE, None)) as isolation:
        assert is_fine(isolation)


def test_ctrl_c_in_the_terminal_is_not_for_workers(isolation: Isolation) -> None:
    assert is_fine(isolation)
    (worker,) = workers()
    assert os.getpgid(worker.pid) != os.getpgrp()
    os.kill(worker.pid, signal.SIGINT)
    assert is_fine(isolation)
    assert workers() == [worker]


def test_workers_end_when_they_are_not_needed_any_more() -> None:
    with closing(Isolation(DecodeOptions(), SIZE, None)) as isolation:
        assert is_fine(isolation)
        assert len(workers()) == 1
    assert not workers()


def test_an_end_in_the_middle_of_an_image_does_not_wait_for_it(isolation: Isolation) -> None:
    assert is_fine(isolation)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(failure, isolation, crashing.HANG)
        while not isolation._busy:
            time.sleep(0.01)
        isolation.close()
        assert "was ended by SIGKILL" in said.result()
    assert not workers()


PARENT = f"""
import sys, threading
from blip2cap.decode import isolate
from blip2cap.options import DecodeOptions
from tests import crashing
isolate.PROGRAM = crashing.PROGRAM
workers = isolate.Isolation(DecodeOptions(), {SIZE}, None)
workers.decode(crashing.picture(40))
for width in map(int, sys.argv[1:]):
    threading.Thread(target=workers.decode, args=(crashing.picture(width),), daemon=True).start()
input()
"""


@pytest.mark.parametrize(
    "widths",
    [
        [],
        *(
            pytest.param(one, marks=pytest.mark.long)
            for one in ([crashing.HANG], [crashing.HANG_WITH_LOCK, crashing.HANG])
        ),
    ],
)
def test_workers_do_not_outlive_a_parent_that_is_killed(widths: list[int]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(str, widths)], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with parent:
        while len(workers(parent.pid)) < max(1, len(widths)):
            assert parent.poll() is None
            time.sleep(0.02)
        time.sleep(0.3 if widths else 0)  # until they are in the middle of it
        orphans = workers(parent.pid)
        parent.kill()
        parent.communicate()
        wait_for_the_end_of(orphans)
