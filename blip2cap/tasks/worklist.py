"""The work of a run: the rows of each image, except those that are finished."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from blip2cap.records import ImageRef
from blip2cap.rows import row_key
from blip2cap.tasks.base import Request


class Worklist:
    """Turns images into requests and counts them."""

    def __init__(self, labels: Sequence[str | None] = (None,)) -> None:
        self.labels = labels
        """Labels of the rows of every image, as in `Task.labels`."""
        self.num_images = 0
        """Number of images so far."""
        self.num_finished = 0
        """Number of rows of these images that are finished."""

    def requests(self, refs: Iterable[ImageRef], finished: Container[str]) -> Iterator[Request]:
        """Yield one request for each image with missing rows, in the order of `refs`."""
        self.num_images = self.num_finished = 0
        for ref in refs:
            self.num_images += 1
            file_name, file_name_b64 = ref.file_name, ref.file_name_b64
            missing = tuple(label for label in self.labels if row_key(file_name, file_name_b64, label) not in finished)
            self.num_finished += len(self.labels) - len(missing)
            if missing:
                yield Request(ref=ref, labels=missing)
