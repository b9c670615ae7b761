"""Whether texts of many lengths side by side cost their mean, or their longest.

Each text ends after as many tokens as it is told to, whatever the model says; everything else is a real run of the text
side. Covered: prefill and steps of BLIP-2. Not covered: the image side, which knows nothing of lengths.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import gcd

import torch

from benchmarks.suite import Facts, digits
from blip2cap.errors import ImageError
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.search import Greedy
from blip2cap.models.blip2.stream import TextRow, TextStream, Tokens
from blip2cap.options import GenerateOptions

SHORTEST, LONGEST = 4, 20
NUM_TEXTS, NUM_SLOTS = 48, 16
_STRIDE = 29
"""Has no divisor in common with the number of texts: short and long ones come mixed."""


class GivenLengths(Greedy):
    """Ends a text after as many tokens as its seed says: greedy text has no other use for one."""

    def finished(self) -> list[int]:
        """Return the slots whose texts are as long as they should be."""
        self.read()
        return [slot for slot, text in enumerate(self.texts) if len(text.ids) >= text.start.seed]

    def results(self, slot: int) -> list[list[int]]:
        """Return the ids of a slot's text."""
        text = self.texts[slot]
        return [text.ids[: text.start.seed]]


def spread(num_pending: int = NUM_TEXTS) -> list[int]:
    """Return lengths that lie evenly between the shortest and the longest, mixed; their mean is that of the two."""
    assert gcd(num_pending, _STRIDE) == 1
    steps = max(1, num_pending - 1)
    even = [SHORTEST + round((LONGEST - SHORTEST) * number / steps) for number in range(num_pending)]
    return [even[number * _STRIDE % num_pending] for number in range(num_pending)]


def measure_lengths(
    model: Blip2, features: torch.Tensor, *, num_pending: int = NUM_TEXTS, num_slots: int = NUM_SLOTS
) -> Facts:
    """Decode texts of many lengths, and one batch each of texts as long as their mean, and as the longest."""
    mixed = spread(num_pending)
    decode_texts(model, features, [2] * num_slots, num_slots)
    found = {
        "mean": decode_texts(model, features, [(SHORTEST + LONGEST) // 2] * num_slots, num_slots),
        "spread": decode_texts(model, features, mixed, num_slots),
        "longest": decode_texts(model, features, [LONGEST] * num_slots, num_slots),
    }
    batches = num_pending / num_slots  # texts of one length take so many times what a batch of them takes
    return {
        "num_pending": num_pending,
        "texts_at_once": num_slots,
        "mean_length": digits(sum(mixed) / num_pending),
        **found,
        "spread_to_mean": digits(found["spread"]["seconds"] / found["mean"]["seconds"] / batches),
        "spread_to_longest": digits(found["spread"]["seconds"] / found["longest"]["seconds"] / batches),
    }


def decode_texts(model: Blip2, features: torch.Tensor, lengths: Sequence[int], num_slots: int) -> Facts:
    """Decode texts of these lengths about images whose features these are; every text prefills its own."""
    options = GenerateOptions(max_new_tokens=LONGEST)
    texts = model.start_texts(options, capacity=num_slots)
    stream = texts.stream
    assert isinstance(stream, TextStream), "only lean decoders decode texts of many lengths side by side"
    stream.search = GivenLengths(options, (), model.device)
    tokens = Tokens(ids=list(model.tokenizer("").input_ids), qformer_ids=[])
    stream.add(
        [
            TextRow(ticket=number, tokens=tokens, image=features[number % len(features)].clone(), seed=length)
            for number, length in enumerate(lengths)
        ]
    )
    model.watch.reset()
    model.wait()
    started, said = time.perf_counter(), dict[int, int]()
    while texts.num_pending:
        for ticket, result in texts.advance():
            assert not isinstance(result, ImageError), result
            said[ticket] = result[0].num_tokens + (result[0].finish_reason == "stop")
    model.wait()
    seconds = time.perf_counter() - started
    assert [said[number] for number in range(len(lengths))] == list(lengths)
    return {
        "seconds": digits(seconds),
        "num_tokens": sum(lengths),
        "num_steps": model.watch.counts["step"],
        "num_prefills": model.watch.counts["prefill"],
        "stages_s": {name: digits(stage_s) for name, stage_s in model.watch.seconds.items()},
    }
