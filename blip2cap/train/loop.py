"""The training loop: numbered steps from random weights to a checkpoint folder; it resumes exactly.

What is trained, on which data and with which losses is the business of a recipe (recipe.py).
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from blip2cap.train.recipe import BatchT, Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopOptions:
    """Length, learning rate and checkpoints of a training."""

    num_steps: int = 8_000
    polish_steps: int = 1_000
    """Additional steps on a second, lower cosine."""
    learning_rate: float = 1e-3
    """Peak, reached after the warm-up; then it falls to zero on a cosine."""
    polish_rate: float = 3e-4
    """Learning rate at the start of the second cosine."""
    warmup_steps: int = 500
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    num_workers: int = 1
    """Number of processes that draw scenes."""
    report_every: int = 100
    checkpoint_every: int = 500
    evaluate_every: int = 1_000


def learning_rate_at(step: int, options: LoopOptions) -> float:
    """Return the learning rate: a linear warm-up, a cosine to zero, then a second, lower cosine."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.num_steps - options.warmup_steps)
    if step < options.num_steps:
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    done = (step - options.num_steps) / max(1, options.polish_steps)
    return options.polish_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(folder: Path, recipe: Recipe[BatchT], options: LoopOptions) -> Path:
    """Train in `folder`, or resume from its checkpoint; return the folder of the finished model."""
    # 1. modules and optimiser
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in recipe.modules.values():
        module.to(device).train()
    parameters = [p for module in recipe.modules.values() for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )

    # 2. resume
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / "state.pt"
    first_step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=device)
        for name, module in recipe.modules.items():
            module.load_state_dict(state[name])
        optimiser.load_state_dict(state["optimiser"])
        first_step = int(state["step"])

    # 3. steps
    last_step = options.num_steps + options.polish_steps
    started = time.monotonic()
    averages: dict[str, float] = {}
    batches = recipe.batches(range(first_step, last_step), options.num_workers)
    for step, batch in enumerate(batches, start=first_step):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, options)
        with torch.autocast(device.type, dtype=recipe.autocast, enabled=recipe.autocast is not None):
            losses = recipe.losses(type(batch)(*(tensor.to(device) for tensor in batch)), step)
        total = torch.stack([recipe.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

        # 4. report, evaluation on unseen scenes, checkpoint
        for name, value in {**losses, "norm": norm}.items():
            averages[name] = 0.98 * averages.get(name, value.item()) + 0.02 * value.item()
        if (step + 1) % options.report_every == 0:
            line = {"step": step + 1, **{k: round(v, 4) for k, v in averages.items()}}
            line["steps_per_s"] = round((step + 1 - first_step) / (time.monotonic() - started), 2)
            print(json.dumps(line), file=sys.stderr, flush=True)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == last_step:
            state = {name: module.state_dict() for name, module in recipe.modules.items()}
            state |= {"optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(state, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
        if (step + 1) % options.evaluate_every == 0:
            for module in recipe.modules.values():
                module.eval()
            print(json.dumps({"step": step + 1, **recipe.evaluate(folder)}), file=sys.stderr, flush=True)
            for module in recipe.modules.values():
                module.train()

    # 5. the finished model
    finished = folder / "model"
    for module in recipe.modules.values():
        module.eval()
    recipe.save(finished)
    (finished / "training.json").write_text(json.dumps(asdict(options) | {**recipe.settings()}, indent=2) + "\n")
    return finished
