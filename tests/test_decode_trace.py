from __future__ import annotations

import os
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from blip2cap.decode.trace import Slots, Trace, trace_path
from blip2cap.errors import OutputError
from blip2cap.records import ImageRef


def ref(name: str) -> ImageRef:
    return ImageRef(path=f"/images/{name}", name=name)


A, B, C = ref("a.jpg"), ref("more/b\udcff.jpg"), ref("c.jpg")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return trace_path(tmp_path / "captions.jsonl")


def copy_of(path: Path) -> Trace:
    """Return a copy of the file, as the next run would find it if this one died now."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    return Trace(copy)


def test_it_lies_beside_its_output(tmp_path: Path) -> None:
    assert trace_path(tmp_path / "a.jsonl") == tmp_path / "a.jsonl.decoding"


def test_images_that_are_being_decoded_are_suspected_later_and_no_others(path: Path) -> None:
    with closing(Trace(path)) as trace:
        with trace.decoding(A):
            with trace.decoding(B), trace.decoding(C):
                pass
            with trace.decoding(B):
                later = copy_of(path)
        assert [later.suspects(each) for each in (A, B, C)] == [True, True, False]
        assert later.num_suspects == 2
        assert copy_of(path).num_suspects == 0


def test_an_image_that_fails_is_not_suspected(path: Path) -> None:
    with closing(Trace(path)) as trace:
        with suppress(ValueError), trace.decoding(A):
            raise ValueError
        assert not copy_of(path).suspects(A)


def test_nothing_is_made_before_an_image_comes_and_nothing_stays(path: Path) -> None:
    with closing(Trace(path)) as trace:
        assert not path.exists()
        with trace.decoding(A):
            assert path.exists()
    assert not path.exists()


def test_what_is_suspected_is_not_lost_when_the_next_run_dies_too(path: Path) -> None:
    with Trace(path).decoding(A):
        second = Trace(path)
        with second.decoding(B):
            third = copy_of(path)
    assert [third.suspects(each) for each in (A, B, C)] == [True, True, False]


def test_suspicion_stays_until_every_image_has_been_seen(path: Path) -> None:
    with Trace(path).decoding(A):
        died = path.read_bytes()
    path.write_bytes(died)
    with closing(Trace(path)) as stopped, stopped.decoding(C):
        pass
    assert Trace(path).suspects(A)
    with closing(Trace(path)) as whole, whole.decoding(C):
        whole.forget()
    assert not path.exists()


def test_threads_have_slots_of_their_own(path: Path) -> None:
    refs = [ref(f"{number}.jpg") for number in range(8)]
    together, leave = threading.Barrier(9), threading.Event()

    with closing(Trace(path)) as trace:

        def decode(image: ImageRef) -> None:
            for _ in range(200):
                with trace.decoding(image):
                    pass
            with trace.decoding(image):
                together.wait(10)
                leave.wait(10)

        threads = [threading.Thread(target=decode, args=(each,)) for each in refs]
        for thread in threads:
            thread.start()
        together.wait(10)
        later = copy_of(path)
        leave.set()
        for thread in threads:
            thread.join()
        assert all(later.suspects(each) for each in refs)
        assert path.stat().st_size == 8 * 32
        assert copy_of(path).num_suspects == 0


def test_a_decoder_that_returns_after_the_end_writes_nowhere(path: Path) -> None:
    trace = Trace(path)
    late = trace.decoding(A)
    late.__enter__()
    trace.close()
    other = os.open(path.with_name("other"), os.O_RDWR | os.O_CREAT)  # may get the number of the closed file
    late.__exit__(None, None, None)
    assert os.fstat(other).st_size == 0
    os.close(other)


def test_a_file_that_is_not_ours_or_torn_suspects_nobody(path: Path) -> None:
    path.write_bytes(b"torn")
    assert not Trace(path).suspects(A)


def test_a_trace_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"No such file or directory\. Free disk space"):
        Trace(tmp_path / "gone" / "x").decoding(A).__enter__()
    with pytest.raises(OutputError, match="cannot be read or written"):
        Trace(tmp_path)


def test_a_thread_that_begins_after_the_end_makes_no_new_file(path: Path) -> None:
    trace = Trace(path)
    trace.close()
    with trace.decoding(A):
        assert not path.exists()
    assert not path.exists()


def test_images_of_another_process_are_suspected_when_it_crashes_and_not_before(path: Path) -> None:
    with closing(Trace(path)) as trace, closing(Slots(path, trace.slots_for(A, 1)[1])) as first:
        second = Slots(path, trace.slots_for(B, 2)[1])
        with trace.decoding(C), first.recording(A), second.recording(B):
            assert copy_of(path).num_suspects == 3
            assert trace.crashed(1)
        assert [trace.suspects(each) for each in (A, B, C)] == [True, False, False]
        second.close()
        assert not trace.crashed(2)


def test_a_trace_that_was_removed_is_not_made_again_by_another_process(path: Path) -> None:
    slots = Slots(path, 64)
    with slots.recording(A):
        assert not path.exists()
    slots.close()
