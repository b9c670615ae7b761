"""What a benchmark is asked to do, checked; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from blip2cap.errors import UsageError
from blip2cap.options import BatchOptions, DecodeOptions, GenerateOptions, ModelOptions
from blip2cap.records import ImageRef

IMAGE_SIZE = (640, 480)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """One benchmark."""

    command: str
    """As it was typed; goes into the results."""
    model: ModelOptions
    generate: GenerateOptions
    decode: DecodeOptions
    batch: BatchOptions
    questions: tuple[str, ...] | None = None
    """None: captions."""
    refs: tuple[ImageRef, ...] | None = None
    """The images to take; None draws scenes."""
    num_images: int | None = None
    """Take, or draw, so many. None: as many as make a pass of a few seconds."""
    image_size: tuple[int, int] | None = None
    """Of drawn scenes; None is IMAGE_SIZE."""
    repeats: int = 3
    """Passes over the images."""
    baseline: bool = False
    """Run the plain transformers script too."""
    sweep: bool = False
    """Measure batch sizes 1, 2, 4, ..."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError(f"--repeat {self.repeats}: must be 1 or more.")
        if self.num_images is not None and self.num_images < 1:
            raise UsageError(f"--num-images {self.num_images}: must be 1 or more. Leave it out to let blip2cap choose.")
        if self.refs is not None and self.image_size is not None:
            raise UsageError("--image-size has no effect with INPUT: it is for scenes that are drawn. Leave one out.")
