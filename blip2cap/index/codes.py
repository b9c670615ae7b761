"""Sign bits of rows, by which a scan chooses the images whose exact scores are computed.

A bit says whether a number is above the mean of all rows. Rows that point the same way have equal bits in most places:
the number of different ones, the Hamming distance, orders them nearly as the dot product does, at 32 bytes a row.

The file holds uint64 [blocks, rows, words, images in a block]: for each row and word the codes of thousands
of images side by side, so that one operation of numpy takes them all. Unused images of the last block are zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from blip2cap.index.threads import in_threads

BLOCK = 32_768
"""Most images in a block. Operations on shorter arrays leave threads waiting for the lock of Python."""
_MOST_QUERIES, _ALIKE = 4, 0.1
"""Queries that are scanned for, and the share of bits up to which another query stands for one."""


def num_words(length: int) -> int:
    """Return the number of 64-bit words of a row."""
    return -(-length // 64)


def codes_shape(num_images: int, rows: int, length: int) -> tuple[int, int, int, int]:
    """Return the shape of the codes of a segment."""
    num_blocks = -(-num_images // BLOCK)
    return num_blocks, rows, num_words(length), -(-num_images // max(1, num_blocks))


def pack(rows: Any) -> Any:
    """Pack the signs of numbers, [..., length], into little-endian uint64 [..., words]; 1 is above zero."""
    packed = np.packbits(rows > 0, axis=-1, bitorder="little")
    padding = -packed.shape[-1] % 8
    if padding:
        packed = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, padding)])
    return np.ascontiguousarray(packed).view("<u8")


def code_blocks(images: Any, centre: Any) -> Iterator[Any]:
    """Yield the blocks of codes of images: float16 [num_images, rows, length] -> uint64 [rows, words, block]."""
    num_blocks, rows, words, block = codes_shape(*images.shape)
    for number in range(num_blocks):
        codes = np.zeros((rows, words, block), "<u8")
        for start in range(number * block, min((number + 1) * block, len(images)), 256):
            some = images[start : min(start + 256, (number + 1) * block)]
            packed = pack(some.astype(np.float32) - centre)
            codes[..., start - number * block : start - number * block + len(some)] = packed.transpose(1, 2, 0)
        yield codes


def representatives(queries: Any) -> Any:
    """Return a few of the packed queries that no other is far from: at most `_MOST_QUERIES`, of shape [few, words].

    The rows of an image are alike, and a scan for each of them would take 32 times as long as one.
    """
    chosen = [0]
    away = np.bitwise_count(queries ^ queries[0]).sum(axis=1, dtype=np.int64)
    while len(chosen) < _MOST_QUERIES and away.max() > _ALIKE * 64 * queries.shape[1]:
        chosen.append(int(away.argmax()))
        away = np.minimum(away, np.bitwise_count(queries ^ queries[chosen[-1]]).sum(axis=1, dtype=np.int64))
    return queries[chosen]


def distances(codes: Any, num_images: int, queries: Any) -> Any:
    """Return the smallest Hamming distance of any row of an image to any query: uint8 [num_images].

    `queries` are the packed signs, uint64 [R, words]. A distance of 256, of a row opposite to a query, reads 0: such an
    image is one candidate too many.
    """
    num_blocks, _, _, block = codes.shape
    out = np.empty((num_blocks, block), np.uint8)
    in_threads(lambda number: _scan_block(codes[number], queries, out[number]), range(num_blocks))
    return out.reshape(-1)[:num_images]


def _scan_block(codes: Any, queries: Any, best: Any) -> None:
    rows, words, block = codes.shape
    different = np.empty((words, block), np.uint64)
    counts = np.empty((words, block), np.uint8)
    best.fill(255)
    for row, query in itertools.product(range(rows), queries):
        np.bitwise_xor(codes[row], query[:, None], out=different)
        np.bitwise_count(different, out=counts)
        total = counts[0]
        for word in range(1, words):
            np.add(total, counts[word], out=total)
        np.minimum(best, total, out=best)
