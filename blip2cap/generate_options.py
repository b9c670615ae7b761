"""Options of generated texts: how they are generated, and the rules that they are changed by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag

CAPTION_NEW_TOKENS = 30
ANSWER_NEW_TOKENS = 10
"""From LAVIS; answers are short."""
CHAT_NEW_TOKENS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """Generation of text; fields have the names of transformers."""

    PANEL: ClassVar = "Generation"

    max_new_tokens: int = flag(CAPTION_NEW_TOKENS, "--max-new-tokens N", "Maximum number of generated tokens.", least=1)
    min_new_tokens: int = flag(0, "--min-new-tokens N", "Minimum number of generated tokens.", least=0)
    num_beams: int = flag(
        1, "--num-beams N", "Number of beams to search with; 1 is greedy.", least=1, hint="1 is greedy."
    )
    temperature: float | None = flag(
        None, "--temperature N", "Sample at this temperature. If left out, take the likeliest tokens, or the best beam."
    )
    top_p: float | None = flag(None, "--top-p N", "Sample only from the likeliest tokens whose probabilities sum to N.")
    top_k: int | None = flag(
        None, "--top-k N", "Sample only from the N likeliest tokens.", least=1, hint="Leave it out to keep every token."
    )
    repetition_penalty: float = flag(
        1.0, "--repetition-penalty N", "Above 1: tokens that were generated become less likely."
    )
    no_repeat_ngram_size: int = flag(
        0,
        "--no-repeat-ngram-size N",
        "Generate no sequence of N tokens twice; 0 turns this off.",
        least=0,
        hint="0 turns it off.",
    )
    length_penalty: float = flag(
        1.0, "--length-penalty N", "With beams: above 0 prefers long texts, below 0 short ones."
    )
    system: str | None = flag(
        None, "--system TEXT", "System's turn before the prompt, for models with a chat template; not for BLIP-2."
    )
    num_captions: int = flag(
        1,
        "--num-captions N",
        "Number of captions for each image, in the column `texts`: the best beams, or samples.",
        least=1,
    )
    seed: int = flag(
        0,
        "--seed N",
        "Seed of sampling. Each image has its own random stream, independent of batches and order.",
        least=0,
    )

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty", "length_penalty"):
            value = getattr(self, name)
            if value is not None:  # transformers requires 2.0 where a user writes 2
                object.__setattr__(self, name, float(value))
        check_limits(self)
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"--min-new-tokens {self.min_new_tokens} is more than --max-new-tokens {self.max_new_tokens}. "
                "Lower it, or raise the other."
            )
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise UsageError(f"--temperature {self.temperature}: must be above 0. Leave it out for greedy text.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p}: must be above 0 and at most 1.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(f"--repetition-penalty {self.repetition_penalty}: must be above 0; 1.0 turns it off.")
        if not float("-inf") < self.length_penalty < float("inf"):
            raise UsageError(f"--length-penalty {self.length_penalty}: must be a number.")
        self._check_combinations()

    @property
    def sampling(self) -> bool:
        """True if tokens are drawn at random."""
        return self.temperature is not None

    def _check_combinations(self) -> None:
        if not self.sampling:
            for flag, value in (("--top-p", self.top_p), ("--top-k", self.top_k)):
                if value is not None:
                    raise UsageError(
                        f"{flag} {value} has no effect without sampling. Add --temperature, or leave it out."
                    )
        elif self.num_beams > 1:
            raise UsageError(
                f"--temperature {self.temperature} and --num-beams {self.num_beams} exclude each other: "
                "sample, or search with beams."
            )
        if self.length_penalty != 1.0 and self.num_beams == 1:
            raise UsageError(
                f"--length-penalty {self.length_penalty} has no effect without beams. Add --num-beams, or leave it out."
            )
        if self.num_captions > 1 and not self.sampling and self.num_captions > self.num_beams:
            raise UsageError(
                f"--num-captions {self.num_captions} needs --temperature, or --num-beams of at least "
                f"{self.num_captions}: greedy text is always the same."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """Rules for generated texts, applied in this order."""

    PANEL: ClassVar = "Text rules"

    loop_guard: bool = flag(
        False,
        "--loop-guard",
        "Regenerate texts that loop, repeat their prompt or are empty; flag what is still bad in the column `flag`.",
    )
    trim_sentence: bool = flag(
        False, "--trim-sentence", "Remove the incomplete last sentence of texts that reached --max-new-tokens."
    )
    strip: tuple[str, ...] = flag(
        (), "--strip TEXT", 'Remove TEXT from the start of texts, e.g. "a photo of"; repeatable.'
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "strip", tuple(prefix.strip() for prefix in self.strip))
        if not all(self.strip):
            raise UsageError('--strip is empty: expected the start of a text, e.g. "a photo of".')
