"""Memory does not grow with the number of images, and neither do the results that a run remembers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip2cap.batch_size import BatchSize
from blip2cap.decode.image import Decoded, Pixels
from blip2cap.engine.first_texts import FirstTexts
from blip2cap.engine.flow import Flow
from blip2cap.engine.remembered import Remembered
from blip2cap.engine.run import Engine, run
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import BatchOptions, DecodeOptions, SourceOptions
from blip2cap.outputs.journal import JournalSink
from blip2cap.records import Generated, ImageRef, Prompt
from blip2cap.rows import Row
from blip2cap.source.inputs import Source
from blip2cap.tasks.base import Request, Worklist
from blip2cap.tasks.caption import Caption
from tests.fakes import FakeModel, FakeSession, ListSink
from tests.rows import SETTINGS, row

_MOMENTS = (1_000, 4_000, 7_000)
"""Numbers of images after which memory is measured."""


class Forgetful(FakeModel):
    """A fake that does not record its calls."""

    def encode(self, images: Sequence[Pixels]) -> list[str]:
        features = super().encode(images)
        self.encode_sizes.clear()
        return features

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
        return ForgetfulTexts(self, options, capacity or 16)


class ForgetfulTexts(FakeSession):
    """Its session."""

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        tickets = super().add(features, prompts)
        self.model.prompts.clear()
        return tickets

    def advance(self) -> list[tuple[int, list[Generated] | ImageError]]:
        done = super().advance()
        for ticket, _ in done:
            del self.steps[ticket]
        return done


class Counting(ListSink):
    """Keeps no rows; records the memory in use after some of them."""

    def __init__(self, *moments: int) -> None:
        super().__init__()
        self.moments = [*moments]
        self.num_rows = 0
        self.used: list[int] = []

    def write(self, rows: Iterable[Row]) -> None:
        self.num_rows += len(list(rows))
        if self.moments and self.num_rows >= self.moments[0]:
            del self.moments[0]
            self.used.append(tracemalloc.get_traced_memory()[0])


@pytest.fixture
def traced() -> Iterator[None]:
    """Trace allocations while a test runs."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def grows(used: list[int]) -> bool:
    """Return whether every stretch of a run took memory, 25 bytes for each image or more; one increase is no growth."""
    assert len(used) == len(_MOMENTS)
    return min(after - before for before, after in pairwise(used)) > 75_000


def tasks(number: int) -> Iterator[Request]:
    refs = (ImageRef(path=f"gone/{index:09}.jpg", name=f"{index:09}.jpg") for index in range(number))
    return Worklist(Caption()).requests(refs, frozenset())


def engine(model: FakeModel) -> Engine:
    return Engine(
        model=model, task=Caption(template=""), decode=DecodeOptions(num_threads=1), batch=BatchOptions(batch_size=64)
    )


@pytest.mark.long
@pytest.mark.usefixtures("traced")
def test_a_run_holds_as_much_after_many_images_as_after_few() -> None:
    """From the source to the sink; no file exists, so every image fails."""
    sink, one = Counting(*_MOMENTS), engine(Forgetful())
    run(one, one.read_ahead(tasks(7_500)), sink)
    assert sink.num_rows == 7_500
    assert not grows(sink.used)


@pytest.mark.long
@pytest.mark.usefixtures("traced")
def test_what_is_remembered_of_pictures_is_bounded() -> None:
    """Beyond the maximum number of remembered results, further pictures cost nothing; all pictures differ."""
    flow = Flow(
        Forgetful(),
        Caption(template=""),
        capacity=64,
        on_failure=lambda ref, error: None,
        first_texts=FirstTexts(lambda line: None),
    )
    flow.known = Remembered(num_results=1_000)
    size, used = BatchSize(64), []
    for number, task in enumerate(tasks(_MOMENTS[-1]), start=1):
        pixels = np.frombuffer(number.to_bytes(192, "little"), dtype=np.uint8).reshape(8, 8, 3)
        flow.take([(task, Decoded(content=pixels, width=8, height=8))], size)
        flow.advance()
        assert [one.status for one in flow.rows()[1]] == ["ok"]
        if number in _MOMENTS:
            used.append(tracemalloc.get_traced_memory()[0])
    assert not grows(used)
    assert len(flow.known) == 1_000


@pytest.mark.long
def test_a_finished_journal_costs_about_twenty_bytes_a_row(tmp_path: Path) -> None:
    path, number = tmp_path / "captions.jsonl", 40_000
    sink = JournalSink(path)
    sink.begin(SETTINGS)
    sink.write(row(index, text="a long text about a picture " * 4) for index in range(number))
    sink.close()
    tracemalloc.start()
    sink = JournalSink(path)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sink.finished) == number
    sink.close()
    assert used < 25 * number
    assert peak - used < 5_000_000  # a block of the file, in pieces


@pytest.mark.long
def test_several_inputs_are_told_apart_without_their_names(tmp_path: Path) -> None:
    listing, number = tmp_path / "list.txt", 20_000
    listing.write_text("".join(f"{'a' * 100}/{index:09}.jpg\n" for index in range(number)))
    stream = Source(SourceOptions(files_from=(str(listing), str(listing)))).stream()
    tracemalloc.start()
    assert sum(1 for _ in stream) == number
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stream.skipped == {"duplicate": number}
    assert peak < 25 * number + 1_500_000  # a block of the list, in pieces
