"""The decoder as a stream: refilled slots, out-of-memory, results that belong to their prompts."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch

from blip2cap.batch_size import BatchSize
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.beams import Beams
from blip2cap.models.blip2.cache import Cache, CacheAllocator, Slots
from blip2cap.models.blip2.decoders import Decoder
from blip2cap.models.blip2.search import Greedy
from blip2cap.models.blip2.stream import TextRow, TextStream, Tokens
from blip2cap.records import Generated
from blip2cap.stopwatch import Stopwatch

END, VOCABULARY = 1, 8
CPU = torch.device("cpu")


class CountingDecoder:
    """Ends a text after as many tokens as its prompt's first id says; all that it knows of a row is in the cache."""

    def __init__(self, *, room: int = 1_000_000, never: int | None = None) -> None:
        self.room = room
        """More rows in a cache, or in a step, raise MemoryError."""
        self.never = never
        """A prompt that has no room in any company."""
        self.num_rows: list[int] = []
        """Of each step."""
        self.prefills: list[int] = []
        """Texts of each prefill, those without room too."""

    def num_given(self, num_prefix: int) -> int:
        return num_prefix

    def forget(self) -> None:
        """Do nothing: it keeps nothing."""

    def bytes_per_row(self, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> int:
        return 4

    def step_sizes(self, num_rows: int) -> Sequence[int]:
        return CacheAllocator(torch.zeros(())).step_sizes(num_rows)

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> Cache:
        return Cache.allocate(
            torch.zeros(()),
            num_layers=1,
            num_rows=num_rows,
            num_heads=1,
            head_size=1,
            length=num_prefix + max_new_tokens * num_beams,
            num_beams=num_beams,
        )

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
    ) -> torch.Tensor:
        texts = [ids for ids_NT in prompts for ids in ids_NT]
        assert len({len(ids) for ids in texts}) == len(prompts)
        self.prefills.append(len(texts))
        if (first_row + len(texts)) * cache.num_beams > self.room or self.never in [int(ids[0]) for ids in texts]:
            raise MemoryError("prefill")
        for number, ids in enumerate(texts):
            cache.own_L2RHSK[0, 0, first_row + number, 0, 0, 0] = float(ids[0])
            cache.own_L2RHSK[0, 1, first_row + number, 0, 0, 0] = len(ids) + 2.0  # where new tokens begin
        return self._logits(torch.tensor([float(ids[0]) for ids in texts]), torch.zeros(len(texts)))

    def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        self.num_rows.append(len(ids_N))
        if len(ids_N) > self.room:
            raise MemoryError("step")
        assert int(positions_M.max()) < length <= cache.length
        own = cache.own_L2RHSK[0, :, : len(positions_M), 0, 0, 0].repeat_interleave(cache.num_beams, dim=1)
        return self._logits(own[0], positions_M.repeat_interleave(cache.num_beams) + 1 - own[1])

    def _logits(self, lengths_N: torch.Tensor, num_said_N: torch.Tensor) -> torch.Tensor:
        """Return logits of 2, 3, 4, 2, ... and of the end in time; the second best token is 7."""
        logits_NV = torch.zeros(len(lengths_N), VOCABULARY)
        logits_NV[:, 7] = 5.0
        said = (2 + num_said_N.long() % 3).masked_fill(num_said_N >= lengths_N, END)
        return logits_NV.scatter_(1, said.unsqueeze(1), 10.0)


class Surroundings:
    """The parts of a model that the stream uses besides the decoder."""

    num_query_tokens = 2

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(rows), 2, 1), torch.arange(len(rows))

    def given_ids(self, tokens: Tokens) -> list[int]:
        return list(tokens.ids)

    def read_text(self, ids: list[int]) -> Generated:
        ended = ids[-1] == END
        ids = ids[:-1] if ended else ids
        return Generated(text=" ".join(map(str, ids)), num_tokens=len(ids), finish_reason="stop" if ended else "length")


def rows_of(lengths: Sequence[int], *, copies: int = 1) -> list[TextRow]:
    return [
        TextRow(ticket=ticket, tokens=Tokens(ids=[length, 0], qformer_ids=[]), image=torch.zeros(1), seed=0, copy=copy)
        for ticket, length in enumerate(lengths)
        for copy in range(copies)
    ]


