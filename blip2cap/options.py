"""Options as frozen dataclasses, one per stage, checked where they are made.

The metadata of a field (`flags`) is its flag, its variable, its config key, its help and its entry in docs/options.md.
Its default is the default of the command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from blip2cap.batch_size import BatchSize
from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag, flags_of
from blip2cap.generate_options import GenerateOptions as GenerateOptions  # here too, for users of Python
from blip2cap.generate_options import TextOptions as TextOptions
from blip2cap.records import FAILURES
from blip2cap.server_options import PREFIX, ServerOptions

DEFAULT_MODEL = "Salesforce/blip2-opt-2.7b"
DEFAULT_MATCHING_MODEL = "Salesforce/blip2-itm-vit-g"
MAX_BYTES = 1_000_000_000
"""Size limit of one image file, in bytes."""
_FIRST_IMAGES, _MOST_IMAGES = 8, 128
"""First and largest number of images encoded at once, while the best number is measured."""
_MOST_THREADS = 16
"""Most threads that decode, unless more are asked for."""
MAX_PIXELS = 1024 * 1024
"""Number of pixels of an image for models that take any size, unless --max-pixels is given. Of a 1920 x 1080 picture
1365 x 768 are left, about 1,000 tokens of Qwen3-VL instead of 2,000."""
_QUICK_S = 0.25
"""Batches that take less time, in seconds, are doubled without a measurement."""


class Kind(Enum):
    """Kind of an output."""

    STREAM = "stream"
    """JSONL on standard output; nothing is remembered."""
    JOURNAL = "journal"
    """A .jsonl file that is its own journal."""
    PARQUET = "parquet"
    """A .parquet file, with a journal beside it until the run ends."""
    PARTS = "parts"
    """A folder, here or in a bucket, of Parquet parts."""


_OF_WEIGHTS = ("dtype", "quantize", "device", "device-map", "revision", "random-weights")
"""Options of a model that this machine loads."""
SUFFIXES = {".jsonl": Kind.JOURNAL, ".parquet": Kind.PARQUET}
"""Suffixes of outputs that are one file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Images to process."""

    PANEL: ClassVar = "Input"

    inputs: tuple[str, ...] = flag(
        (),
        "INPUT",
        "Folders (searched recursively), image files, .tar or .parquet files, URLs such as s3://bucket/folder, or `-` "
        "for paths on standard input. shards/{000..099}.tar stands for 100 files.",
    )
    include: tuple[str, ...] = flag(
        (), "--include GLOB", "Take only images that match a pattern as in .gitignore: '*.png', 'pets/'; repeatable."
    )
    exclude: tuple[str, ...] = flag((), "--exclude GLOB", "Skip images and folders that match a pattern; repeatable.")
    limit: int | None = flag(
        None, "--limit N", "Take only the first N images.", least=1, hint="Leave it out to take every image."
    )
    files_from: tuple[str, ...] = flag((), "--files-from FILE", "Read paths from FILE, one per line; repeatable.")
    null_separated: bool = flag(False, "-0, --null", "Paths in lists end with NUL, as find -print0 writes them.")
    image_column: str | None = flag(
        None,
        "--image-column NAME",
        "Column of .parquet inputs that holds the image bytes. Needed only if several columns could.",
    )
    max_bytes: int = MAX_BYTES
    """Larger members of archives become too_large rows before they are read."""

    def __post_init__(self) -> None:
        if not self.inputs and not self.files_from:
            raise UsageError(
                "no INPUT given: expected a folder, image files, `-` for paths on standard input, or --files-from."
            )
        if (*self.inputs, *self.files_from).count("-") > 1:
            raise UsageError("`-` given more than once: standard input can be read once.")
        check_limits(self)
        for name, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            if "" in patterns:
                raise UsageError(f"{name} is empty: expected a pattern as in .gitignore, like '*.png' or 'pets/'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeOptions:
    """Decoding of image files to pixels."""

    PANEL: ClassVar = "Speed"

    mode: str = flag(
        "fast",
        "--decode NAME",
        "fast: decode large JPEGs at a reduced size, at least twice the model's. exact: decode them in full.",
        choices=("fast", "exact"),
    )
    num_threads: int = flag(
        0,
        "--threads N",
        "Number of threads that decode images; 0: one per core, at most 16.",
        least=0,
        hint="0 takes one per core.",
    )
    allow_http: bool = flag(False, "--allow-http", "Fetch images from http:// and https:// URLs.", panel="Input")
    timeout_s: float = flag(
        60.0,
        "--timeout S",
        "Seconds to wait for one image, from the start of reading; after that it fails.",
        panel="Safety",
    )
    isolate: bool = flag(
        False,
        "--isolate",
        "Decode in separate processes: an image that crashes its decoder or exhausts memory fails alone.",
        panel="Safety",
    )
    max_pixels: int = 300_000_000
    """Larger images fail as too_large before they are decoded. Phones take pictures of 200 megapixels."""
    max_bytes: int = MAX_BYTES
    """Larger files fail as too_large before they are read."""
    max_memory: int = 4_000_000_000
    """Memory limit of an isolated decoder, in bytes, not counting the file; more fails as out_of_memory."""

    def __post_init__(self) -> None:
        check_limits(self)
        if not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"--timeout {self.timeout_s:g}: must be a number of seconds above 0.")

    @property
    def threads(self) -> int:
        """Number of threads to start."""
        return self.num_threads or min(_MOST_THREADS, os.cpu_count() or 1)

    def on_cores(self, num_cores: int) -> DecodeOptions:
        """Return the options for a process that has only this many cores."""
        return self if self.num_threads else replace(self, num_threads=min(_MOST_THREADS, num_cores))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The model, and how it computes."""

    PANEL: ClassVar = "Model"

    name: str = flag(
        DEFAULT_MODEL,
        "-m, --model NAME",
        "`tiny` or `tiny-itm` (included), a local folder, a Hugging Face Hub id, or openai:NAME behind --base-url.",
    )
    dtype: str = flag(
        "auto",
        "--dtype NAME",
        "auto, float32, bfloat16 or float16. auto: bfloat16 if it is fast on the device, else float16 on a GPU "
        "(float32 for Flan-T5) and float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantize: str | None = flag(
        None,
        "--quantize KIND",
        "int8, nf4 or fp8: less memory, on a GPU. int8-dynamic: on a CPU too, where it is also faster.",
        choices=("int8", "nf4", "int8-dynamic", "fp8"),
    )
    device: str = flag("auto", "--device NAME", "auto, cpu, cuda or cuda:N.")
    device_map: str | None = flag(
        None,
        "--device-map NAME",
        "Spread a model that does not fit on one GPU over all of them: auto, balanced or sequential.",
        choices=("auto", "balanced", "sequential"),
    )
    revision: str | None = flag(None, "--revision NAME", "Commit, branch or tag of the model on the Hub.")
    random_weights: bool = flag(
        False, "--random-weights", "Random weights in the size of --model: measure speed without a download."
    )

    max_pixels: int | None = flag(
        None,
        "--max-pixels N",
        "Largest image that a model of any image size is given, in pixels; larger ones are made smaller. 1048576 if "
        "left out; not for BLIP-2, whose images have one size.",
        least=1,
        hint="Leave it out for 1048576, which is 1024 x 1024.",
    )
    server: ServerOptions = field(default_factory=ServerOptions)
    """The server that has the model, if its name begins with `openai:`."""
    texts_only: bool = False
    """Load only what embeds texts: an image-text matching model without its vision encoder."""

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("--model is empty: expected `tiny`, a folder or a hub id.")
        check_limits(self)
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise UsageError(f"--device {self.device}: must be auto, cpu, cuda or cuda:N.")
        self._check_server()
        if self.device_map is not None:
            self._check_device_map()
        if self.quantize == "fp8" and self.dtype not in ("auto", "bfloat16"):
            raise UsageError(
                f"--quantize fp8 and --dtype {self.dtype} exclude each other: fp8 weights are made from bfloat16."
            )

    @property
    def on_server(self) -> bool:
        """True if a server has the model."""
        return self.name.startswith(PREFIX)

    def _check_server(self) -> None:
        """Raise UsageError for an option that has no effect: of a server without one, of weights with one."""
        if not self.on_server:
            for name in _changed(self.server):
                raise UsageError(
                    f"--{name} has no effect with --model {self.name}, which is no model behind a server. Expected "
                    "--model openai:NAME, or leave it out."
                )
        elif self.name == PREFIX:
            raise UsageError(f"--model {PREFIX}: expected the name that the server gives to its model after the colon.")
        else:
            for name in _changed(self):
                if name in _OF_WEIGHTS:
                    raise UsageError(
                        f"--{name} has no effect with --model {self.name}: its server loads the model. Leave it out."
                    )

    def _check_device_map(self) -> None:
        if self.device not in ("auto", "cuda"):
            raise UsageError(
                f"--device-map {self.device_map} and --device {self.device} exclude each other: "
                "the model is spread over all GPUs. Leave one out."
            )
        if self.quantize in ("int8-dynamic", "fp8"):
            raise UsageError(
                f"--device-map {self.device_map} and --quantize {self.quantize} exclude each other: "
                f"{self.quantize} works on one GPU only. Use --quantize int8 or nf4."
            )
        if self.random_weights:
            raise UsageError(
                f"--device-map {self.device_map} and random weights exclude each other. Leave --device-map out."
            )


