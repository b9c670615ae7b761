"""A model without weights, and other stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput, SquareInput
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Checkpoint
from blip2cap.records import Generated, Prompt
from blip2cap.rows import Row


class FakeModel:
    """A model that generates the prompt and the mean colour of the image, and depends on nothing else."""

    checkpoint = Checkpoint(name="fake", folder=Path(), commit="", family="opt", config={})
    device: Any = "cpu"
    dtype: Any = "torch.float32"
    fallback_reason = ""
    remark = ""
    quantize: str | None = None

    def __init__(
        self,
        *,
        max_images: int | None = None,
        never_fits: Callable[[Pixels], bool] = lambda pixels: False,
        refuses: Callable[[Prompt], bool] = lambda prompt: False,
        num_steps: Callable[[Prompt], int] = lambda prompt: 1,
    ) -> None:
        self.max_images = max_images
        """More in one call raise MemoryError."""
        self.never_fits = never_fits
        """An image that raises MemoryError in every call."""
        self.refuses = refuses
        """A prompt that comes back as an ImageError."""
        self.num_steps = num_steps
        """Number of steps of a text."""
        self.image_input: ImageInput = SquareInput(8)
        self.on_cpu = True
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

    def check(self, options: GenerateOptions, prompts: Sequence[str] = ()) -> None:
        """Accept all options."""

    def wait(self) -> None:
        """Do nothing: there is nothing to wait for."""

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
        """Open a session."""
        return FakeSession(self, options, capacity or 16)


class FakeSession:
    """Generates prompt and features, and the number of a further caption. A text takes one call for each step."""

    num_ahead = 0

    def __init__(self, model: FakeModel, options: GenerateOptions, capacity: int) -> None:
        self.model, self.options, self.capacity = model, options, capacity
        self.waiting: list[tuple[int, Prompt, Any]] = []
        self.steps: dict[int, int] = {}
        self.num_added = 0
        self.most_texts = 0

    @property
    def num_pending(self) -> int:
        """Number of waiting prompts."""
        return len(self.waiting)

    def encode(self, images: Sequence[Pixels]) -> list[str]:
        """Encode images."""
        return self.model.encode(images)

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts."""
        self.model.prompts += prompts
        tickets = list(range(self.num_added, self.num_added + len(prompts)))
        self.num_added += len(prompts)
        for ticket, prompt in zip(tickets, prompts, strict=True):
            self.waiting.append((ticket, prompt, features[prompt.image]))
            self.steps[ticket] = self.model.num_steps(prompt)
        return tickets

    def close(self) -> None:
        """Do nothing."""

    def advance(self) -> list[tuple[int, list[Generated] | ImageError]]:
        """Take a step with the first `capacity`; return those that are done, the last first."""
        running = self.waiting[: self.capacity]
        for ticket, _, _ in running:
            self.steps[ticket] -= 1
        done = [(ticket, prompt, said) for ticket, prompt, said in running if self.steps[ticket] <= 0]
        self.waiting = [entry for entry in self.waiting if self.steps[entry[0]] > 0]
        return [(ticket, self._say(prompt, said)) for ticket, prompt, said in reversed(done)]

    def _say(self, prompt: Prompt, features: str) -> list[Generated] | ImageError:
        if self.model.refuses(prompt):
            return ImageError("unsupported", "too long")
        return [
            Generated(text=f"{prompt.text} {features} {copy}", finish_reason="stop", num_tokens=3)
            for copy in range(self.options.num_captions)
        ]


class ListSink:
    """Collects rows in a list."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.finished: set[str] = set()
        self.num_failed = 0

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Do nothing: there is nothing to prepare."""

    def write(self, rows: Iterable[Row]) -> None:
        """Keep them."""
        self.rows += rows

    def finish(self, *, stopped: bool = False) -> None:
        """Do nothing: there is no manifest."""

    def close(self) -> None:
        """Do nothing: nothing is open."""
