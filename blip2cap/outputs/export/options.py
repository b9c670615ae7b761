"""The options of an export, checked: each has an effect in some formats only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from blip2cap.errors import UsageError

EXISTING = ("skip", "overwrite", "append", "prepend")
SEPARATOR = ", "
SHARD_SIZE = 10_000

_AFFIXES = ("prefix", "suffix")
APPLY = {
    "txt": ("extension", "separator", "which", *_AFFIXES),
    "imagefolder": ("column", "which", *_AFFIXES),
    "kohya": ("full_path", "which", *_AFFIXES),
    "csv": ("column", *_AFFIXES),
    "coco": ("results_only", "which", *_AFFIXES),
    "webdataset": ("shard_size", "which", *_AFFIXES),
    "labelstudio": ("url_prefix", "which", *_AFFIXES),
    "xmp": ("which", *_AFFIXES),
    "parquet": (),
    "jsonl": (),
}
"""Format -> the options that have an effect in it, beyond those of all formats."""
STREAMED = ("csv", "jsonl", "coco", "labelstudio")
"""Formats that can be written to standard output."""
_ONE_CAPTION = ("imagefolder", "xmp")
"""Formats that hold one caption for an image."""
_FLAGS = {"results_only": "--results"}
_NAMES = ("extension", "separator", "column", "full_path", "results_only", "shard_size", "which", "url_prefix")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Options of an export. None or empty: not given."""

    to: str
    out: str | None = None
    existing: str = "skip"
    question: str | None = None
    """Only answers to this question are exported."""
    min_itm: float | None = None
    """Rows of `match` with a lower probability are left out."""
    min_itc: float | None = None
    """Rows of `match` with a lower cosine are left out."""
    prefix: Mapping[str, str] = field(default_factory=dict)
    """Folder -> text before the captions of its images; "" stands for all folders; the longest match wins."""
    suffix: Mapping[str, str] = field(default_factory=dict)
    """Folder -> text after the captions of its images."""
    separator: str | None = None
    """Text between an existing caption and the new one."""
    extension: str | None = None
    """Extension of sidecars, with its dot."""
    column: str | None = None
    """Name of the column with the caption."""
    full_path: bool = False
    """Kohya: keys are absolute paths."""
    results_only: bool = False
    """COCO: the results format of evaluations, without the list of images."""
    shard_size: int | None = None
    """Webdataset: images in one archive."""
    which: str | None = None
    """Captions to export of rows with several: first, all or random:SEED."""
    url_prefix: str | None = None
    """Label Studio: text before the names of images, which become the ends of URLs."""

    @property
    def choice(self) -> tuple[str, str]:
        """The captions to export: first, all, or random and a seed."""
        several = self.to in ("coco", "labelstudio") and not self.results_only
        name, _, seed = (self.which or ("all" if several else "first")).partition(":")
        return name, seed

    def __post_init__(self) -> None:
        if self.to not in APPLY:
            raise UsageError(f"--to {self.to}: must be one of {', '.join(APPLY)}.")
        if self.existing not in EXISTING:
            raise UsageError(f"--existing {self.existing}: must be one of {', '.join(EXISTING)}.")
        if self.out == "-" and self.to not in STREAMED:
            raise UsageError(
                f"--out -: standard output takes {', '.join(STREAMED)}, not {self.to}. Give a file or a folder."
            )
        for name in (*_NAMES, *_AFFIXES):
            if getattr(self, name) not in (None, False, {}) and name not in APPLY[self.to]:
                flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
                formats = ", ".join(to for to, names in APPLY.items() if name in names)
                raise UsageError(f"{flag} has no effect with --to {self.to}; it is for {formats}. Leave it out.")
        for flag, least, lowest in (("--min-itm", self.min_itm, 0), ("--min-itc", self.min_itc, -1)):
            if least is not None and not lowest <= least <= 1:
                raise UsageError(f"{flag} {least:g}: must be from {lowest} to 1.")
        joins = self.existing in ("append", "prepend")
        if joins and self.to != "txt":
            raise UsageError(f"--existing {self.existing} is for --to txt. Use skip or overwrite with {self.to}.")
        if self.separator is not None and not joins:
            raise UsageError("--separator has no effect without --existing append or prepend. Leave it out.")
        if self.extension is not None and (not self.extension[1:] or self.extension[0] != "." or "/" in self.extension):
            raise UsageError(f"--extension {self.extension}: expected a dot and what follows it, as .caption.")
        if self.column is not None and (not self.column or self.column in ("file_name", "image")):
            raise UsageError(f"--column {self.column}: the name is taken. Choose another one.")
        if self.shard_size is not None and self.shard_size < 1:
            raise UsageError(f"--shard-size {self.shard_size}: must be 1 or more. Leave it out for {SHARD_SIZE}.")
        self._check_which(joins=joins)
        texts = {
            "--separator": self.separator or "",
            "--column": self.column or "",
            "--url-prefix": self.url_prefix or "",
            "--prefix": "".join(self.prefix.values()),
            "--suffix": "".join(self.suffix.values()),
        }
        for flag, text in texts.items():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"{flag} {text!r}: not valid UTF-8.") from error

    def _check_which(self, *, joins: bool) -> None:
        if not re.fullmatch("first|all|random:[0-9]+", self.which or "first"):
            raise UsageError(f"--which {self.which}: expected first, all or random:SEED, where SEED is a number.")
        if self.which == "all" and (self.to in _ONE_CAPTION or self.results_only or joins):
            holder = "--results" if self.results_only else f"--existing {self.existing}" if joins else f"--to {self.to}"
            raise UsageError(f"--which all: {holder} takes one caption for each image. Use first or random:SEED.")


def parse_affixes(flag: str, values: tuple[str, ...]) -> dict[str, str]:
    """Parse values of --prefix or --suffix: `TEXT` for all images, `FOLDER/=TEXT` for those below FOLDER.

    It is FOLDER/=TEXT if the part before the first `=` ends with `/`. `=TEXT` is TEXT for all, whatever it holds.
    """
    affixes: dict[str, str] = {}
    for value in values:
        folder, equals, text = value.partition("=")
        if not equals or (folder and not folder.endswith("/")):
            folder, text = "", value
        folder = folder_key(folder)
        if folder in affixes:
            raise UsageError(f"{flag} {value}: {folder or 'the text for all folders'} was given before. Give it once.")
        affixes[folder] = text
    return affixes


def folder_key(folder: str) -> str:
    """Normalise a folder: without `.`, double slashes and the final slash; "" is the top folder."""
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    return ("/" if folder.startswith("/") else "") + "/".join(parts)