def _changed(options: Any) -> Iterator[str]:
    """Yield the long names of the flags whose values are not the defaults."""
    for each, its_flag in flags_of(options):
        if getattr(options, each.name) != each.default:
            yield its_flag.long_name


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """Number of images in the model at once."""

    PANEL: ClassVar = "Speed"

    batch_size: int | None = flag(
        None,
        "--batch-size N",
        "Number of images encoded, and texts generated, at once. Measured if left out.",
        least=1,
        hint="Leave it out to let blip2cap measure a size that fits.",
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def images(self) -> BatchSize:
        """Return the number of images to encode at once: the given one, or one that grows while that is faster."""
        if self.batch_size is not None:
            return BatchSize(self.batch_size)
        return BatchSize(_FIRST_IMAGES, _MOST_IMAGES, quick_s=_QUICK_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """The output, and what happens to existing rows."""

    PANEL: ClassVar = "Output"

    out: str = flag(
        "captions.jsonl",
        "-o, --out PATH",
        "A .jsonl or .parquet file; FOLDER/ or s3://BUCKET/FOLDER/ for a folder of parts; `-` for standard output.",
    )
    overwrite: bool = flag(
        False, "--overwrite", "Replace the output file instead of resuming it; not for folders of parts."
    )
    retry_failed: bool = flag(False, "--retry-failed", "Retry images that have a failed row.")
    retry_only: tuple[str, ...] = flag(
        (), "--retry-only REASON", "Retry images that failed for this reason only, e.g. unreachable; repeatable."
    )
    same_inputs: bool = flag(
        False, "--same-inputs", "The folder of the images was renamed or moved: continue the output with its new name."
    )
    part_size: int | None = flag(
        None,
        "--part-size N",
        "Number of inputs in one part of a new folder of parts. 10000 if left out, fewer with several texts.",
        least=1,
        hint="Leave it out for parts of 10000 inputs.",
    )
    shard: str | None = flag(
        None, "--shard I/N", "In a folder of parts, process only every N-th part, starting with the I-th: 1/8, 2/8, ..."
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.shard is not None:
            numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", self.shard)
            if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
                raise UsageError(f"--shard {self.shard}: must be I/N, with I from 1 to N, like 1/8.")
        for reason in self.retry_only:
            if reason not in FAILURES:
                raise UsageError(f"--retry-only {reason}: must be one of {', '.join(sorted(FAILURES))}.")
        retry = "--retry-only" if self.retry_only else "--retry-failed"
        if self.retry_only and self.retry_failed:
            raise UsageError("--retry-failed and --retry-only exclude each other: leave out --retry-failed.")
        if self.overwrite and self.retries:
            raise UsageError(f"--overwrite and {retry} exclude each other: all images are processed anyway.")
        kind = self.kind
        if kind is Kind.STREAM and (self.overwrite or self.retries):
            name = "--overwrite" if self.overwrite else retry
            raise UsageError(f"{name} and --out - exclude each other: rows go to standard output. Leave one out.")
        if kind is Kind.PARTS and self.overwrite:
            raise UsageError(
                f"--overwrite and --out {self.out} exclude each other: a folder is never deleted. Remove it yourself, "
                "or use another --out."
            )
        if kind is Kind.PARTS and self.same_inputs:
            raise UsageError(
                f"--same-inputs and --out {self.out} exclude each other: a folder of parts has a plan with the paths "
                "of its images. Give the image folder its old name again, or use another --out."
            )
        if kind is not Kind.PARTS and (self.part_size is not None or self.shard is not None):
            raise UsageError("--part-size and --shard are for a folder of parts: give --out a name that ends in /.")

    @property
    def retries(self) -> bool:
        """True if failed images are retried: all of them, or those that failed for the reasons in `retry_only`."""
        return self.retry_failed or bool(self.retry_only)

    def num_retried(self, failed: Mapping[str, int]) -> int:
        """Return the number of rows that are retried of those that `failed`, by error."""
        if self.retry_failed:
            return sum(failed.values())
        return sum(failed.get(reason, 0) for reason in {*self.retry_only})

    @property
    def kind(self) -> Kind:
        """Kind of the output, by its name. Raises UsageError for a name that no output has."""
        out, suffix = self.out, Path(self.out).suffix.lower()
        if out == "-":
            return Kind.STREAM
        if "://" in out and not out.endswith("/"):
            raise UsageError(f"--out {out}: a remote output is a folder of parts. Let its name end in /.")
        if out.endswith("/") or (os.path.isdir(out) and suffix not in SUFFIXES):
            return Kind.PARTS
        if suffix not in SUFFIXES:
            raise UsageError(
                f"--out {out}: must end in .jsonl or .parquet, or in / for a folder of parts, or be `-` for "
                "standard output."
            )
        return SUFFIXES[suffix]

    def takes(self, index: int) -> bool:
        """Return True if this run processes the part of this index, counted from 0."""
        if self.shard is None:
            return True
        first, step = map(int, self.shard.split("/"))
        return index % step == first - 1
