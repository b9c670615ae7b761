"""Parameters of LAVIS and a base -> the tensors of a checkpoint in the form of the hub.

No value is rounded: each tensor keeps the dtype that it has in the checkpoint, or in the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blip2cap.errors import ModelError
from blip2cap.lavis.base import BaseWeights
from blip2cap.lavis.keys import (
    JOINED_BIAS,
    LANGUAGE,
    LAST_NORM,
    POSITIONS,
    QUERY_BIAS,
    VALUE_BIAS,
    VISION,
    is_left_out,
    listed,
    rename,
    shared_names,
)
from blip2cap.lavis.read import LavisCheckpoint
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.positions import interpolate_positions

_ROUNDING = 0.01
"""Greatest difference of equal weights in dtypes of 16 bits, as a part of their norm."""
_COMPUTED = ".position_ids"
"""End of the names of constants that files of older versions of transformers hold as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """The content of the new checkpoint."""

    tensors: Mapping[str, Tensor]
    """All of them, by their names in transformers."""
    num_trained: int
    """Number of them that come from the checkpoint of LAVIS."""
    frozen: tuple[str, ...]
    """Parts that the checkpoint does not hold, which are those of the base."""
    left_out: tuple[str, ...]
    """Names in LAVIS of what transformers has no place for."""
    image_size: int
    """Side of the images in pixels."""


