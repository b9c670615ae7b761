"""The matching model's tokenizer: a WordPiece, as BERT has, of the words of scenes and of single characters."""

from __future__ import annotations

import string

from transformers import BertTokenizer

from blip2cap.tiny.scenes import COLOURS, LIGHTS, NUMBERS, PLACES, PLURALS

MAX_TOKENS = 64
"""Longest text, with `[CLS]` and `[SEP]`."""
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "<image>")
"""Ids 0 to 6. `[DEC]` takes the place of `[CLS]` before a text that the Q-Former generates, as in LAVIS."""


def new_tokenizer() -> BertTokenizer:
    """Return the tokenizer; other words are split into characters, so that no ASCII text is unknown."""
    phrases = (*PLACES.values(), *LIGHTS.values(), *COLOURS, *PLURALS, *PLURALS.values(), *NUMBERS)
    words = {word for phrase in phrases for word in phrase.split()} | {"a", "an", "next", "to", "photo", "of"}
    letters = string.ascii_lowercase + string.digits
    pieces = [*string.punctuation, *letters, *(f"##{letter}" for letter in letters)]
    tokens = [*SPECIAL_TOKENS, *pieces, *sorted(words - set(pieces))]
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=MAX_TOKENS,
    )
