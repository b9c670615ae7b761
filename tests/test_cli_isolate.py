"""Images that crash or hang, seen from the command line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import crashing
from tests.commands import TINY, draw_scenes, environment, finish, invoke, num_lines, read_rows, wait_until
from tests.pictures import encode, photo
from tests.zygote import Command, the_zygote

ROOT = Path(__file__).parent.parent
NUM_GOOD = 6


def start(*args: str, cwd: Path, **settings: Any) -> Command:
    """Start blip2cap with a bad decoder, which its decoding processes import from this repository."""
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = environment(PYTHONPATH=python_path)
    return the_zygote().open(*args, cwd=cwd, program="tests.crashing", env=env, **settings)


def run(*args: str, cwd: Path) -> tuple[int | None, str]:
    """Run blip2cap with a bad decoder; return its exit code and its messages."""
    process = start(*args, cwd=cwd)
    _, stderr = finish(process)
    return process.returncode, stderr.decode()


def errors(out: Path) -> dict[str, str]:
    """Return the error of each image; "" for good ones."""
    rows = read_rows(out)
    assert all((row["status"] == "failed") == bool(row["error"]) for row in rows)
    found = {row["file_name"]: row["error"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def images(here: Path) -> Path:
    """A folder of good images."""
    return draw_scenes(here / "images", NUM_GOOD)


GOOD = {f"{seed:03}.png": "" for seed in range(NUM_GOOD)}


def test_texts_are_the_same_with_and_without(images: Path) -> None:
    (images / "half.png").write_bytes((images / "000.png").read_bytes()[:700])
    (images / "large.jpg").write_bytes(encode(photo(640, 480), "JPEG"))
    (images / "text.jpg").write_text("this is no picture")
    outputs = []
    for options in ((), ("--isolate",)):
        assert invoke("caption", "images", *TINY, *options, "--overwrite").exit_code == 3
        outputs.append(Path("captions.jsonl").read_bytes())
    assert outputs[0] == outputs[1]
    assert errors(Path("captions.jsonl")) == GOOD | {
        "half.png": "truncated",
        "large.jpg": "",
        "text.jpg": "not_an_image",
    }


def test_a_run_may_go_on_in_another_way_than_it_began(images: Path) -> None:
    assert invoke("caption", "images", *TINY, "--limit", "2").exit_code == 0
    assert invoke("caption", "images", *TINY, "--isolate", "--timeout", "5").exit_code == 0
    assert num_lines(Path("captions.jsonl")) == NUM_GOOD


def test_what_crashes_hangs_or_eats_memory_costs_one_image_each(images: Path) -> None:
    expected = dict(GOOD)
    for width, error in {
        crashing.SEGFAULT: "decoder_crashed",
        crashing.KILLED: "decoder_crashed",
        crashing.HANG_WITH_LOCK: "timeout",
        crashing.EAT_MEMORY: "out_of_memory",
        crashing.PRINT: "",
    }.items():
        (images / f"001-{width}.png").write_bytes(crashing.picture(width))
        expected[f"001-{width}.png"] = error
    code, said = run("caption", "images", *TINY, "--isolate", "--timeout", "2", cwd=images.parent)
    assert code == 3, said
    assert errors(Path("captions.jsonl")) == expected
    assert list(errors(Path("captions.jsonl"))) == sorted(expected)
    assert "001-13.png: decoder_crashed: the process that decoded it was ended by SIGSEGV" in said
    assert "something for" not in said
    assert not Path("captions.jsonl.decoding").exists()


def test_a_run_that_died_of_an_image_is_finished_by_the_same_command(images: Path) -> None:
    (images / "003-bad.png").write_bytes(crashing.picture(crashing.SEGFAULT))
    command = ("caption", "images", *TINY, "--batch-size", "1", "--threads", "1")
    assert run(*command, cwd=images.parent)[0] == -signal.SIGSEGV
    assert Path("captions.jsonl.decoding").exists()
    code, said = run(*command, cwd=images.parent)
    assert code == 3, said
    assert (
        "captions.jsonl: an earlier run died while decoding 1 image; it will be decoded in a separate process" in said
    )
    assert errors(Path("captions.jsonl")) == GOOD | {"003-bad.png": "decoder_crashed"}
    assert not Path("captions.jsonl.decoding").exists()


@pytest.mark.long
def test_another_output_and_a_stream_know_nothing_of_it(images: Path) -> None:
    (images / "000-bad.png").write_bytes(crashing.picture(crashing.SEGFAULT))
    for out in ("-", "a.jsonl", "b.jsonl"):
        code, said = run("caption", "images", *TINY, "-o", out, cwd=images.parent)
        assert code == -signal.SIGSEGV
        assert "an earlier run died" not in said
    assert sorted(path.name for path in Path().glob("*.decoding")) == ["a.jsonl.decoding", "b.jsonl.decoding"]


@pytest.mark.long
def test_images_that_were_only_beside_the_one_are_fine_the_next_time(images: Path) -> None:
    (images / "000-bad.png").write_bytes(crashing.picture(crashing.SEGFAULT))
    command = ("caption", "images", *TINY, "--threads", "4")
    assert run(*command, cwd=images.parent)[0] == -signal.SIGSEGV
    assert run(*command, cwd=images.parent)[0] == 3
    assert errors(Path("captions.jsonl")) == GOOD | {"000-bad.png": "decoder_crashed"}


def test_a_hanging_file_or_decoder_fails_and_neither_the_others_nor_the_end_wait_for_it(images: Path) -> None:
    bad = ("002-hangs.png", crashing.NEVER_READ)
    for name in bad:
        (images / name).write_bytes(crashing.picture(crashing.HANG))
    code, said = run("caption", "images", *TINY, "--threads", "1", "--timeout", "0.5", cwd=images.parent)
    assert code == 3, said
    assert errors(Path("captions.jsonl")) == GOOD | dict.fromkeys(bad, "timeout")
    assert list(errors(Path("captions.jsonl"))) == sorted([*GOOD, *bad])
    assert all(f"{name}: timeout: not decoded within 0.5 s" in said for name in bad)
    assert not Path("captions.jsonl.decoding").exists()


@pytest.mark.long
def test_a_hanging_file_does_not_hold_up_workers_either(images: Path) -> None:
    (images / crashing.NEVER_READ).write_bytes(crashing.picture(40))
    options = ("--isolate", "--threads", "1", "--timeout", "1")
    assert run("caption", "images", *TINY, *options, cwd=images.parent)[0] == 3
    assert errors(Path("captions.jsonl")) == GOOD | {crashing.NEVER_READ: "timeout"}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_live_through_ctrl_c_and_end_with_the_run(images: Path, number: signal.Signals) -> None:
    (images / "zzz.png").write_bytes(crashing.picture(crashing.HANG_WITH_LOCK))
    process = start("caption", "images", *TINY, "--isolate", "--threads", "1", cwd=images.parent, process_group=0)
    wait_until(lambda: num_lines(Path("captions.jsonl")) == NUM_GOOD, process)
    workers = psutil.Process(process.pid).children()
    assert workers
    os.killpg(process.pid, number)  # as a terminal does it with Ctrl-C
    _, stderr = finish(process)
    assert process.returncode == (130 if number == signal.SIGINT else -number), stderr
    assert errors(Path("captions.jsonl")) == GOOD
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in workers):
        time.sleep(0.01)


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(images: Path, timeout: str) -> None:
    result = invoke("vqa", "images", "-q", "where?", *TINY, "--timeout", timeout)
    assert result.exit_code == 2
    assert f"--timeout {timeout}: must be a number of seconds above 0." in result.stderr