def convert(lavis: LavisCheckpoint, base: Checkpoint, weights: BaseWeights) -> Converted:
    """Put the parameters of a checkpoint in the place of those of the base.

    Raises ModelError if the base is of another model, or parameters are missing, unknown or of another shape.
    """
    kind = lavis.kind
    if base.family != kind.family or (kind.text_type and base.text_type != kind.text_type):
        raise ModelError(
            f"{lavis.path}: a checkpoint of LAVIS's {kind.name}. --base {base.name} is of another model (family "
            f"{base.family}). Expected the model that it was trained from, such as {kind.base}."
        )
    trained, unexpected = _rename(lavis)
    if kind.text_type:
        _share_embeddings(trained, shared_names(kind.text_type, weights.names), lavis, base, weights)
    vision, language, others = _parts(weights)
    frozen = tuple(
        title
        for title, names in (("vision encoder", vision), ("language model", language))
        if names and not names & trained.keys()
    )
    needed = others | (vision if "vision encoder" not in frozen else set())
    needed |= language if "language model" not in frozen else set()
    in_lavis = {rename(key, kind): key for key in lavis.tensors}
    unexpected += [in_lavis.get(name, name) for name in trained if name not in weights.names]
    problems = {
        "unknown": unexpected,
        "missing, by their names in transformers": sorted(needed - trained.keys()),
        "of another shape": _fit_shapes(trained, weights),
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
        raise ModelError(
            f"{lavis.path}: does not fit --base {base.name}. {found}. Expected the parameters of LAVIS's {kind.name}, "
            f"all of them or without frozen parts, and the base that they were trained from, such as {kind.base}."
        )
    image_size = _image_size(lavis, base, trained.get(POSITIONS))
    tensors = {name: trained[name] if name in trained else weights.read(name) for name in sorted(weights.names)}
    if POSITIONS not in trained:
        side = image_size // _patch_size(base)
        tensors[POSITIONS] = interpolate_positions(tensors[POSITIONS], side)
    return Converted(
        tensors=tensors,
        num_trained=len(trained),
        frozen=frozen,
        left_out=tuple(sorted(key for key in lavis.tensors if is_left_out(key))),
        image_size=image_size,
    )


def _rename(lavis: LavisCheckpoint) -> tuple[dict[str, Tensor], list[str]]:
    """Return the parameters by their names in transformers, and the names that have none."""
    trained: dict[str, Tensor] = {}
    unexpected = []
    for key, tensor in lavis.tensors.items():
        if is_left_out(key):
            continue
        name = rename(key, lavis.kind)
        if name is None:
            unexpected.append(key)
        else:
            trained[name] = tensor.detach()
    for name in [name for name in trained if name.endswith(QUERY_BIAS)]:
        layer = name.removesuffix(QUERY_BIAS)
        if (value := trained.pop(layer + VALUE_BIAS, None)) is not None:
            query = trained.pop(name)
            trained[layer + JOINED_BIAS] = torch.cat([query, torch.zeros_like(query), value])
    return trained, unexpected


def _share_embeddings(
    trained: dict[str, Tensor], shared: Iterable[str], lavis: LavisCheckpoint, base: Checkpoint, weights: BaseWeights
) -> None:
    """Give the word embeddings of the language model the names that the base has for them.

    LAVIS saves the other names of a shared parameter also when the parameter is frozen: then they are only compared.
    """
    found = [trained.pop(name) for name in shared if name in trained]
    names = [name for name in shared if name in weights.names]
    if not found:
        return
    if not all(torch.equal(found[0], other) for other in found[1:]):
        raise ModelError(
            f"{lavis.path}: the word embeddings of its language model differ from each other; those of --base "
            f"{base.name} are one parameter: {listed(names)}. Expected the base that the checkpoint was trained from."
        )
    if any(name.startswith(LANGUAGE) for name in trained):
        trained |= {name: found[0] if name == names[0] else found[0].clone() for name in names}
        return
    ours, theirs = found[0].float(), weights.read(names[0]).float()
    if ours.shape[1:] != theirs.shape[1:] or len(ours) > len(theirs):
        difference = math.inf
    else:
        difference = float((ours - theirs[: len(ours)]).norm() / ours.norm())
    if difference > _ROUNDING:
        raise ModelError(
            f"{lavis.path}: was trained with another language model than that of --base {base.name}: their word "
            f"embeddings differ. Expected the base that it was trained from, such as {lavis.kind.base}."
        )


def _parts(weights: BaseWeights) -> tuple[set[str], set[str], set[str]]:
    """Return the names of the vision encoder, of the language model, and of what LAVIS always trains."""
    names = {name for name in weights.names if not name.endswith(_COMPUTED)}
    vision = {name for name in names if name.startswith(VISION) and not name.startswith(LAST_NORM)}
    language = {name for name in names if name.startswith(LANGUAGE)}
    return vision, language, names - vision - language


def _fit_shapes(trained: dict[str, Tensor], weights: BaseWeights) -> list[str]:
    """Fill up embeddings of fewer words from the base; return what has a shape that does not fit.

    The hub's models have more words than those of LAVIS, such as `<image>`, which LAVIS does not use.
    """
    misfits = []
    for name, tensor in trained.items():
        if name not in weights.names or (shape := weights.shape(name)) == tensor.shape:
            continue
        has_words = name.endswith(("embed_tokens.weight", "shared.weight", "lm_head.weight", "word_embeddings.weight"))
        if has_words and tensor.shape[1:] == shape[1:] and len(tensor) < shape[0]:
            trained[name] = torch.cat([tensor, weights.read(name)[len(tensor) :].to(tensor.dtype)])
        elif name != POSITIONS or not _is_grid(tensor, shape[2]):
            misfits.append(f"{name} {list(tensor.shape)} instead of {list(shape)}")
    return misfits


def _is_grid(positions_1PD: Tensor, width: int) -> bool:
    """Return True for the position embeddings of a square image."""
    if positions_1PD.ndim != 3 or positions_1PD.shape[0] != 1 or positions_1PD.shape[2] != width:
        return False
    num_patches = positions_1PD.shape[1] - 1
    return num_patches > 0 and math.isqrt(num_patches) ** 2 == num_patches


def _patch_size(base: Checkpoint) -> int:
    return int((base.config.get("vision_config") or {}).get("patch_size", 14))


def _image_size(lavis: LavisCheckpoint, base: Checkpoint, positions_1PD: Tensor | None) -> int:
    """Return the side in pixels of the images that the checkpoint was trained with.

    Position embeddings say it in patches: the pixels of an incomplete patch at the edge are not seen.
    """
    said = lavis.image_size if lavis.image_size is not None else base.image_size
    if positions_1PD is None:
        return said
    patch_size, side = _patch_size(base), math.isqrt(positions_1PD.shape[1] - 1)
    return said if said // patch_size == side else side * patch_size
