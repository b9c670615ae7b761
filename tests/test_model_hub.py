"""Downloads from a hub on this machine: announced, resumed, checked; and what is said when they fail."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from blip2cap.cli.signals import Stopped, stop_on_signal
from blip2cap.errors import ModelError
from blip2cap.models.checkpoint import TINY, find
from blip2cap.options import ModelOptions
from tests.commands import invoke
from tests.fake_hub import FakeHub, serve

NAME = "someone/tiny"
WEIGHTS = bytes(range(250)) * 400
"""Not a model's: only one test loads it."""
SIZE = len(WEIGHTS)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the hub, which does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a small repository."""
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, folder: Path) -> Iterator[FakeHub]:
    """A hub with that repository."""
    with serve(monkeypatch, cache) as hub:
        hub.repositories[NAME] = folder
        yield hub


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Download in small chunks: an interrupted download leaves a whole number of them, of 10 MB by default."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)


def fetch(name: str = NAME, **options: str) -> list[str]:
    """Find a model quietly; return what was said."""
    said: list[str] = []
    find(ModelOptions(name=name, **options), say=said.append, quiet=True)  # type: ignore[arg-type]
    return said


def refusal(name: str = NAME, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(name, **options)
    assert caught.value.message.startswith(f"--model {name}: ")
    assert caught.value.message.endswith("`--model tiny` needs no download.")
    return caught.value.message


def incomplete(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.incomplete"))


def blob(cache: Path) -> Path:
    return cache / "models--someone--tiny" / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()


def leave_half(cache: Path) -> Path:
    """Leave what a killed download leaves."""
    part = blob(cache).with_suffix(".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[: SIZE // 2])
    return part


def test_a_model_is_downloaded_once_with_its_size_and_place_said_before(hub: FakeHub, cache: Path) -> None:
    (said,) = fetch()
    assert re.fullmatch(f"downloading {NAME}: {SIZE / 1e6:.1f} MB to {cache}, where [0-9.]+ GB are free", said)
    checkpoint = find(ModelOptions(name=NAME))
    assert (checkpoint.name, checkpoint.commit) == (NAME, hub.commit(NAME))
    assert (checkpoint.folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.asked.clear()
    assert (fetch(), hub.asked) == ([], [])


def test_a_download_that_was_killed_continues_where_it_was(hub: FakeHub, cache: Path) -> None:
    leave_half(cache)
    blob(cache).with_suffix(".0a1b2c3d.incomplete").touch()  # of another program, which would not use it again
    (said,) = fetch()
    assert (
        f"{(SIZE - SIZE // 2) / 1e6:.1f} MB ({SIZE // 2 / 1e6:.1f} MB of {SIZE / 1e6:.1f} MB already downloaded)"
        in said
    )
    assert hub.downloads() == [f"model.safetensors bytes={SIZE // 2}-"]
    assert blob(cache).read_bytes() == WEIGHTS
    assert incomplete(cache) == []


@pytest.mark.usefixtures("_small_chunks")
def test_ctrl_c_ends_a_download_at_once_and_the_next_run_continues_it(hub: FakeHub, cache: Path) -> None:
    def interrupt() -> None:
        while not any(part.stat().st_size > SIZE // 4 for part in incomplete(cache)):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    hub.on_weights, hub.after_weights = lambda content: content[: SIZE // 2], interrupt  # the rest never comes
    with pytest.raises(Stopped), stop_on_signal(quiet=True):
        fetch()
    hub.on_weights, hub.after_weights = lambda content: content, lambda: None
    fetch()
    whole, rest = hub.downloads()
    assert whole == "model.safetensors"
    assert int(rest.removeprefix("model.safetensors bytes=").rstrip("-")) > SIZE // 4
    assert blob(cache).read_bytes() == WEIGHTS
    assert incomplete(cache) == []


@pytest.mark.usefixtures("_small_chunks")
def test_a_connection_that_breaks_is_opened_again_where_it_was(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    lengths = iter((10_000, 20_000))
    hub.on_weights = lambda content: content[: next(lengths, None)]
    hub.breaks = True
    fetch()
    assert hub.downloads() == [f"model.safetensors{rest}" for rest in ("", " bytes=10000-", " bytes=30000-")]
    assert blob(cache).read_bytes() == WEIGHTS


def test_a_part_that_is_longer_than_the_file_is_fetched_again(hub: FakeHub, cache: Path) -> None:
    leave_half(cache).write_bytes(WEIGHTS + b"more")
    fetch()
    assert blob(cache).read_bytes() == WEIGHTS


def test_weights_that_are_damaged_on_their_way_are_removed_and_refused(hub: FakeHub, cache: Path) -> None:
    hub.on_weights = lambda content: bytes(len(content))
    assert "model.safetensors was damaged on its way here" in refusal()
    assert (incomplete(cache), blob(cache).exists()) == ([], False)
    hub.on_weights = lambda content: content
    fetch()


def test_what_does_not_fit_the_disk_is_refused_before_it_comes(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(10**12, 10**12 - SIZE // 2, SIZE // 2)
    monkeypatch.setattr("blip2cap.models.hub.shutil.disk_usage", lambda path: full)
    message = refusal()
    assert f"{SIZE / 1e6:.1f} MB to download do not fit {cache}, where 0.1 MB are free" in message
    assert "HF_HOME" in message
    assert hub.downloads() == []


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.usefixtures("hub")
def test_quiet_draws_no_bar(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    find(ModelOptions(name=NAME), quiet=quiet)
    assert ("model.safetensors: 100%" in terminal.getvalue()) is not quiet


@pytest.mark.usefixtures("here")
def test_a_command_says_what_it_downloads_and_captions_with_it(hub: FakeHub, scenes: Path) -> None:
    hub.repositories[NAME] = TINY
    result = invoke("caption", scenes / "000.png", "--model", NAME)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0].startswith(f"downloading {NAME}: ")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (500, "", "the hub answered with HTTP status 500. Run the same command again later"),
        (503, "", "the hub answered with HTTP status 503. Run the same command again later"),
        (403, "", "the hub answered with HTTP status 403. Check HF_TOKEN (URL/settings/tokens)"),
        (403, "GatedRepo", "it is gated. Accept its terms on URL/someone/tiny, then set HF_TOKEN"),
        (401, "RepoNotFound", "not on the hub, or private. Check the name on URL/someone/tiny; if it is private, set"),
        (404, "RevisionNotFound", "the hub has no revision v9 of it. Choose a branch, a tag or a commit on URL/some"),
    ],
)
def test_every_answer_of_the_hub_has_its_own_message(hub: FakeHub, status: int, code: str, reason: str) -> None:
    hub.refuse = status, code
    message = refusal(revision="v9")
    assert reason.replace("URL", hub.url) in message
    assert "cannot be reached" not in message


def test_a_hub_that_does_not_answer_and_one_that_is_not_there_are_told_apart(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
    hub.answer_after_s = 0.5
    assert "the hub did not answer in time" in refusal()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "the hub cannot be reached. Check the network" in refusal()


def test_a_revision_that_the_cache_lacks_is_refused_offline_with_those_that_it_has(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch() == fetch(revision=hub.commit(NAME)) == []
    message = refusal(revision=hub.commit(NAME)[:8])
    assert f"not in the local cache at revision {hub.commit(NAME)[:8]} (but at {hub.commit(NAME)})" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_a_repository_of_pickles_is_refused_before_anything_comes_with_the_way_to_convert_it(
    hub: FakeHub, cache: Path, folder: Path
) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal()
    assert "has only pytorch_model.bin, which may run code when loaded" in message
    assert f"transformers.Blip2ForConditionalGeneration.from_pretrained('{NAME}').save_pretrained('FOLDER')" in message
    assert not cache.exists()


@pytest.mark.parametrize("spoil", ["model_type", "tokenizer"])
def test_a_model_that_cannot_be_used_is_refused_before_its_weights_come(hub: FakeHub, folder: Path, spoil: str) -> None:
    if spoil == "model_type":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "mllama"}))
    else:
        (folder / "tokenizer.json").unlink()
    assert {"model_type": "'mllama'", "tokenizer": "no tokenizer in"}[spoil] in refusal()
    assert hub.downloads() == []
