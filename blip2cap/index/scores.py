"""Exact scores of rows in float16, accumulated in float32: the definition that every search ends with."""

from __future__ import annotations

from typing import Any

import numpy as np

_NUM_ROWS = 512
"""Rows converted at once: 512 KB of float32, which stay in the cache of a core."""
_UP = np.float32(2.0**112)
"""Difference of the exponent biases of float16 and float32, as a factor."""


def best_scores(images: Any, queries: Any, chosen: Any | None = None) -> Any:
    """Return the maximum dot product of any row of an image with any query: float32 [num_images].

    `images` is float16 [num_images, rows, length] without infinities or NaN, mapped or not, of which the images at
    positions `chosen` are scored (None: all); `queries` is float32 [R, length].
    """
    # numpy converts float16 number by number, five times as slow as these three operations on integers: the bits are
    # put where float32 has them, which leaves out a factor of 2**112; the queries have it instead.
    num_images, rows, length = images.shape
    num_images = num_images if chosen is None else len(chosen)
    per_block = max(1, _NUM_ROWS // rows)
    scaled = np.ascontiguousarray(queries.T * _UP)
    out = np.empty(num_images, np.float32)
    wide = np.empty((per_block * rows, length), np.int32)
    products = np.empty((per_block * rows, len(queries)), np.float32)
    bits = images.view(np.int16)
    for start in range(0, num_images, per_block):
        here = slice(start, start + per_block)
        block = bits[here if chosen is None else chosen[here]]
        some = wide[: len(block) * rows]
        np.copyto(some, block.reshape(-1, length))
        np.left_shift(some, 13, out=some)
        np.bitwise_and(some, np.int32(-0x70000001), out=some)  # the copies of the sign below the sign
        np.matmul(some.view(np.float32), scaled, out=products[: len(some)])
        np.max(products[: len(some)].reshape(len(block), -1), axis=1, out=out[here])
    return out


def image_scores(images: Any, queries: Any, negative: Any | None, chosen: Any | None = None) -> Any:
    """Return the score of each image: `best_scores` for `queries`, minus the same for `negative` queries."""
    scores = best_scores(images, queries, chosen)
    return scores if negative is None else scores - best_scores(images, negative, chosen)
