"""A checkpoint file of LAVIS and a base -> a folder that any program for models of the hub loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from blip2cap.escapes import clean
from blip2cap.lavis.base import find_base, open_weights, settings_for
from blip2cap.lavis.convert import Converted, convert
from blip2cap.lavis.folder import check_is_free, write_folder
from blip2cap.lavis.keys import listed
from blip2cap.lavis.read import read
from blip2cap.options import ModelOptions


def import_lavis(path: Path, base: ModelOptions, out: Path, *, say: Callable[[str], None], quiet: bool) -> None:
    """Convert a checkpoint. Raises InputError, ModelError or OutputError.

    `say` is called with each line for the user; `quiet`: without them, and without a bar of a download.
    """
    check_is_free(out)
    lavis = read(path)
    found = find_base(base, say=say, quiet=quiet)
    with open_weights(found) as weights:
        converted = convert(lavis, found, weights)
        write_folder(out, converted.tensors, settings_for(found, converted.image_size))
    if not quiet:
        for line in _report(converted, base.name, old_size=found.image_size):
            say(clean(line))
        count = f"{len(converted.tensors)} tensors, {converted.num_trained} of them from {path} ({lavis.kind.name})"
        say(clean(f"{out}: {count}"))


def _report(converted: Converted, base: str, *, old_size: int) -> list[str]:
    lines = []
    if converted.frozen:
        lines.append(f"{' and '.join(converted.frozen)}: not in the checkpoint, taken from {base}")
    if converted.left_out:
        lines.append(f"left out, as transformers has no place for them: {listed(converted.left_out)}")
    if converted.image_size != old_size:
        lines.append(f"images of {converted.image_size} pixels; {base} takes {old_size}")
    return lines
