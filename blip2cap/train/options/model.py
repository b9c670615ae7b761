"""Options of what is trained, and of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag

PARTS = ("qformer", "vision", "llm", "lora", "all")
"""Valid values of --train."""
STAGES = ("caption", "vqa", "stage1", "stage2")
"""Kinds of training, as the command names them."""
_STAGE_PARTS = {"stage1": ("qformer", "vision", "all"), "stage2": ("qformer",)}
"""Parts that these stages can train; the others take any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions:
    """The parts of the model that are trained, and changes of its structure."""

    PANEL: ClassVar = "Model"

    train: tuple[str, ...] = flag(
        ("qformer",),
        "--train PART",
        "Part to train: qformer (with its queries and projections), vision, llm, lora (adapters in the language "
        "model), or all (qformer, vision, llm); repeatable.",
    )
    lora_rank: int = flag(16, "--lora-rank N", "Rank of the adapters of --train lora.", least=1)
    lora_alpha: int = flag(32, "--lora-alpha N", "Adapters are scaled by N divided by their rank.", least=1)
    lora_dropout: float = flag(0.05, "--lora-dropout N", "Dropout at the input of adapters.", least=0)
    lora_targets: tuple[str, ...] = flag(
        (),
        "--lora-targets NAME",
        "Name of the layers of the language model that get adapters, e.g. fc1; repeatable. Query and value projections "
        "of its attention if left out.",
    )
    image_size: int | None = flag(
        None,
        "--image-size N",
        "Side of the images in pixels, e.g. 364; position embeddings are interpolated. That of the model if left out.",
        least=1,
    )
    gradient_checkpointing: bool = flag(
        False, "--gradient-checkpointing", "Compute activations again in the backward pass: slower, in less memory."
    )
    qformer_from: str | None = flag(
        None,
        "--qformer-from RUN",
        "Folder of a finished stage 1, whose vision encoder, queries and Q-Former replace those of the model.",
    )

    def __post_init__(self) -> None:
        check_limits(self)
        for part in self.train:
            if part not in PARTS:
                raise UsageError(f"--train {part}: must be one of {', '.join(PARTS)}.")
        if not self.train:
            raise UsageError(f"--train is empty: expected one or more of {', '.join(PARTS)}.")
        if "lora" in self.train and {"llm", "all"} & {*self.train}:
            other = "llm" if "llm" in self.train else "all"
            raise UsageError(
                f"--train lora and --train {other} exclude each other: {other} trains the whole language model. "
                "Leave one out."
            )
        if self.lora_targets and "lora" not in self.train:
            raise UsageError(f"--lora-targets {self.lora_targets[0]} has no effect without --train lora.")
        if not 0 <= self.lora_dropout < 1:
            raise UsageError(f"--lora-dropout {self.lora_dropout:g}: must be from 0 to below 1.")

    def check_stage(self, stage: str) -> None:
        """Raise UsageError for options that one of STAGES does not have."""
        allowed = _STAGE_PARTS.get(stage, PARTS)
        for part in self.train:
            if part not in allowed:
                reason = {
                    "stage1": "its model has no language model",
                    "stage2": "vision encoder and language model stay frozen; to train them, use `train caption`",
                }[stage]
                raise UsageError(f"--train {part}: not in {stage}: {reason}. Expected {', '.join(allowed)}.")
        if self.qformer_from is not None and stage == "stage1":
            raise UsageError(f"--qformer-from {self.qformer_from}: not in stage1. To start from it, use --model.")

    @property
    def parts(self) -> frozenset[str]:
        """Return the parts that are trained, with `all` resolved."""
        return frozenset({"qformer", "vision", "llm"} if "all" in self.train else self.train)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimOptions:
    """The optimiser (AdamW) and its learning rate."""

    PANEL: ClassVar = "Training"

    learning_rate: float = flag(1e-5, "--learning-rate N", "Peak of the learning rate.")
    min_learning_rate: float = flag(0.0, "--min-learning-rate N", "Learning rate at the end.", least=0)
    warmup_steps: int | None = flag(
        None,
        "--warmup-steps N",
        "Number of steps in which the learning rate rises to its peak. 5 % of all steps if left out.",
        least=0,
    )
    warmup_learning_rate: float = flag(0.0, "--warmup-learning-rate N", "Learning rate of the first step.", least=0)
    schedule: str = flag(
        "cosine",
        "--schedule NAME",
        "Learning rate after the warm-up. cosine: falls with every step. lavis: as LAVIS's linear_warmup_cosine_lr, "
        "falls with every epoch. constant: does not fall.",
        choices=("cosine", "lavis", "constant"),
    )
    weight_decay: float = flag(0.05, "--weight-decay N", "Weight decay; none on norms and biases.", least=0)
    beta2: float = flag(0.999, "--beta2 N", "Decay of the average of squared gradients.")
    clip_norm: float = flag(1.0, "--clip-norm N", "Largest norm of the gradient; 0: any.", least=0, hint="0 is any.")
    vision_layer_decay: float = flag(
        0.9,
        "--vision-layer-decay N",
        "Factor of the learning rate from each layer of the vision encoder to the layer below it.",
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"--learning-rate {self.learning_rate:g}: must be a number above 0.")
        for name, value in (("min", self.min_learning_rate), ("warmup", self.warmup_learning_rate)):
            if not value <= self.learning_rate:
                raise UsageError(
                    f"--{name}-learning-rate {value:g}: must be at most --learning-rate {self.learning_rate:g}."
                )
        if not 0 < self.beta2 < 1:
            raise UsageError(f"--beta2 {self.beta2:g}: must be between 0 and 1.")
        if not 0 < self.vision_layer_decay <= 1:
            raise UsageError(f"--vision-layer-decay {self.vision_layer_decay:g}: must be above 0, and at most 1.")
