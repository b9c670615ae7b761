"""Learning rates by step: a linear warm-up, then a cosine by step, LAVIS's cosine by epoch, or none."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from blip2cap.train.options.model import OptimOptions

_WARMUP_SHARE = 0.05
"""Share of all steps that the warm-up takes if its length is not given."""


def make_schedule(optimiser: Optimizer, options: OptimOptions, *, num_steps: int, steps_per_epoch: int) -> LambdaLR:
    """Return the schedule of an optimiser whose groups have their own peaks; steps are those of the optimiser."""
    return LambdaLR(
        optimiser,
        lambda step: (
            learning_rate_at(step, options, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
            / options.learning_rate
        ),
    )


def learning_rate_at(step: int, options: OptimOptions, *, num_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0, of parameters outside the vision encoder."""
    warmup_steps = options.warmup_steps
    if warmup_steps is None:
        warmup_steps = math.ceil(_WARMUP_SHARE * num_steps)
    if options.schedule == "lavis":
        # https://github.com/salesforce/LAVIS/blob/main/lavis/common/optims.py: the warm-up ends with the first epoch,
        # whose rate is the peak.
        warms_up = step < min(warmup_steps, steps_per_epoch)
        done = step // steps_per_epoch / math.ceil(num_steps / steps_per_epoch)
    else:
        warms_up = step < warmup_steps
        done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    peak, start, end = options.learning_rate, options.warmup_learning_rate, options.min_learning_rate
    if warms_up:
        return start + (peak - start) * step / warmup_steps
    if options.schedule == "constant":
        return peak
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
