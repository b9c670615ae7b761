"""The options of one benchmark, checked; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from blip2cap.errors import UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions
from blip2cap.records import ImageRef
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.vqa import Vqa

IMAGE_SIZE = (640, 480)


def parse_size(text: str) -> tuple[int, int]:
    """Parse `640x480`. Raises UsageError."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if not found:
        raise UsageError(f"--image-size {text}: expected WIDTHxHEIGHT in pixels, as 640x480.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """One benchmark."""

    model: ModelOptions
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    questions: tuple[str, ...] | None = None
    """None: captions."""
    refs: tuple[ImageRef, ...] | None = None
    """The images; None draws scenes."""
    num_images: int | None = None
    """Number of scenes to draw. None: as many as make a pass of a few seconds."""
    image_size: tuple[int, int] | None = None
    """Size of drawn scenes; None is IMAGE_SIZE."""
    estimate: int | None = None
    """Number of images to estimate the time of."""
    repeats: int = 3
    """Passes over the images."""
    baseline: bool = False
    """Run the plain transformers script too."""
    sweep: bool = False
    """Measure batch sizes 1, 2, 4, ..."""
    max_minutes: float = 10.0
    """Time limit, downloads not counted. What would take longer is cut short or skipped."""
    command: str = ""
    """The command line, for the results."""

    def __post_init__(self) -> None:
        if not self.max_minutes > 0:
            raise UsageError(f"--max-minutes {self.max_minutes:g}: must be above 0.")
        if self.repeats < 1:
            raise UsageError(f"--repeat {self.repeats}: must be 1 or more.")
        if self.num_images is not None and self.num_images < 1:
            raise UsageError(f"--num-images {self.num_images}: must be 1 or more. Leave it out to let blip2cap choose.")
        if self.estimate is not None and self.estimate < 1:
            raise UsageError(f"--estimate {self.estimate}: must be 1 or more, the number of images.")
        if self.refs is not None and self.image_size is not None:
            raise UsageError("--image-size has no effect with INPUT: it is for scenes that are drawn. Leave one out.")
        _ = self.task  # an empty or repeated question is an error now, not after a minute

    @property
    def task(self) -> Caption | Vqa:
        """Task of the benchmark."""
        if self.questions is None:
            return Caption(generate=self.generate)
        return Vqa(questions=self.questions, generate=self.generate)
