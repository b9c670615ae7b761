"""Names that occur more than once among very many."""

from __future__ import annotations

import hashlib
import os
from array import array


class NameHashes:
    """Hashes of names, 8 bytes each, as an export may have 100 million; two names with one hash count as equal."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    @staticmethod
    def hash(name: str) -> int:
        """Return 64 bits of a name."""
        return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")

    def add(self, name: str) -> None:
        """Add one name."""
        self._hashes.append(self.hash(name))

    def repeated(self) -> dict[int, int]:
        """Return the hashes of the names that were added more than once, and how often each was."""
        import numpy as np

        if not self._hashes:
            return {}
        hashes = np.sort(np.frombuffer(self._hashes, dtype=np.uint64))
        again, counts = np.unique(hashes[1:][hashes[1:] == hashes[:-1]], return_counts=True)
        return dict(zip(again.tolist(), (counts + 1).tolist(), strict=True))
