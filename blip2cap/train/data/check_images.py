"""Decodes the images of examples as training does, in parallel; finds equal ones, and files that nothing names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from blip2cap.decode.image import Decoded
from blip2cap.decode.inputs import SquareInput
from blip2cap.decode.read import read
from blip2cap.engine.read_ahead import DecodeAhead
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.patterns import Patterns
from blip2cap.source.walk import ARCHIVE_SUFFIXES, Walk
from blip2cap.train.data.example import DataSet, Example, Problem
from blip2cap.train.plot import PLOT
from blip2cap.train.recipe_file import RECIPE

_MISSING = "vanished"
_EXTRACT = "; a training reads files: `blip2cap export ROWS --to imagefolder --out DIR` copies images out of archives"
_AHEAD = 4
"""Images that wait for each thread."""


@dataclass(frozen=True, slots=True)
class Images:
    """Results of reading the images of some sets, by their paths."""

    digests: Mapping[str, bytes]
    """Hash of the pixels of each image that can be read."""
    errors: Mapping[str, tuple[str, str]]
    """Reason and detail of each that cannot."""

    @property
    def num(self) -> int:
        """Number of different files."""
        return len(self.digests) + len(self.errors)


def read_images(
    sets: Iterable[DataSet], size: int, options: DecodeOptions, progress: Callable[[int, int], None]
) -> Images:
    """Decode every image once, to `size`; `progress` is called with the number of images and of failures so far."""
    refs = {each.path: ImageRef(path=each.path, name=each.name) for one in sets for each in one.examples}
    digests: dict[str, bytes] = {}
    errors: dict[str, tuple[str, str]] = {}
    with closing(SquareInput(size, choose_resizer).open(options)) as decoder:

        def decode(ref: ImageRef) -> Decoded:
            return decoder.decode(read(ref, options), isolated=options.isolate)

        ahead = DecodeAhead(
            refs.values(),
            lambda ref: ref,
            decode,
            num_threads=options.threads,
            num_ahead=_AHEAD * options.threads,
            timeout_s=options.timeout_s,
        )
        with closing(ahead):
            for result in ahead.results():
                if result is None:
                    continue
                ref, image = result
                if isinstance(image, Decoded):
                    digests[ref.path] = image.digest
                else:
                    reason = "missing image" if image.code == _MISSING else "unreadable image"
                    hint = _EXTRACT if any(f"{suffix}#" in ref.path.lower() for suffix in ARCHIVE_SUFFIXES) else ""
                    errors[ref.path] = reason, f"{ref.path}: {image.code}: {image.detail}{hint}"
                progress(len(digests) + len(errors), len(errors))
    return Images(digests=digests, errors=errors)


def bad_images(data: DataSet, images: Images) -> Iterator[Problem]:
    """Yield the examples whose images cannot be read."""
    for index, example in enumerate(data.examples):
        if (error := images.errors.get(example.path)) is not None:
            reason, detail = error
            yield Problem(reason=reason, where=example.where, detail=detail, example=index)


def equal_images(data: DataSet, images: Images) -> Iterator[Problem]:
    """Yield each file whose picture has had another name before."""
    first: dict[bytes, Example] = {}
    seen: set[str] = set()
    for example in data.examples:
        digest = images.digests.get(example.path)
        if digest is None or example.path in seen:
            continue
        seen.add(example.path)
        before = first.setdefault(digest, example)
        if before is not example:
            detail = f"{example.name} is the same picture as {before.name} ({before.where})"
            yield Problem(reason="equal images", where=example.where, detail=detail)


def overlap(train: DataSet, val: DataSet, images: Images) -> Iterator[Problem]:
    """Yield the examples for validation whose picture is also trained on, under whatever name."""

    def picture(example: Example) -> bytes | str:
        return images.digests.get(example.path) or os.path.realpath(example.path)

    trained = {picture(example): example for example in reversed(train.examples)}
    for example in val.examples:
        if (same := trained.get(picture(example))) is not None:
            yield Problem(
                reason="train/val overlap",
                where=example.where,
                detail=f"{example.name} is trained on too ({same.where})",
            )


def unreferenced(sets: Iterable[DataSet]) -> Iterator[Problem]:
    """Yield the images in the folders of some sets that none of their entries names.

    Without the plot of a training whose folder is among the images, as RUN is with `--images .`.
    """
    sets = list(sets)
    paths = {path for one in sets for path in (*(each.path for each in one.examples), *one.other_paths)}
    named = {os.path.realpath(path) for path in paths if "://" not in path}
    for folder in dict.fromkeys(folder for one in sets for folder in one.folders):
        if not os.path.isdir(folder):
            continue
        walk = Walk(folder, "", Counter(), Patterns(SourceOptions(inputs=(folder,))))
        for ref in walk.in_order():
            if os.path.realpath(ref.path) not in named and not _is_plot(ref.path):
                yield Problem(reason="unreferenced image", where=ref.path)


def _is_plot(path: str) -> bool:
    folder, name = os.path.split(path)
    return name == PLOT and os.path.isfile(os.path.join(folder, RECIPE))
