"""A model without weights, and other stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blip2cap.decode import Pixels
from blip2cap.errors import ImageError
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt, Row


class FakeModel:
    """Says the mean colour of an image after the prompt: what it says depends on nothing else."""

    def __init__(
        self,
        *,
        max_images: int | None = None,
        max_texts: int | None = None,
        never_fits: Callable[[Pixels], bool] = lambda pixels: False,
        refuses: Callable[[Prompt], bool] = lambda prompt: False,
    ) -> None:
        self.max_images = max_images
        """More in one call raise MemoryError."""
        self.max_texts = max_texts
        """More at a time raise MemoryError."""
        self.never_fits = never_fits
        """An image that raises MemoryError in every call."""
        self.refuses = refuses
        """A prompt that comes back as an ImageError."""
        self.image_size = 8
        self.encode_sizes: list[int] = []
        """Images in each call, failed calls too."""
        self.num_encoded = 0
        """Images in calls that went well."""
        self.prompts: list[Prompt] = []

    def encode(self, images: Sequence[Pixels]) -> list[str]:
        """Return the mean colour of each image as its features."""
        self.encode_sizes.append(len(images))
        if self.max_images is not None and len(images) > self.max_images:
            raise MemoryError(f"{len(images)} images")
        if any(self.never_fits(pixels) for pixels in images):
            raise MemoryError("one image")
        self.num_encoded += len(images)
        return ["-".join(f"{value:.2f}" for value in pixels.mean(axis=(0, 1))) for pixels in images]

    def generate(
        self, features: Any, prompts: Sequence[Prompt], options: GenerateOptions, *, max_prompts: int
    ) -> list[list[Generated] | ImageError]:
        """Return prompt and features; a second and third caption say so."""
        if self.max_texts is not None and min(len(prompts), max_prompts) > self.max_texts:
            raise MemoryError(f"{min(len(prompts), max_prompts)} texts")
        self.prompts += prompts
        return [
            ImageError("unsupported", "too long")
            if self.refuses(prompt)
            else [
                Generated(text=f"{prompt.text} {features[prompt.image]} {copy}", finish_reason="stop", num_tokens=3)
                for copy in range(options.num_captions)
            ]
            for prompt in prompts
        ]


class ListSink:
    """Rows in a list."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.finished: set[str] = set()
        self.num_failed = 0

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Nothing to prepare."""

    def write(self, rows: Iterable[Row]) -> None:
        """Keep them."""
        self.rows += rows

    def finish(self) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to end."""