def run(
    decoder: Decoder,
    lengths: Sequence[int],
    *,
    capacity: int,
    rows: list[TextRow] | None = None,
    reads_late: bool = False,
    few_sizes: bool = False,
    **options: float,
) -> dict[int, list[Generated] | ImageError]:
    generate = GenerateOptions(**({"max_new_tokens": 20} | options))  # type: ignore[arg-type]
    search = (Beams if generate.num_beams > 1 else Greedy)(generate, [END], CPU)
    size = BatchSize(capacity)
    slots = Slots(decoder, generate.num_beams, generate.max_new_tokens, CPU, few_sizes=few_sizes)
    stream = TextStream(Surroundings(), slots, search, generate, CPU, size=size, reads_late=reads_late)
    stream.add(rows or rows_of(lengths))
    results: dict[int, list[Generated] | ImageError] = {}
    for _ in range(10_000):
        results.update(stream.advance())
        if not stream.num_pending:
            break
    return results | dict(stream.advance())


def lengths_of(results: dict[int, list[Generated] | ImageError]) -> list[int]:
    said = []
    for _, result in sorted(results.items()):
        assert isinstance(result, list)
        assert result[0].text == " ".join(str(2 + index % 3) for index in range(result[0].num_tokens))
        said.append(result[0].num_tokens)
    return said


SPREAD = [4 + 37 * index % 17 for index in range(96)]
"""4 to 20 tokens, in no order."""


