"""A set of keys that takes about 20 bytes per key, however long the keys are, once one was looked up out of order.

It stores 128 bits of BLAKE2b per key. If two keys had the same hash, the second would count as already done, and its
image would get no row; among a hundred million keys the probability of that is below 1 in 10^22.

Until then, keys that are added many at once are kept in their order, compressed: names of random digits to half their
length, names with numbers to a few bytes. A run with nothing left to do asks for a million keys in the order of their
rows, and each is compared with the next one.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b

_SIZE = 16
"""Length of a digest in bytes."""
_MEAN = 40
"""Mean number of keys in a bucket at which the buckets are split: fewer take memory, more are slow to search."""
_AT_ONCE = 1 << 18
"""Least number of digests that are sorted into the buckets at once, which takes several times their memory."""
_BLOCK = 1 << 10
"""Number of keys that are compressed together."""


class KeySet:
    """A set of strings, stored as digests: they cannot be listed. Several threads may look keys up."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._queue: list[bytes] = []
        """Compressed blocks of keys that `extend` has added."""
        self._num_queued = 0
        """Number of keys in the queue."""
        self._next_block = 0
        self._expected: list[str] = []
        """Keys of the block before `_next_block` that were not looked up yet, the next one last."""
        self._lock = threading.Lock()
        self._buckets = [bytearray()]
        """Concatenated digests; the first bytes of a digest select its bucket. Their number is a power of 2."""
        self._mask = 0
        """Bits of those bytes that are used."""
        self._num = 0
        for key in keys:
            self.add(key)

    def extend(self, keys: Sequence[str]) -> None:
        """Add many new keys, best in the order in which they will be looked up."""
        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            self._queue.append(zlib.compress(json.dumps(block).encode(), level=1))
            self._num_queued += len(block)

    def add(self, key: str) -> bool:
        """Add a key; return whether it is new."""
        # Duplicated in __contains__: one more call would take a fifth of the time of a run with nothing to do.
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()
        if self._queue:
            self._empty_queue()
        bucket = self._buckets[int.from_bytes(digest[:4], "little") & self._mask]
        if digest in bucket:
            return False
        bucket += digest
        self._num += 1
        if self._num > _MEAN * len(self._buckets):
            self._split()
        return True

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, str)
        if self._queue:
            # No lock for each key: if two threads take the same one, the next lookup is out of order. A slice, as the
            # other thread may empty the list.
            if self._expected[-1:] == [key]:
                del self._expected[-1:]
                return True
            if self._is_next(key):
                return True
            self._empty_queue()
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()
        # A match that spans two digests is as unlikely as a collision.
        return digest in self._buckets[int.from_bytes(digest[:4], "little") & self._mask]

    def __len__(self) -> int:
        return self._num + self._num_queued

    def __eq__(self, other: object) -> bool:
        """Compare with a collection without duplicates."""
        if not isinstance(other, Collection):
            return NotImplemented
        return len(self) == len(other) and all(key in self for key in other)

    __hash__ = None  # type: ignore[assignment]

    def _is_next(self, key: str) -> bool:
        """If the block is finished, compare with the first key of the next one, and go on to its second."""
        with self._lock:
            if self._expected or self._next_block >= len(self._queue):
                return False
            expected = _unpacked(self._queue[self._next_block])[::-1]
            self._next_block += 1
            if found := expected[-1] == key:
                expected.pop()
            self._expected = expected
            return found

    def _empty_queue(self) -> None:
        """Move the keys of the queue to the buckets."""
        import numpy as np

        with self._lock:
            while self._num + self._num_queued > _MEAN * len(self._buckets):
                self._split()
            step = -(-max(_AT_ONCE, 8 * len(self._buckets)) // _BLOCK)  # each time, all buckets are visited
            for start in range(0, len(self._queue), step):
                keys = (key for block in self._queue[start : start + step] for key in _unpacked(block))
                digests = b"".join(
                    [blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest() for key in keys]
                )
                indices = np.frombuffer(digests, "<u4")[:: _SIZE // 4] & self._mask
                digests = np.frombuffer(digests, f"V{_SIZE}")[np.argsort(indices, kind="stable")].tobytes()
                end = 0
                for index, count in enumerate(np.bincount(indices).tolist()):
                    self._buckets[index] += digests[end : (end := end + count * _SIZE)]
            self._num += self._num_queued
            self._num_queued, self._next_block, self._expected = 0, 0, []
            self._queue = []  # only now: until then other threads wait for the lock

    def _split(self) -> None:
        """Split the buckets in two, one at a time: the set is never in memory twice."""
        num = self._mask + 1
        self._mask += num
        for index in range(num):
            bucket = self._buckets[index]
            halves = bytearray(), bytearray()
            for start in range(0, len(bucket), _SIZE):
                digest = bucket[start : start + _SIZE]
                halves[int.from_bytes(digest[:4], "little") & num > 0].extend(digest)
            self._buckets[index] = halves[0]
            self._buckets.append(halves[1])


def _unpacked(block: bytes) -> list[str]:
    """Return the keys of a compressed block."""
    keys: list[str] = json.loads(zlib.decompress(block))
    return keys
