"""The embeddings of a run -> the files of a segment that searches read: vectors, codes and the list of images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blip2cap.index.catalog import damaged
from blip2cap.index.checksums import replacing_summed
from blip2cap.index.codes import code_blocks, codes_shape
from blip2cap.index.segment import EMBEDDINGS, VECTORS
from blip2cap.outputs.files import Files

_BATCH = 256
"""Embeddings in memory at once: 4 MB."""
_CENTRE_IMAGES = 4096
"""Images of which the mean row is taken."""


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Any]:
    """Yield record batches of some or all columns of a Parquet file. Raises OutputRefusedError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield from parquet.iter_batches(batch_size=_BATCH, columns=columns)
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def vectors_in(path: Path, shape: tuple[int, int]) -> Iterator[Any]:
    """Yield the embeddings of the ok rows of a Parquet file: float16 [some images, rows, length]."""
    import pyarrow.compute as pc

    for batch in read_rows(path, ["status", "embedding"]):
        column = batch.filter(pc.equal(batch["status"], "ok"))["embedding"]
        while hasattr(column, "flatten") and column.type.num_fields:  # nested lists of fixed size
            column = column.flatten()
        try:
            yield column.to_numpy().reshape(-1, *shape)
        except ValueError as error:
            raise damaged(path, f"expected embeddings of shape {list(shape)}") from error


def write_array(path: Path, dtype: str, shape: tuple[int, ...], blocks: Iterable[Any], files: Files) -> int:
    """Write the blocks of an array to a .npy file, atomically; return its checksum. Raises OSError.

    There is no file of an array without numbers; its checksum is 0.
    """
    if 0 in shape:
        return 0
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    num_left = int(np.prod(shape))
    with replacing_summed(files, path) as stream:
        stream.write(header.getvalue())
        for block in blocks:
            num_left -= block.size
            stream.write(np.ascontiguousarray(block, dtype).data.cast("B") if block.size else b"")
        assert not num_left, f"{path.name}: {num_left} numbers are missing"
    return stream.checksum


def write_vectors(folder: Path, num_images: int, shape: tuple[int, int], files: Files) -> int:
    """Write vectors.npy of a segment from its Parquet file; return its checksum."""
    blocks = _counted(folder / EMBEDDINGS, num_images, shape)
    return write_array(folder / VECTORS, "<f2", (num_images, *shape), blocks, files)


def _counted(path: Path, num_images: int, shape: tuple[int, int]) -> Iterator[Any]:
    """Yield the embeddings of a Parquet file. Raises OutputRefusedError unless they are this many."""
    found = 0
    for block in vectors_in(path, shape):
        found += len(block)
        yield block
    if found != num_images:
        raise damaged(path, f"expected {num_images} embeddings, found {found}")


def write_codes(path: Path, vectors: Any, centre: Any, files: Files) -> int:
    """Write the codes of a segment from its vectors, float16 [num_images, rows, length]; return their checksum."""
    shape = codes_shape(*vectors.shape)
    centre = np.asarray(centre, np.float32)
    return write_array(path, "<u8", shape if len(vectors) else (0,), code_blocks(vectors, centre), files)


def mean_row(vectors: Any) -> list[float]:
    """Return the mean of the rows of images, of a sample of them if there are many; [] without any."""
    if not len(vectors):
        return []
    sample = vectors[:: -(-len(vectors) // _CENTRE_IMAGES)]
    total = sum(sample[at : at + _BATCH].astype(np.float64).sum(axis=(0, 1)) for at in range(0, len(sample), _BATCH))
    return [float(value) for value in total / (sample.shape[0] * sample.shape[1])]
