import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest

from blip2cap.decode.image import Decoded
from blip2cap.engine.read_ahead import DecodeAhead, in_batches
from blip2cap.errors import ImageError, OutputError
from blip2cap.records import FAILURES, ImageRef

PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)


def ref_of(number: int) -> ImageRef:
    return ImageRef(path=str(number), name=str(number))


def number_as_width(ref: ImageRef) -> Decoded:
    return Decoded(content=PIXELS, width=int(ref.name), height=1)


def decoded(
    numbers: Iterator[int] | range,
    decode: Callable[[ImageRef], Decoded] = number_as_width,
    *,
    num_threads: int = 4,
    num_ahead: int = 8,
) -> Iterator[tuple[int, Decoded | ImageError]]:
    with closing(DecodeAhead(numbers, ref_of, decode, num_threads=num_threads, num_ahead=num_ahead)) as ahead:
        yield from (result for result in ahead.results() if result is not None)


def workers() -> list[str]:
    """Name the threads of the module that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "source"))]


def widths(results: Iterator[tuple[int, Decoded | ImageError]]) -> list[tuple[int, int]]:
    return [(number, image.width) for number, image in results if isinstance(image, Decoded)]


@pytest.mark.parametrize(("num_threads", "num_ahead"), [(1, 1), (1, 8), (4, 2), (4, 16), (16, 64)])
def test_order_is_kept_whatever_the_threads_do(num_threads, num_ahead):
    rng = random.Random(num_threads)
    delays = [rng.uniform(0, 0.003) for _ in range(100)]

    def slow(ref: ImageRef) -> Decoded:
        time.sleep(delays[int(ref.name)])
        return number_as_width(ref)

    results = decoded(range(100), slow, num_threads=num_threads, num_ahead=num_ahead)
    assert widths(results) == [(number, number) for number in range(100)]


def test_images_are_decoded_side_by_side():
    together = threading.Barrier(4)

    def meets_others(ref: ImageRef) -> Decoded:
        together.wait(10)
        return number_as_width(ref)

    assert len(widths(decoded(range(8), meets_others))) == 8


@pytest.mark.parametrize("num_ahead", [1, 5, 16])
def test_no_more_is_read_or_decoded_than_allowed(num_ahead):
    read = started = 0
    lock = threading.Lock()

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(100):
            read += 1
            yield number

    def counted(ref: ImageRef) -> Decoded:
        nonlocal started
        with lock:
            started += 1
        return number_as_width(ref)

    most = 0
    for taken, _ in enumerate(decoded(numbers(), counted, num_ahead=num_ahead)):
        most = max(most, read - taken, started - taken)
    assert most == num_ahead
    assert read == started == 100


def test_decoding_begins_before_the_first_image_is_asked_for():
    begun = threading.Event()

    def decode(ref: ImageRef) -> Decoded:
        begun.set()
        return number_as_width(ref)

    with closing(DecodeAhead(range(3), ref_of, decode, num_threads=1, num_ahead=4)):
        assert begun.wait(10)
    assert not workers()


@pytest.mark.parametrize(("size", "most"), [(10, 10), (40, 2), (100, 1), (300, 1)])
def test_images_that_hold_bytes_are_bounded_by_those(monkeypatch, size, most):
    monkeypatch.setattr("blip2cap.engine.read_ahead._MOST_HELD", 100)
    num_read = 0

    def refs() -> Iterator[ImageRef]:
        nonlocal num_read
        for number in range(60):
            num_read += 1
            yield ImageRef(path="x", name=str(number), num_held=size)

    most_ahead = num_taken = 0
    with closing(DecodeAhead(refs(), lambda ref: ref, number_as_width, num_threads=2, num_ahead=64)) as ahead:
        for result in ahead.results():
            if result is not None:
                time.sleep(0.001)
                most_ahead = max(most_ahead, num_read - num_taken)
                num_taken += 1
    assert num_taken == 60
    assert most_ahead <= most + 1  # and the one that waits for room


def test_closing_lets_go_a_source_that_waits_for_room(monkeypatch):
    monkeypatch.setattr("blip2cap.engine.read_ahead._MOST_HELD", 100)
    second = threading.Event()

    def refs() -> Iterator[ImageRef]:
        yield ImageRef(path="x", name="0", num_held=80)
        second.set()
        yield ImageRef(path="x", name="1", num_held=80)

    with closing(DecodeAhead(refs(), lambda ref: ref, number_as_width, num_threads=1, num_ahead=64)):
        assert second.wait(10)
        time.sleep(0.05)
    assert not workers()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("decoder lost its way"),
        ZeroDivisionError(),
        RecursionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        AssertionError("never"),
        SystemError("C code returned NULL"),
        StopIteration(),
    ],
    ids=repr,
)
def test_whatever_a_decoder_raises_becomes_an_image_error(error):
    def breaks(ref: ImageRef) -> Decoded:
        if ref.name == "1":
            raise error
        return number_as_width(ref)

    results = dict(decoded(range(3), breaks))
    assert list(results) == [0, 1, 2]
    bad = results[1]
    assert isinstance(bad, ImageError)
    assert bad.code == "decoder_crashed"
    assert bad.detail == f"{type(error).__name__}: {error}"
    assert isinstance(results[0], Decoded)
    assert isinstance(results[2], Decoded)


@pytest.mark.parametrize(
    ("error", "code"), [(ImageError("truncated", "half of it"), "truncated"), (MemoryError(), "out_of_memory")]
)
def test_an_error_with_a_code_of_its_own_keeps_it(error, code):
    def breaks(ref: ImageRef) -> Decoded:
        raise error

    ((_, bad),) = decoded(range(1), breaks)
    assert isinstance(bad, ImageError)
    assert bad.code == code
    assert code in FAILURES


def test_an_image_that_fails_leaves_nothing_of_its_decoder_behind():
    def fails(ref):
        try:
            raise OSError("torn")
        except OSError as error:
            raise ImageError("corrupt", "torn") from error

    ((_, error),) = decoded(range(1), fails)
    assert isinstance(error, ImageError)
    assert (str(error), error.__traceback__, error.__cause__) == ("corrupt: torn", None, None)


def test_a_slow_source_holds_back_nothing_that_is_there(monkeypatch):
    monkeypatch.setattr("blip2cap.engine.read_ahead._PATIENCE_S", 0.02)
    more = threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(3)
        assert more.wait(10)
        yield 3

    with closing(DecodeAhead(numbers(), ref_of, number_as_width, num_threads=2, num_ahead=8)) as ahead:
        batches = in_batches(ahead.results(), lambda: 100)
        assert [number for number, _ in next(batches)] == [0, 1, 2]
        assert next(batches) == []
        more.set()
        while not (batch := next(batches)):
            pass
        assert [number for number, _ in batch] == [3]
        assert next(batches, None) is None


def test_a_run_that_is_stopped_does_not_wait_for_its_source_or_a_hanging_file(monkeypatch):
    monkeypatch.setattr("blip2cap.engine.read_ahead._PATIENCE_S", 0.02)
    go_on = threading.Event()

    def waits_for_ever() -> Iterator[int]:
        yield 0
        go_on.wait(10)

    with closing(DecodeAhead(waits_for_ever(), ref_of, number_as_width, num_threads=1, num_ahead=4)) as ahead:
        seen: list[object] = []
        results = ahead.results(stopped=lambda: bool(seen))
        seen.append(next(results))
        assert list(results) == []
    go_on.set()
    while workers():
        time.sleep(0.01)


def test_an_image_that_hangs_fails_as_timeout_and_holds_up_no_other(monkeypatch):
    monkeypatch.setattr("blip2cap.engine.read_ahead._PATIENCE_S", 0.02)
    monkeypatch.setattr("blip2cap.decode.threads._CLOSE_S", 0.02)
    go_on = threading.Event()

    def hangs(ref: ImageRef) -> Decoded:
        if ref.name in ("2", "3", "9"):
            go_on.wait(10)
        return number_as_width(ref)

    with closing(DecodeAhead(range(10), ref_of, hangs, num_threads=1, num_ahead=3, timeout_s=0.1)) as ahead:
        results = [result for result in ahead.results() if result is not None]
    assert [number for number, _ in results] == list(range(10))
    bad = {number: image for number, image in results if isinstance(image, ImageError)}
    assert list(bad) == [2, 3, 9]
    assert {error.code for error in bad.values()} == {"timeout"}
    go_on.set()
    while workers():
        time.sleep(0.01)


def test_waiting_for_the_source_or_for_a_slow_but_steady_decoder_is_no_timeout(monkeypatch):
    monkeypatch.setattr("blip2cap.engine.read_ahead._PATIENCE_S", 0.02)

    def numbers() -> Iterator[int]:
        for number in range(4):
            time.sleep(0.1)
            yield number

    def slow(ref: ImageRef) -> Decoded:
        time.sleep(0.1)
        return number_as_width(ref)

    with closing(DecodeAhead(numbers(), ref_of, slow, num_threads=1, num_ahead=9, timeout_s=0.5)) as ahead:
        results = [result for result in ahead.results() if result is not None]
    assert widths(iter(results)) == [(number, number) for number in range(4)]


def test_what_is_no_fault_of_an_image_ends_the_run():
    def breaks(ref: ImageRef) -> Decoded:
        raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        list(decoded(range(3), breaks))
    assert not workers()


def test_closing_early_leaves_no_work_running():
    started = []

    def slow(ref: ImageRef) -> Decoded:
        started.append(ref.name)
        time.sleep(0.02)
        return number_as_width(ref)

    results = decoded(range(1_000), slow, num_threads=2, num_ahead=64)
    next(results)
    results.close()  # type: ignore[attr-defined]
    num_started = len(started)
    assert not workers()
    assert num_started < 64
    time.sleep(0.05)
    assert len(started) == num_started


def test_an_error_of_the_consumer_leaves_no_work_running():
    results = decoded(range(1_000))
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not workers()


def test_an_error_of_the_source_comes_through_and_leaves_no_work_running():

    def numbers() -> Iterator[int]:
        yield 0
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(decoded(numbers()))
    assert not workers()


def test_no_images_give_nothing():
    assert list(decoded(range(0))) == []


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(0, 3, []), (2, 3, [2]), (3, 3, [3]), (7, 3, [3, 3, 1]), (3, 1, [1, 1, 1])]
)
def test_batches_are_full_but_for_the_last(count, size, lengths):
    batches = list(in_batches(range(count), lambda: size))
    assert [len(batch) for batch in batches] == lengths
    assert [item for batch in batches for item in batch] == list(range(count))


def test_a_batch_is_made_of_no_more_than_it_needs():
    items = iter(range(10))
    next(in_batches(items, lambda: 4))
    assert next(items) == 4
