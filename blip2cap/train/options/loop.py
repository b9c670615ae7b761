"""Options of the training loop: its length, its batches, checkpoints and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopOptions:
    """Length, batches and reports of a training."""

    PANEL: ClassVar = "Training"

    epochs: int = flag(5, "--epochs N", "Number of passes over the examples.", least=1)
    max_steps: int | None = flag(
        None, "--max-steps N", "Number of steps; replaces --epochs.", least=1, hint="Leave it out to use --epochs."
    )
    batch_size: int = flag(
        16, "--batch-size N", "Number of examples in one step, over all processes and --accumulate.", least=1
    )
    accumulate: int = flag(
        1,
        "--accumulate N",
        "Split each batch into N parts that follow one another: less memory; in stage1, fewer negatives.",
        least=1,
    )
    dtype: str = flag(
        "auto",
        "--dtype NAME",
        "Type of the matrix products (mixed precision): auto, float32, bfloat16 or float16. auto: bfloat16 on a GPU "
        "that has it, else float16; float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = flag(
        "auto",
        "--device NAME",
        "auto, cpu or cuda: the first GPU, or those of a launcher.",
        choices=("auto", "cpu", "cuda"),
    )
    log_every: int = flag(10, "--log-every N", "Number of steps from one log line to the next.", least=1)
    evaluate_every: int | None = flag(
        None,
        "--evaluate-every N",
        "Number of steps from one evaluation on --val to the next. One epoch if left out.",
        least=1,
        hint="Leave it out to evaluate after every epoch.",
    )
    checkpoint_every: int | None = flag(
        None,
        "--checkpoint-every N",
        "Number of steps from one checkpoint to the next, besides those at evaluations. One epoch, at most 1000 steps, "
        "if left out.",
        least=1,
        hint="Leave it out for one after every epoch, or 1000 steps.",
    )
    early_stop: int | None = flag(
        None,
        "--early-stop N",
        "Stop after N evaluations in a row without a better value of --best-by.",
        least=1,
        hint="Leave it out to train to the end.",
    )
    best_by: str = flag(
        "loss",
        "--best-by NAME",
        "What chooses the best checkpoint on --val: the lowest loss, or the highest cider (CIDEr-D of captions) or "
        "exact-match (of answers), for which texts about all of --val are generated at every evaluation.",
        choices=("loss", "cider", "exact-match"),
    )
    num_samples: int = flag(
        4, "--num-samples N", "Number of images of --val that are captioned at every evaluation.", least=0
    )
    seed: int = flag(0, "--seed N", "Seed of the order of the examples, of dropout and of new weights.", least=0)
    num_workers: int = flag(2, "--num-workers N", "Number of processes that decode images for each device.", least=0)
    report_to: str | None = flag(
        None,
        "--report-to NAME",
        "Also report to tensorboard, wandb or trackio.",
        choices=("tensorboard", "wandb", "trackio"),
    )

    @property
    def best_key(self) -> str:
        """Key of --best-by among the metrics of an evaluation."""
        return f"eval_{self.best_by.replace('-', '_')}"

    def __post_init__(self) -> None:
        check_limits(self)
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"--batch-size {self.batch_size} cannot be split into --accumulate {self.accumulate} equal parts. "
                f"Use a multiple of {self.accumulate}."
            )
