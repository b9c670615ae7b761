"""Images given in Python, as paths, Pillow images, arrays or tensors -> rows of a task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import numpy as np
from PIL import Image

from blip2cap.decode.image import Decoded
from blip2cap.decode.inputs import ImageDecoder
from blip2cap.decode.read import read
from blip2cap.engine.run import Engine
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Worklist
from blip2cap.urls import shown

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from blip2cap.engine.flow import DecodedRequest

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | torch.Tensor"
"""A path, a Pillow image, a numpy array of uint8 [height, width, 3] or a torch tensor of uint8 [3, height, width]."""


def check_images(images: object) -> None:
    """Raise TypeError for a single image where a sequence of them is expected."""
    if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 0) == 3:
        raise TypeError(f"expected a sequence of images, got one {type(images).__name__}: put it in a list.")


def rows_of_images(engine: Engine, images: Sequence[ImageLike]) -> list[Row]:
    """Return the rows of the engine's task, image by image.

    Raises ImageError for an image that cannot be read, if `engine.on_failure` is `raise_with_name`.
    """
    worklist = Worklist(engine.task)
    with closing(engine.model.image_input.open(engine.decode)) as decoder:

        def items() -> Iterator[DecodedRequest]:
            for index, image in enumerate(images):
                ref, decoded = decode_image(image, f"images[{index}]", decoder, engine.decode)
                yield from ((request, decoded) for request in worklist.requests((ref,), frozenset()))

        return engine.rows(items())


def decode_image(
    image: ImageLike, place: str, decoder: ImageDecoder, options: DecodeOptions
) -> tuple[ImageRef, Decoded]:
    """Decode one image. Its name is its path, or a hash of its pixels; sampling is seeded by that name.

    Raises ImageError, which names the image: by its path, or by its `place` in the caller's arguments.
    """
    ref = ImageRef(path=place, name="")
    try:
        if isinstance(image, (str, os.PathLike)):
            path = os.fspath(image)
            ref = ImageRef(path=path, name=path)
            return ref, decoder.decode(read(ref, options), isolated=options.isolate)
        decoded = decoder.convert(_as_pillow(image, place))
        return replace(ref, name=decoded.digest.hex()), decoded
    except ImageError as error:
        raise_with_name(ref, error)


def _as_pillow(image: object, place: str) -> Image.Image:
    """Convert an array to a Pillow image. Raises TypeError for what is no image, ImageError for one without pixels."""
    import torch

    kind = type(image).__name__
    if isinstance(image, (np.ndarray, torch.Tensor)):
        kind = f"{type(image).__module__}.{kind} of {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
        if isinstance(image, torch.Tensor) and image.ndim == 3:
            image = image.permute(1, 2, 0).numpy(force=True)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            image = Image.fromarray(image) if image.size else Image.new("RGB", (image.shape[1], image.shape[0]))
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"{place}: {kind}. Expected a path, a Pillow image, a numpy array of uint8 [height, width, 3] or a torch "
            "tensor of uint8 [3, height, width], in RGB. Image.fromarray of Pillow converts other arrays."
        )
    if not image.width * image.height:
        raise ImageError("corrupt", f"{image.width}x{image.height} has no pixels")
    return image


def raise_with_name(ref: ImageRef, error: ImageError) -> NoReturn:
    """Raise the error of an image, which names it."""
    error.image = shown(ref.path)
    raise error
