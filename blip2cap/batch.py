"""Threads that decode ahead of the model, in order, with a bounded number of images in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from blip2cap.decode import Decoded
from blip2cap.errors import ImageError
from blip2cap.records import ImageRef

Item = TypeVar("Item")


def decode_ahead(
    items: Iterable[Item],
    ref_of: Callable[[Item], ImageRef],
    decode: Callable[[ImageRef], Decoded],
    *,
    num_threads: int,
    num_ahead: int,
) -> Iterator[tuple[Item, Decoded | ImageError]]:
    """Yield every item with its decoded image or what is wrong with it, in the order of `items`.

    At most `num_ahead` images are decoded or waiting at any time; `items` is read no further than that.
    """
    pending: deque[tuple[Item, Future[Decoded | ImageError]]] = deque()
    iterator = iter(items)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        try:
            while True:
                for item in islice(iterator, num_ahead - len(pending)):
                    pending.append((item, pool.submit(_guarded, decode, ref_of(item))))
                if not pending:
                    return
                item, future = pending.popleft()
                yield item, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Group items into lists of `size`, the last one as long as it is."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _guarded(decode: Callable[[ImageRef], Decoded], ref: ImageRef) -> Decoded | ImageError:
    """Turn whatever a decoder raises into data: nothing that one image does may end the run."""
    try:
        return decode(ref)
    except ImageError as error:
        return error
    except MemoryError:
        return ImageError("out_of_memory", "not enough memory to decode it")
    except Exception as error:
        return ImageError("decoder_crashed", f"{type(error).__name__}: {error}")
