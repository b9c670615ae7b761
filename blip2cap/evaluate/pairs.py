"""Pairs what a run has made with its references, by the ids or the names that both have."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blip2cap.errors import InputError
from blip2cap.evaluate.entries import Entries, Entry
from blip2cap.source.walk import IMAGE_SUFFIXES

_NUM_EXAMPLES = 3
Key = Callable[[Entry], "tuple[str, ...] | None"]
"""Returns what identifies an entry; None if it has no such thing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One caption or answer with its references."""

    own: Entry
    """Has exactly one text."""
    reference: Entry
    """Has one text or more."""

    @property
    def image(self) -> str:
        """Name of the image, as the run has it if it names it."""
        return self.own.image or self.reference.image


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Everything that can be evaluated, in the order of the references."""

    pairs: tuple[Pair, ...]
    by: str
    """Key by which entries were paired: "file name"."""
    left_out: str = ""
    """Message about the entries without a partner, which were left out; "" if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """A way to compare entries."""

    name: str
    own: Key
    reference: Key
    is_loose: bool = False
    """True: parts of names are compared, so a key that several entries have says nothing."""


def _name(entry: Entry) -> tuple[str, ...] | None:
    return (os.path.normpath(entry.image),) if entry.image else None


def _base_name(entry: Entry) -> tuple[str, ...] | None:
    return (os.path.basename(entry.image),) if entry.image else None


def _stem(entry: Entry) -> tuple[str, ...] | None:
    """Return the name without the suffix of an image: text files and kohya's metadata name images so."""
    stem, suffix = os.path.splitext(os.path.normpath(entry.image))
    return (stem,) if suffix.lower() in IMAGE_SUFFIXES else None


def _image_id(entry: Entry) -> tuple[str, ...] | None:
    return (entry.image_id,) if entry.image_id else None


def _number_in_name(entry: Entry) -> tuple[str, ...] | None:
    """Return the image id that COCO writes into the names of files: COCO_val2014_000000000042.jpg is 42."""
    found = re.search(r"(\d+)$", os.path.splitext(os.path.basename(entry.image))[0])
    return (str(int(found[1])),) if found else None


def _question_id(entry: Entry) -> tuple[str, ...] | None:
    return (entry.question_id,) if entry.question_id else None


def _asked(image: Key) -> Key:
    def key(entry: Entry) -> tuple[str, ...] | None:
        found = image(entry)
        return None if found is None or entry.question is None else (*found, entry.question.strip())

    return key


_OF_IMAGES = (
    _Way(name="file name", own=_name, reference=_name),
    _Way(name="image_id", own=_image_id, reference=_image_id),
    _Way(name="file name without its suffix", own=_stem, reference=_name, is_loose=True),
    _Way(name="file name without folders", own=_base_name, reference=_base_name, is_loose=True),
    _Way(name="number in the file name and image_id", own=_number_in_name, reference=_image_id, is_loose=True),
)
_OF_QUESTIONS = (
    _Way(name="question_id", own=_question_id, reference=_question_id),
    *(
        _Way(
            name=f"{way.name} and question", own=_asked(way.own), reference=_asked(way.reference), is_loose=way.is_loose
        )
        for way in _OF_IMAGES
    ),
)
"""Ways to compare, in order of preference."""


def pair(output: Entries, references: Entries, *, only_matched: bool = False) -> Pairs:
    """Pair every entry of an output with its references, in the way in which most have a partner.

    Raises InputError, with counts and examples, if entries have no partner, unless `only_matched`; and always if the
    one has captions and the other answers, if nothing fits, or if an output has two texts for one thing.
    """
    if output.are_answers != references.are_answers:
        raise InputError(
            f"{output.given} has {output.noun}s, {references.given} has {references.noun}s. Expected references of the "
            "same kind."
        )
    best: tuple[_Way, _ByKey, _ByKey] | None = None
    most = 0
    for way in _OF_QUESTIONS if output.are_answers else _OF_IMAGES:
        own, wanted = _by_key(output, way.own), _by_key(references, way.reference)
        if way.is_loose and (own.twice or wanted.twice):
            continue
        if (num_common := len(own.entries.keys() & wanted.entries.keys())) > most:
            best, most = (way, own, wanted), num_common
    if best is None:
        raise InputError(_nothing_fits(output, references))
    way, own, wanted = best
    for entries, found in ((output, own), (references, wanted)):
        if found.twice:
            raise InputError(
                f"{entries.given}: {found.twice.label} is there twice. Expected one entry for each {way.name}."
            )
    pairs = tuple(
        Pair(own=each, reference=reference)
        for key, reference in wanted.entries.items()
        if (each := own.entries.get(key)) is not None and each.texts
    )
    left_out = _left_out(output, references, pairs)
    if left_out and not only_matched:
        raise InputError(
            f"{output.given} and {references.given}, compared by {way.name}: {left_out}. Give references of exactly "
            f"these {output.noun}s, or evaluate the {len(pairs):,} that have both with --only-matched."
        )
    if not pairs:
        raise InputError(f"{output.given}: {left_out}. There is nothing to evaluate.")
    return Pairs(pairs=pairs, by=way.name, left_out=left_out)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ByKey:
    """The entries of one side, in one way to compare."""

    entries: dict[tuple[str, ...], Entry]
    """Without those that have no key; of equal keys, the first."""
    twice: Entry | None
    """The first with a key that another one before it has. An error only in the way that is chosen."""


def _by_key(entries: Entries, key: Key) -> _ByKey:
    found: dict[tuple[str, ...], Entry] = {}
    twice = None
    for each in entries.entries:
        if (its_key := key(each)) is not None and found.setdefault(its_key, each) is not each:
            twice = twice or each
    return _ByKey(entries=found, twice=twice)


def _left_out(output: Entries, references: Entries, pairs: Sequence[Pair]) -> str:
    """Return how many entries of each side have no partner, with examples; "" if all have one."""
    own, wanted = {id(each.own) for each in pairs}, {id(each.reference) for each in pairs}
    failed = [each for each in output.entries if not each.texts]
    alone = [each for each in output.entries if each.texts and id(each) not in own]
    missing = [each for each in references.entries if id(each) not in wanted]
    parts = []
    if alone:
        total = len(output.entries)
        parts.append(f"{len(alone):,} of {total:,} {output.noun}s have no reference ({_examples(alone)})")
    if missing:
        total = len(references.entries)
        parts.append(f"{len(missing):,} of {total:,} references have no {output.noun} ({_examples(missing)})")
    if failed:
        rows = "1 row of the run has failed" if len(failed) == 1 else f"{len(failed):,} rows of the run have failed"
        parts.append(f"{rows} ({_examples(failed)})")
    return "; ".join(parts)


def _nothing_fits(output: Entries, references: Entries) -> str:
    return (
        f"{output.given} and {references.given} have no {'question' if output.are_answers else 'image'} in common: "
        f"{len(output.entries):,} {output.noun}s of {_examples(output.entries)}; {len(references.entries):,} "
        f"references of {_examples(references.entries)}. Expected the same file names or ids on both sides."
    )


def _examples(entries: Sequence[Entry]) -> str:
    shown = ", ".join(f'"{each.label}"' for each in entries[:_NUM_EXAMPLES])
    return shown if len(entries) <= _NUM_EXAMPLES else f"{shown}, ..."
