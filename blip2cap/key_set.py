"""A set of keys that costs at most about 20 bytes a key, however long the keys are.

Kept of a key are 128 bits of BLAKE2b. Were two keys to share them, the second would be taken for done, and its image
would get no row; among a hundred million keys the chance of that is below 1 in 10^22.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b

_SIZE = 16
"""Bytes of a digest."""
_MEAN = 40
"""KeySet in a bucket before there are twice as many: fewer cost memory for the buckets, more are slow to search."""


class KeySet:
    """Strings to be recognised; what they were cannot be read back."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._buckets = [bytearray()]
        """Digests one after the other, each in the bucket that its first bytes say; a power of 2 in number."""
        self._mask = 0
        """Which bits of those bytes count."""
        self._num = 0
        for key in keys:
            self.add(key)

    def add(self, key: str) -> bool:
        """Add a key; return whether it is new."""
        # Said twice, here and below: a call more would be a fifth of the time of a run with nothing left to do.
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()
        bucket = self._buckets[int.from_bytes(digest[:4], "little") & self._mask]
        if digest in bucket:
            return False
        bucket += digest
        self._num += 1
        if self._num > _MEAN * len(self._buckets):
            self._split()
        return True

    def __contains__(self, key: object) -> bool:
        digest = blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()
        # One found astride two others is as unlikely as any collision.
        return digest in self._buckets[int.from_bytes(digest[:4], "little") & self._mask]

    def __len__(self) -> int:
        return self._num

    def __eq__(self, other: object) -> bool:
        """Compare with any collection that holds no key twice."""
        if not isinstance(other, Collection):
            return NotImplemented
        return len(self) == len(other) and all(key in self for key in other)

    __hash__ = None  # type: ignore[assignment]

    def _split(self) -> None:
        """Divide every bucket in two, one after the other: all are never there twice."""
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