@pytest.mark.parametrize("capacity", [pytest.param(1, marks=pytest.mark.long), 3, 8, 96])
@pytest.mark.parametrize("reads_late", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_text_has_its_length_whatever_runs_beside_it(capacity: int, reads_late: bool, num_beams: int) -> None:
    decoder = CountingDecoder()
    results = run(decoder, SPREAD, capacity=capacity, reads_late=reads_late, num_beams=num_beams, max_new_tokens=21)
    assert lengths_of(results) == SPREAD
    assert {result[0].finish_reason for result in results.values() if isinstance(result, list)} == {"stop"}


def test_texts_of_many_lengths_cost_their_mean_not_their_longest() -> None:
    decoder = CountingDecoder()
    run(decoder, SPREAD, capacity=16, max_new_tokens=21)
    needed = sum(SPREAD)  # the first token comes with the prefill, the end takes one more
    assert sum(decoder.num_rows) == needed
    assert len(decoder.num_rows) < 1.35 * needed / 16  # a batch that waits for its longest takes 20 / 12 of it


def test_a_text_is_cut_at_the_longest_that_is_asked_for() -> None:
    results = run(CountingDecoder(), [2, 9, 30], capacity=8, max_new_tokens=9, reads_late=True)
    assert lengths_of(results) == [2, 9, 9]
    reasons = [result[0].finish_reason for _, result in sorted(results.items()) if isinstance(result, list)]
    assert reasons == ["stop", "length", "length"]


def test_texts_that_end_at_once_or_have_one_token_need_no_step() -> None:
    decoder = CountingDecoder()
    assert lengths_of(run(decoder, [0, 0], capacity=2)) == [0, 0]
    assert lengths_of(run(decoder, [5, 5], capacity=2, max_new_tokens=1)) == [1, 1]
    assert decoder.num_rows == []


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_prefill_that_does_not_fit_is_tried_with_half_the_texts(num_beams: int) -> None:
    decoder = CountingDecoder(room=5 * num_beams)
    results = run(decoder, SPREAD[:40], capacity=16, num_beams=num_beams)
    assert lengths_of(results) == SPREAD[:40]
    assert decoder.prefills[:3] == [16, 8, 4]
    assert max(decoder.num_rows) == 4 * num_beams


def test_a_text_without_room_in_any_company_fails_alone_and_the_others_run_together_again() -> None:
    decoder = CountingDecoder(never=13)
    lengths = [4, 6, 13, 5, 4, 6, 5, 4, 9, 9, 9, 9]
    results = run(decoder, lengths, capacity=8)
    failed = results.pop(2)
    assert isinstance(failed, ImageError)
    assert failed.code == "out_of_memory"
    assert lengths_of(results) == [length for length in lengths if length != 13]
    assert max(decoder.prefills[decoder.prefills.index(1) + 1 :]) > 1


@pytest.mark.parametrize("reads_late", [False, True])
def test_a_step_that_does_not_fit_begins_anew_with_half_the_texts(reads_late: bool) -> None:
    class SmallSteps(CountingDecoder):
        def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
            if len(ids_N) > 3 and len(self.num_rows) % 3:
                raise torch.OutOfMemoryError("step")
            return super().step(ids_N, positions_M, cache, length)

    decoder = SmallSteps()
    assert lengths_of(run(decoder, SPREAD[:20], capacity=8, reads_late=reads_late)) == SPREAD[:20]


@pytest.mark.parametrize("failing", range(1, 12))
def test_texts_that_left_just_before_a_step_that_does_not_fit_keep_their_last_token(failing: int) -> None:
    class FailsOnce(CountingDecoder):
        def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
            if len(self.num_rows) == failing - 1:
                self.num_rows.append(0)
                raise torch.OutOfMemoryError("step")
            return super().step(ids_N, positions_M, cache, length)

    lengths = [2, 9, 3, 9, 9, 4, 9, 3, 9, 9]
    results = run(FailsOnce(), lengths, capacity=3, reads_late=True, max_new_tokens=4)
    assert lengths_of(results) == [min(length, 4) for length in lengths]
    reasons = {ticket: result[0].finish_reason for ticket, result in results.items() if isinstance(result, list)}
    assert reasons == {ticket: "stop" if length < 4 else "length" for ticket, length in enumerate(lengths)}


class Memory(CountingDecoder):
    """A device with memory for a number of positions, over all caches that are alive."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.caches: weakref.WeakSet[Tracked] = weakref.WeakSet()

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> Cache:
        taken = sum(cache.num_rows * cache.length for cache in self.caches)
        if taken + num_rows * (num_prefix + max_new_tokens) > self.positions:
            raise MemoryError("cache")
        cache = super().new_cache(num_rows, num_prefix, max_new_tokens, num_beams)
        cache = Tracked(own_L2RHSK=cache.own_L2RHSK, seen_RBS=cache.seen_RBS, num_given_R=cache.num_given_R)
        self.caches.add(cache)
        return cache


class Tracked(Cache):
    """A cache with weak references, so that a test sees when it is freed."""

    __hash__ = object.__hash__
    __slots__ = ("__weakref__",)


def prompted(lengths: Sequence[int], prompt_tokens: Sequence[int]) -> list[TextRow]:
    return [
        TextRow(
            ticket=ticket,
            tokens=Tokens(ids=[length] + [0] * (num_tokens - 1), qformer_ids=[]),
            image=torch.zeros(1),
            seed=0,
        )
        for ticket, (length, num_tokens) in enumerate(zip(lengths, prompt_tokens, strict=True))
    ]


def test_a_long_prompt_that_fits_alone_is_written_and_many_run_together_again() -> None:
    """One slot with the long prompt takes 2 + 60 + 20 positions, sixteen with short ones 16 x 24."""
    decoder = Memory(16 * 24 + 10)
    lengths = [5] * 100
    rows = prompted(lengths, [2] * 40 + [60] + [2] * 59)
    assert lengths_of(run(decoder, [], rows=rows, capacity=16)) == lengths
    assert max(decoder.num_rows[-40:]) >= 4


class Tight(CountingDecoder):
    """Records the lengths of the texts that each prefill begins; some prefills have no memory."""

    def __init__(self, *failing: int) -> None:
        super().__init__()
        self.failing = failing
        """Numbers of the prefills that raise MemoryError."""
        self.begun: list[list[int]] = []

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
    ) -> torch.Tensor:
        self.begun.append([int(ids[0]) for ids_NT in prompts for ids in ids_NT])
        self.never = self.begun[-1][0] if len(self.begun) - 1 in self.failing else None
        return super().prefill(image_IQD, image_of_N, prompts, cache, first_row)


def test_after_memory_ran_out_the_number_of_texts_doubles_whenever_all_have_ended() -> None:
    decoder = Tight(0, 1, 2)
    assert lengths_of(run(decoder, [5] * 40, capacity=16)) == [5] * 40
    assert decoder.prefills == [16, 8, 4, 2, 4, 8, 16, 10]


def test_texts_that_did_not_fit_are_begun_again_in_their_order() -> None:
    decoder = Tight(0, 1)
    lengths = [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert lengths_of(run(decoder, lengths, capacity=8)) == lengths
    assert decoder.begun[:3] == [lengths[:8], lengths[:4], lengths[:2]]


def test_texts_that_did_not_fit_beside_others_are_begun_in_their_order_when_those_have_ended() -> None:
    decoder = Tight(1)
    lengths = [2, 2, 9, 9, 4, 5, 6, 7]
    assert lengths_of(run(decoder, lengths, capacity=4)) == lengths
    assert decoder.begun == [[2, 2, 9, 9], [4, 5], [4, 5, 6, 7]]


def test_a_text_that_fails_in_the_middle_of_its_samples_takes_the_others_with_it() -> None:
    """The first sample is done when the second has no memory: one prompt has one result."""
    decoder = Tight(*range(1, 10))
    results = run(decoder, [], rows=rows_of([3, 4], copies=2), capacity=1, num_captions=2, temperature=0.01)
    assert [getattr(results[ticket], "code", None) for ticket in (0, 1)] == ["out_of_memory", "out_of_memory"]
    assert len(results) == 2


def test_a_device_with_room_for_few_is_used_for_as_many() -> None:
    decoder = Memory(5 * 24)
    assert lengths_of(run(decoder, SPREAD, capacity=16)) == SPREAD
    assert max(decoder.num_rows) == 4
    assert sum(decoder.num_rows) / len(decoder.num_rows) > 3


def test_prompts_of_several_lengths_run_side_by_side_and_the_cache_grows() -> None:
    decoder = CountingDecoder()
    rows = [
        TextRow(
            ticket=ticket,
            tokens=Tokens(ids=[5 + ticket % 3] + [0] * ticket, qformer_ids=[]),
            image=torch.zeros(1),
            seed=0,
        )
        for ticket in range(12)
    ]
    results = run(decoder, [], rows=rows, capacity=12)
    assert lengths_of(results) == [5 + ticket % 3 for ticket in range(12)]
    assert decoder.prefills == [12]
    assert max(decoder.num_rows) == 12


def test_samples_of_one_prompt_come_together_in_their_order() -> None:
    rows = rows_of([6, 3], copies=3)
    results = run(CountingDecoder(), [], rows=rows, capacity=4, num_captions=3, temperature=0.01)
    assert [len(result) for _, result in sorted(results.items()) if isinstance(result, list)] == [3, 3]


def test_the_number_of_texts_grows_while_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("blip2cap.models.blip2.stream.time.perf_counter", lambda: clock[0])

    class Costly(CountingDecoder):
        def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
            clock[0] += max(8, len(ids_N))  # up to 8 rows cost the same
            return super().step(ids_N, positions_M, cache, length)

    decoder, options = Costly(), GenerateOptions(max_new_tokens=20)
    size = BatchSize(2, 64)
    slots = Slots(decoder, 1, options.max_new_tokens, CPU)
    stream = TextStream(Surroundings(), slots, Greedy(options, [END], CPU), options, CPU, size=size)
    stream.add(rows_of([9] * 200))
    while stream.num_pending:
        stream.advance()
    assert (size.size, size.settled) == (8, True)


def test_steps_come_in_few_sizes_and_free_places_are_taken_along() -> None:
    decoder, lengths = CountingDecoder(), list(range(1, 65))
    results = run(decoder, lengths, capacity=64, max_new_tokens=70)
    assert lengths_of(results) == lengths
    assert decoder.num_rows[0] == 64
    assert len(set(decoder.num_rows)) == 16
    assert {num_rows % 4 for num_rows in decoder.num_rows} == {0}
