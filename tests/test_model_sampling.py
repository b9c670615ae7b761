"""Sampling draws from the right distribution, with numbers that belong to the row."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.sampling import Rules, Sampler, SeededSampling, row_seed


def draw(options: GenerateOptions, scores: torch.Tensor, seeds: list[int], steps: int = 1) -> torch.Tensor:
    processor = SeededSampling(options, torch.tensor(seeds))
    ids = torch.zeros((len(seeds), 1), dtype=torch.long)
    return torch.stack([processor(ids, scores.clone()).argmax(-1) for _ in range(steps)], dim=1)


def test_rows_at_different_steps_draw_what_they_would_draw_together() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    seeds = torch.tensor([row_seed(0, name, 0) for name in "abc"])
    options = GenerateOptions(temperature=1.0)
    together = draw(options, scores, seeds.tolist(), steps=3)
    staggered = Sampler(options).apply(scores, seeds, torch.tensor([2, 0, 1])).argmax(-1)
    assert staggered.tolist() == [int(together[0, 2]), int(together[1, 0]), int(together[2, 1])]


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    num_draws = 40_000
    seeds = [row_seed(0, str(index), 0) for index in range(num_draws)]
    for temperature in (1.0, 0.5):
        drawn = draw(GenerateOptions(temperature=temperature), logits.expand(num_draws, -1), seeds)
        shares = torch.bincount(drawn.flatten(), minlength=4) / num_draws
        assert torch.allclose(shares, (logits / temperature).softmax(-1), atol=0.01)


def test_steps_of_one_row_draw_independently() -> None:
    logits = torch.zeros(1, 2)
    seeds, steps = torch.full((4_000,), row_seed(0, "a", 0)), torch.arange(4_000)
    drawn = Sampler(GenerateOptions(temperature=1.0)).apply(logits.expand(4_000, -1), seeds, steps).argmax(-1)
    pairs = torch.bincount(drawn[:-1] * 2 + drawn[1:], minlength=4) / (len(drawn) - 1)
    assert torch.allclose(pairs, torch.full((4,), 0.25), atol=0.03)


def test_top_k_and_top_p_leave_out_unlikely_tokens() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).expand(3_000, -1)
    seeds = [row_seed(1, str(index), 0) for index in range(3_000)]
    assert set(draw(GenerateOptions(temperature=1.0, top_k=2), logits, seeds).flatten().tolist()) == {0, 1}
    assert set(draw(GenerateOptions(temperature=1.0, top_p=0.6), logits, seeds).flatten().tolist()) == {0}


def test_a_row_draws_the_same_numbers_in_any_company() -> None:
    scores = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    seeds = [row_seed(7, f"{index}.jpg", 0) for index in range(8)]
    together = draw(GenerateOptions(temperature=1.0), scores, seeds, steps=5)
    for index in range(8):
        alone = draw(GenerateOptions(temperature=1.0), scores[index : index + 1], [seeds[index]], steps=5)
        assert torch.equal(alone[0], together[index])


def test_seeds_names_and_copies_make_different_streams() -> None:
    seeds = {row_seed(seed, name, copy) for seed in (0, 1) for name in ("a", "b") for copy in (0, 1)}
    assert len(seeds) == 8


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rules_change_rows_of_all_lengths_as_transformers_changes_each_alone(size: int) -> None:
    options = GenerateOptions(
        max_new_tokens=12, min_new_tokens=4, repetition_penalty=1.3, no_repeat_ngram_size=size, num_beams=2
    )
    ends, generator = [1, 5], torch.Generator().manual_seed(size)
    given = [[2], [3, 4, 3, 4], [2, 2, 2, 2, 2, 2, 3], [4]]
    rules = Rules(options, ends, torch.device("cpu"))
    rules.start(given[:2])
    rules.start(given[2:])
    rules.keep(torch.tensor([3, 1, 2]))
    given = [given[3], given[1], given[2]]
    ids_NT = torch.randint(0, 6, (6, 12), generator=generator)
    for num_chosen in ([0, 0, 0], [1, 3, 12], [4, 0, 2], [11, 7, 5]):
        scores_NV = torch.randn(6, 8, generator=generator)
        expected = []
        for row in range(2, 6):
            text, ids = row // 2, ids_NT[row, : num_chosen[row // 2]].tolist()
            processors = LogitsProcessorList(
                [
                    RepetitionPenaltyLogitsProcessor(1.3),
                    NoRepeatNGramLogitsProcessor(size),
                    MinNewTokensLengthLogitsProcessor(len(given[text]), 4, ends, device="cpu"),
                ]
            )
            expected.append(processors(torch.tensor([given[text] + ids]), scores_NV[row : row + 1].clone()))
        num_chosen_N = torch.tensor(num_chosen[1:]).repeat_interleave(2)
        rules.apply(1, ids_NT[2:], num_chosen_N, scores_NV[2:])
        assert torch.equal(scores_NV[2:], torch.cat(expected))
