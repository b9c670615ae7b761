"""The cost of decoding texts of many lengths together, beside texts of their mean length and of the longest.

Each text ends after a given number of tokens, whatever the model generates; everything else is a real run of the
decoder. Covered: prefill and steps of BLIP-2. Not covered: the vision encoder, which does not depend on lengths.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import gcd
from typing import Any

import torch

from blip2cap.bench.report import digits
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.search import Greedy
from blip2cap.models.blip2.stream import TextRow, TextStream, Tokens

SHORTEST, LONGEST = 4, 20
NUM_TEXTS, NUM_SLOTS = 48, 16
_STRIDE = 29
"""Has no divisor in common with the number of texts: short and long ones come mixed."""


class GivenLengths(Greedy):
    """Ends a text after the number of tokens in its seed, which greedy search does not use otherwise."""

    def finished(self) -> list[int]:
        """Return the slots whose texts have their length."""
        self.read()
        return [slot for slot, text in enumerate(self.texts) if len(text.ids) >= text.start.seed]


def spread() -> list[int]:
    """Return lengths evenly between the shortest and the longest, mixed; their mean is that of the two."""
    assert gcd(NUM_TEXTS, _STRIDE) == 1
    even = [SHORTEST + round((LONGEST - SHORTEST) * number / (NUM_TEXTS - 1)) for number in range(NUM_TEXTS)]
    return [even[number * _STRIDE % NUM_TEXTS] for number in range(NUM_TEXTS)]


def measure_lengths(model: Blip2, features: torch.Tensor) -> dict[str, Any]:
    """Decode texts of many lengths, and one batch each of texts of their mean length, and of the longest."""
    mixed = spread()
    decode_texts(model, features, [2] * NUM_SLOTS)
    found = {
        "mean": decode_texts(model, features, [(SHORTEST + LONGEST) // 2] * NUM_SLOTS),
        "spread": decode_texts(model, features, mixed),
        "longest": decode_texts(model, features, [LONGEST] * NUM_SLOTS),
    }
    batches = NUM_TEXTS / NUM_SLOTS
    return {
        "num_texts": NUM_TEXTS,
        "texts_at_once": NUM_SLOTS,
        "mean_length": digits(sum(mixed) / NUM_TEXTS),
        **found,
        "spread_to_mean": digits(found["spread"]["seconds"] / found["mean"]["seconds"] / batches),
        "spread_to_longest": digits(found["spread"]["seconds"] / found["longest"]["seconds"] / batches),
    }


def decode_texts(model: Blip2, features: torch.Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """Decode texts of these lengths about the images with these features; every text prefills its own image."""
    options = GenerateOptions(max_new_tokens=LONGEST)
    texts = model.start_texts(options, capacity=NUM_SLOTS)
    stream = texts.stream
    assert isinstance(stream, TextStream), "only lean decoders decode texts of many lengths together"
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
    started, generated = time.perf_counter(), dict[int, int]()
    while texts.num_pending:
        for ticket, result in texts.advance():
            assert not isinstance(result, ImageError), result
            generated[ticket] = result[0].num_tokens + (result[0].finish_reason == "stop")
    model.wait()
    seconds = time.perf_counter() - started
    assert [generated[number] for number in range(len(lengths))] == list(lengths)
    return {
        "seconds": digits(seconds),
        "num_tokens": sum(lengths),
        "num_steps": model.watch.counts["step"],
        "num_prefills": model.watch.counts["prefill"],
        "stages_s": {name: digits(stage_s) for name, stage_s in model.watch.seconds.items()},
    }
