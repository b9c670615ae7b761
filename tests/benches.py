"""Models that the tests of benchmarks share, and images for them: loaded once in a session."""

from __future__ import annotations

import functools

from blip2cap.bench.stages import Loaded
from blip2cap.captioner import Captioner
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.options import ModelOptions

TINY = ModelOptions(name="tiny", device="cpu", dtype="float32")


@functools.cache
def loaded_tiny() -> Loaded:
    """Return the model inside the package, in float32. Not to be freed."""
    return Loaded(TINY)


def tiny_model() -> Blip2:
    """Return that model itself."""
    model = loaded_tiny().model
    assert isinstance(model, Blip2)
    return model


@functools.cache
def tiny_captioner() -> Captioner:
    """Return the same, as users of Python have it."""
    return Captioner.load("tiny", dtype="float32", device="cpu")


_models: dict[ModelOptions, Blip2] = {}


def load_once(checkpoint: Checkpoint, options: ModelOptions) -> Blip2:
    """Load a model unless an earlier test has loaded it with the same options."""
    if options not in _models:
        _models[options] = load(checkpoint, options)
    return _models[options]
