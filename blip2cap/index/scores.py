"""Exact scores of rows in float16, accumulated in float32: the definition that every search ends with."""

from __future__ import annotations

from typing import Any

import numpy as np

from blip2cap.index.threads import in_threads

_NUM_ROWS = 256
"""Rows converted at once: 256 KB of float32, which stay in the cache of a core."""
_PIECE = 256
"""Images that one thread scores at once."""
_UP = np.float32(2.0**112)
"""The factor between the exponents of float16 and float32."""


def best_scores(images: Any, queries: Any, chosen: Any | None = None) -> Any:
    """Return the maximum dot product of any row of an image with any query: float32 [num_images].

    `images` is float16 [num_images, rows, length] without infinities or NaN, mapped or not, of which the images at
    positions `chosen` are scored (None: all); `queries` is float32 [R, length].
    """
    num_images = len(images) if chosen is None else len(chosen)
    out = np.empty(num_images, np.float32)
    scaled = np.ascontiguousarray(queries.T * _UP)
    pieces = [slice(at, at + _PIECE) for at in range(0, num_images, _PIECE)]
    in_threads(lambda piece: _score(images, scaled, piece if chosen is None else chosen[piece], out[piece]), pieces)
    return out


def _score(images: Any, scaled: Any, chosen: Any, out: Any) -> None:
    """Score a piece of the images. `scaled` are the queries, [length, R], times `_UP`."""
    _, rows, length = images.shape
    per_block = max(1, _NUM_ROWS // rows)
    wide = np.empty((per_block * rows, length), np.int32)
    products = np.empty((per_block * rows, scaled.shape[1]), np.float32)
    bits = images.view(np.int16)
    bits, chosen = (bits[chosen], None) if isinstance(chosen, slice) else (bits, chosen)
    for start in range(0, len(out), per_block):
        here = slice(start, start + per_block)
        block = bits[here if chosen is None else chosen[here]]
        some = wide[: len(block) * rows]
        np.matmul(_widen(block.reshape(-1, length), some), scaled, out=products[: len(some)])
        np.max(products[: len(some)].reshape(len(block), -1), axis=1, out=out[here])


def _widen(bits: Any, wide: Any) -> Any:
    """Convert the bits of float16 numbers, int16, to float32 numbers that are smaller by a factor of `_UP`, in `wide`.

    numpy converts float16 number by number, which takes five times as long as these operations on integers.
    """
    np.copyto(wide, bits)
    np.left_shift(wide, 13, out=wide)
    np.bitwise_and(wide, np.int32(-0x70000001), out=wide)  # the copies of the sign below the sign
    return wide.view(np.float32)


def pooled(images: Any, chosen: Any) -> Any:
    """Return the normalised mean of the rows of each chosen image: float32 [len(chosen), length].

    `images` is float16 [num_images, rows, length]; `chosen` are positions. A mean of zeros stays zeros.
    """
    length = images.shape[2]
    out = np.empty((len(chosen), length), np.float32)
    bits = images.view(np.int16)

    def pool(piece: slice) -> None:
        some = bits[chosen[piece]]
        means = _widen(some, np.empty(some.shape, np.int32)).mean(axis=1) * _UP
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        np.divide(means, norms, out=out[piece], where=norms > 0)
        out[piece][norms[:, 0] == 0] = 0

    in_threads(pool, [slice(at, at + _PIECE) for at in range(0, len(chosen), _PIECE)])
    return out


def image_scores(images: Any, queries: Any, negative: Any | None, chosen: Any | None = None) -> Any:
    """Return the score of each image: `best_scores` for `queries`, minus the same for `negative` queries."""
    scores = best_scores(images, queries, chosen)
    return scores if negative is None else scores - best_scores(images, negative, chosen)
