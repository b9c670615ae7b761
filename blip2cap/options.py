"""Options as frozen dataclasses, one per stage, checked where they are made.

The defaults here are the defaults of the command line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from blip2cap.batch_size import BatchSize
from blip2cap.errors import UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16")
DECODE_MODES = ("fast", "exact")
QUANTIZE_KINDS = ("int8", "nf4", "int8-dynamic", "fp8")
DEVICE_MAPS = ("auto", "balanced", "sequential")
DEFAULT_MODEL = "Salesforce/blip2-opt-2.7b"
CAPTION_NEW_TOKENS = 30
ANSWER_NEW_TOKENS = 10
"""As LAVIS asks; answers are short."""
MAX_BYTES = 1_000_000_000
"""Of one image file."""
_FIRST_IMAGES, _MOST_IMAGES = 8, 128
"""Encoded at once, while their number is measured."""
_QUICK_S = 0.25
"""Rows may wait so long for a batch without anybody noticing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Which images."""

    inputs: tuple[str, ...] = ()
    """Folders, image files, tar archives, Parquet files, URLs, or `-` for paths on standard input."""
    files_from: tuple[str, ...] = ()
    """Files that hold paths."""
    null_separated: bool = False
    """Paths in lists end with NUL, not with a newline."""
    limit: int | None = None
    """Stop after this many images."""
    include: tuple[str, ...] = ()
    """Patterns as in .gitignore, against paths below the folder that is walked, or as given: only what matches."""
    exclude: tuple[str, ...] = ()
    """The same: nothing that matches, and no folder that does is entered."""
    image_column: str | None = None
    """The column of Parquet files that holds image bytes; None: the only one that can."""
    max_bytes: int = MAX_BYTES
    """Larger members of archives become too_large rows, before they are read."""

    def __post_init__(self) -> None:
        if not self.inputs and not self.files_from:
            raise UsageError(
                "no INPUT given: expected a folder, image files, `-` for paths on standard input, or --files-from."
            )
        if (*self.inputs, *self.files_from).count("-") > 1:
            raise UsageError("`-` given more than once: standard input can be read once.")
        _at_least("--limit", self.limit, 1, "Leave it out to take every image.")
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            if "" in patterns:
                raise UsageError(f"{flag} is empty: expected a pattern as in .gitignore, like '*.png' or 'pets/'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeOptions:
    """How image files become pixels."""

    mode: str = "fast"
    """fast: JPEGs are decoded no larger than is needed for twice the model's size; exact: decoded in full."""
    max_pixels: int = 300_000_000
    """Larger images fail as too_large, before they are decoded; 200-megapixel phone pictures are real."""
    max_bytes: int = MAX_BYTES
    """Larger files fail as too_large, before they are read."""
    allow_http: bool = False
    """Fetch http:// and https:// URLs; else they fail as unsupported."""
    num_threads: int = 0
    """Threads that decode; 0 takes one per core, at most 16."""
    timeout_s: float = 60.0
    """An image that has been waited for longer, reading included, fails as timeout."""
    isolate: bool = False
    """Decode in processes of their own: an image that crashes its decoder fails, and nothing else does."""
    max_memory: int = 4_000_000_000
    """Bytes that decoding one image may take there, besides its file; more fails as out_of_memory."""

    def __post_init__(self) -> None:
        if self.mode not in DECODE_MODES:
            raise UsageError(f"--decode {self.mode}: must be one of {', '.join(DECODE_MODES)}.")
        if not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"--timeout {self.timeout_s:g}: must be a number of seconds above 0.")
        _at_least("--threads", self.num_threads, 0, "0 takes one per core.")

    @property
    def threads(self) -> int:
        """The number of threads to start."""
        return self.num_threads or min(16, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and how it computes."""

    name: str = DEFAULT_MODEL
    """`tiny`, a local folder or a hub id."""
    revision: str | None = None
    """A commit, branch or tag on the hub."""
    dtype: str = "auto"
    """auto: bfloat16 where the device is fast at it; else float16 on a GPU (float32 for Flan-T5), float32 on a CPU."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    device_map: str | None = None
    """auto, balanced or sequential: spread over all GPUs, as accelerate does; for what does not fit one."""
    quantize: str | None = None
    """int8 or nf4, for memory; int8-dynamic or fp8, for speed too. On a CPU: int8-dynamic."""
    random_weights: bool = False
    """Only the model's size is real: random weights and a stand-in tokenizer, nothing to download; to measure speed."""

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("--model is empty: expected `tiny`, a folder or a hub id.")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: must be one of {', '.join(DTYPES)}.")
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise UsageError(f"--device {self.device}: must be auto, cpu, cuda or cuda:N.")
        if self.device_map is not None:
            self._check_device_map()
        if self.quantize is not None:
            self._check_quantize()

    def _check_device_map(self) -> None:
        if self.device_map not in DEVICE_MAPS:
            raise UsageError(f"--device-map {self.device_map}: must be one of {', '.join(DEVICE_MAPS)}.")
        if self.device not in ("auto", "cuda"):
            raise UsageError(
                f"--device-map {self.device_map} and --device {self.device} exclude each other: "
                "the model is spread over all GPUs. Leave one out."
            )
        if self.quantize in ("int8-dynamic", "fp8"):
            raise UsageError(
                f"--device-map {self.device_map} and --quantize {self.quantize} exclude each other: it is made on one "
                "GPU. Use --quantize int8 or nf4."
            )
        if self.random_weights:
            raise UsageError(
                f"--device-map {self.device_map} and random weights exclude each other. Leave --device-map out."
            )

    def _check_quantize(self) -> None:
        if self.quantize not in QUANTIZE_KINDS:
            raise UsageError(f"--quantize {self.quantize}: must be one of {', '.join(QUANTIZE_KINDS)}.")
        if self.quantize == "fp8" and self.dtype not in ("auto", "bfloat16"):
            raise UsageError(f"--quantize fp8 and --dtype {self.dtype} exclude each other: it is made of bfloat16.")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """How many images go through the model at once."""

    batch_size: int | None = None
    """Images encoded, and texts decoded, at once. Left out: measured, from few to as many as pay and fit."""

    def __post_init__(self) -> None:
        _at_least("--batch-size", self.batch_size, 1, "Leave it out to let blip2cap measure a size that fits.")

    def images(self) -> BatchSize:
        """Return the number of images to encode at once: the one given, or one that grows while that pays."""
        if self.batch_size is not None:
            return BatchSize(self.batch_size)
        return BatchSize(_FIRST_IMAGES, _MOST_IMAGES, quick_s=_QUICK_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """The output, and what happens to existing rows."""

    out: str = "captions.jsonl"
    overwrite: bool = False
    retry_failed: bool = False
    part_size: int | None = None
    """Number of inputs in a part; None: 10000."""
    shard: str | None = None
    """I/N: take every N-th part, beginning with the I-th; None: all."""

    def __post_init__(self) -> None:
        _at_least("--part-size", self.part_size, 1, "Leave it out for parts of 10000 inputs.")
        if self.overwrite and self.retry_failed:
            raise UsageError("--overwrite and --retry-failed exclude each other: the first does every image again.")
        if self.shard is not None:
            numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", self.shard)
            if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
                raise UsageError(f"--shard {self.shard}: must be I/N, with I from 1 to N, like 1/8.")

    def takes(self, index: int) -> bool:
        """Whether a part, counted from 0, is one of those to do."""
        if self.shard is None:
            return True
        first, step = map(int, self.shard.split("/"))
        return index % step == first - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """How text is generated; the names are those of transformers."""

    max_new_tokens: int = CAPTION_NEW_TOKENS
    min_new_tokens: int = 0
    num_beams: int = 1
    temperature: float | None = None
    """Given: sample. Left out: take the likeliest token, or the best beam."""
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    num_captions: int = 1
    """Texts for each image: sampled, or the best beams."""
    seed: int = 0
    """Of sampling; every image has its own stream, so neighbours and batches do not matter."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty", "length_penalty"):
            value = getattr(self, name)
            if value is not None:  # transformers wants 2.0 where a person writes 2
                object.__setattr__(self, name, float(value))
        _at_least("--max-new-tokens", self.max_new_tokens, 1, "")
        _at_least("--min-new-tokens", self.min_new_tokens, 0, "")
        _at_least("--num-beams", self.num_beams, 1, "1 is greedy.")
        _at_least("--no-repeat-ngram-size", self.no_repeat_ngram_size, 0, "0 turns it off.")
        _at_least("--num-captions", self.num_captions, 1, "")
        _at_least("--top-k", self.top_k, 1, "Leave it out to keep every token.")
        _at_least("--seed", self.seed, 0, "")
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
        """Whether tokens are drawn at random."""
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
    """What becomes of generated texts, in this order."""

    loop_guard: bool = False
    """Generate texts that loop, repeat their prompt or are empty once more, and flag what is still bad."""
    trim_sentence: bool = False
    """Cut texts that did not come to their end behind their last whole sentence."""
    strip: tuple[str, ...] = ()
    """What is taken off the beginning of texts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strip", tuple(prefix.strip() for prefix in self.strip))
        if not all(self.strip):
            raise UsageError('--strip is empty: expected what texts begin with, as "a photo of".')


def _at_least(flag: str, value: int | None, least: int, hint: str) -> None:
    if value is not None and value < least:
        raise UsageError(f"{flag} {value}: must be {least} or more. {hint}".rstrip())
