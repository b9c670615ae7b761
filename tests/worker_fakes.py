"""Models for worker processes, which load them by their names; some of them misbehave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip2cap.decode.image import Decoded, Pixels
from blip2cap.decode.inputs import ImageDecoder, ImageInput, SquareInput
from blip2cap.errors import ImageError, ModelError
from blip2cap.options import DecodeOptions
from tests.fakes import FakeModel

BAD = b"ends the process that decodes it"
"""Bytes of such a file."""


@dataclass(frozen=True, kw_only=True)
class Fake:
    """A loader of FakeModel."""

    folder: Path
    """Folder where what happens once leaves a file."""
    fails_on: dict[str, str] = field(default_factory=dict)
    """What happens on a device: `load`, `load crash`, `crash`, `crash once`, `hang once`, `raise`, `slow`."""

    def image_input(self) -> ImageInput:
        """Return an input that BAD ends the process of."""
        return FragileInput()

    def load(self, device: str, dtype: str) -> LoadedFake:
        """Load a model that does what it is to do on this device."""
        fault = self.fails_on.get(device, "")
        if fault == "load":
            raise ModelError(f"no model on {device}")
        if fault == "load crash":
            os.abort()
        return LoadedFake(fault, self.folder, device, dtype)


class LoadedFake(FakeModel):
    """A FakeModel with a fault."""

    def __init__(self, fault: str, folder: Path, device: str, dtype: str) -> None:
        super().__init__()
        self.fault, self.folder, self.device = fault, folder, device
        self.dtype = f"torch.{'float32' if dtype == 'auto' else dtype}"
        self.image_input = FragileInput()

    def encode(self, images: Sequence[Pixels]) -> list[str]:
        """Encode, unless the fault comes first."""
        (self.folder / f"used {self.device} {os.getpid()}").touch()
        if self.fault == "slow":
            time.sleep(0.1 * len(images))
        elif self.fault == "raise":
            raise RuntimeError("an error of a driver")
        elif self.fault == "crash" or (self.fault == "crash once" and self._first()):
            os.abort()
        elif self.fault == "hang once" and self._first():
            time.sleep(1000)
        return super().encode(images)

    def _first(self) -> bool:
        try:
            (self.folder / "once").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class FragileInput:
    """Squares of 8 pixels; BAD ends the process, unless it is decoded in a separate one."""

    def open(self, options: DecodeOptions) -> ImageDecoder:
        """Return a decoder."""
        return _Fragile(SquareInput(8).open(options))


class _Fragile:
    def __init__(self, decoder: ImageDecoder) -> None:
        self._decoder = decoder
        self.convert: Callable[[Any], Decoded] = decoder.convert
        self.close = decoder.close

    def decode(self, data: bytes, *, isolated: bool, read_s: float = 0.0) -> Decoded:
        if data == BAD and isolated:
            raise ImageError("decoder_crashed", "the process that decoded it was ended by SIGABRT")
        if data == BAD:
            os.abort()
        return self._decoder.decode(data, isolated=False, read_s=read_s)
