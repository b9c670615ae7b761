"""The pixels of a Pillow image as a numpy array without a copy, through Arrow's C data interface.

`numpy.array(image)` copies twice and holds the interpreter's lock for it: 1 ms for a picture of 1000 x 750, in which
the threads that decode other images, and the one that feeds the model, wait.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from PIL import Image


class _ArrowArray(ctypes.Structure):
    """The beginning of `struct ArrowArray`: https://arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Memory:
    """Memory that numpy may use, and the capsule that keeps it for as long."""

    def __init__(self, capsule: object, address: int, shape: tuple[int, ...]) -> None:
        self.capsule = capsule
        # Not read-only, which torch would warn of; nobody writes to it.
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": "|u1", "data": (address, False)}


def view_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of an RGB image as [H, W, 4], of which the last channel is not used.

    The array is Pillow's own memory, not to be written. Of an image that Pillow holds in several blocks, which are
    large ones, it is a copy, [H, W, 3].
    """
    assert image.mode == "RGB"
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:
        return np.array(image)
    pixels = _ArrowArray.from_address(_pointer_in(capsule, b"arrow_array"))  # lists of four
    values = pixels.children[0].contents
    address = values.buffers[1] + values.offset + 4 * pixels.offset
    return np.asarray(_Memory(capsule, address, (image.height, image.width, 4)))
