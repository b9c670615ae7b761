"""Measurements -> figures, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip2cap.bench.machine import Decoding
from blip2cap.bench.page import short
from blip2cap.bench.stages import Measured, Pass, median
from blip2cap.bench.work import Work

_PHASES = {
    "vision": ("vision", "qformer", "projection"),
    "prefill": ("prefill",),
    "step": ("steps",),
    "generate": ("prefill", "steps"),
}
"""Stage of the model -> the phases of the work in it."""
_INSTRUCTED = {"vision": ("vision",), "qformer": ("qformer", "projection")}
"""Where the Q-Former reads the prompt, it is a stage of its own."""
_TOGETHER = {"generate": ("vision", "prefill", "steps")}
"""Where the image is computed with the prompt."""
PLAIN_DTYPE = "float32"
"""Of the plain script: the default of `from_pretrained`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The speed that the machine allows, if all of it worked at its best all the time."""

    work: Work
    flops_per_s: float
    bytes_per_s: float
    images: int
    """Batch size of the vision encoder."""
    texts: int
    """Batch size of the decoder."""
    new_tokens: float
    """Generated for each text, on average."""

    def seconds(self, names: Sequence[str] | None = None) -> float:
        """Return the least time for one image, or for these phases of it."""
        return self.work.seconds(self.flops_per_s, self.bytes_per_s, images=self.images, texts=self.texts, names=names)


def figures(measured: Measured, limit: Limit, num_threads: int) -> dict[str, Any]:
    """Return images/s, the stages, the bound of the run and the share of the limit. Times are ms for one image."""
    whole, alone = median(measured.whole), median(measured.alone)
    model_s = alone.model_s / alone.num_images
    bounds = {
        "decode": (measured.decoding.read_s + measured.decoding.decode_s) / num_threads,
        "model": model_s,
        "write": whole.write_s / whole.num_images,
    }
    bound_by = max(bounds, key=lambda name: bounds[name])
    overhead = 1 - model_s * whole.num_images / whole.seconds
    unknown = ""
    if bound_by != "model":
        unknown = f"the run waits for {bound_by}, not for the model"
    elif overhead < 0:
        unknown = "the model took longer alone than in whole runs: other programs use this machine"
    return {
        "images_per_s": spread(measured.whole),
        "model_alone_images_per_s": spread(measured.alone),
        "limit_images_per_s": digits(1 / limit.seconds()),
        "share_of_limit": digits(whole.images_per_s * limit.seconds()),
        "bound_by": bound_by,
        "bounds_ms": {name: digits(seconds * 1e3) for name, seconds in bounds.items()},
        "overhead": None if unknown else digits(overhead),
        "overhead_unknown": unknown,
        "waiting_for_images_ms": digits(whole.waiting_s / whole.num_images * 1e3),
        "num_bad_images": len(whole.bad),
        "stages": stages(measured, limit, num_threads),
    }


def stages(measured: Measured, limit: Limit, num_threads: int) -> list[dict[str, Any]]:
    """List the stages in the order in which an image goes through them: time for one image, and least time if known."""
    decoding, staged, whole = measured.decoding, measured.staged, median(measured.whole)
    threads = f"1 thread of {num_threads}" if num_threads > 1 else "1 thread"
    found = [_stage("read", decoding.read_s), _stage("decode", decoding.decode_s, note=threads)]
    phases = _PHASES | (_INSTRUCTED if "qformer" in staged.stages else {})
    phases = phases | (_TOGETHER if "vision" not in staged.stages else {})
    for name, seconds in staged.stages.items():
        limit_s = limit.seconds(phases[name]) if name in phases else None
        num_steps = staged.counts[name] if name == "step" else 0
        note = f"{num_steps} steps of {short(seconds / num_steps * 1e3)} ms" if num_steps else ""
        found.append(_stage(name, seconds / staged.num_images, limit_s, note))
    rest = staged.model_s - sum(staged.stages.values())
    found.append(_stage("rest of the model", rest / staged.num_images))
    found.append(_stage("write", whole.write_s / whole.num_images))
    return found


def _stage(name: str, seconds: float, limit_s: float | None = None, note: str = "") -> dict[str, Any]:
    return {
        "stage": name,
        "ms": digits(seconds * 1e3),
        "limit_ms": None if limit_s is None else digits(limit_s * 1e3),
        "share_of_limit": digits(limit_s / seconds) if limit_s is not None and seconds else None,
        "note": note,
    }


def rates(limit: Limit, decoding: Decoding) -> dict[str, Any]:
    """Return the rates of the machine."""
    return {
        "matrix_tflop_per_s": digits(limit.flops_per_s / 1e12),
        "memory_gb_per_s": digits(limit.bytes_per_s / 1e9),
        "decode_images_per_s_one_core": digits(1 / decoding.decode_s) if decoding.decode_s else None,
    }


def work_facts(limit: Limit) -> dict[str, Any]:
    """Return what there is to compute and to read for one image."""
    work = limit.work
    return {
        "gflop": digits(work.flops / 1e9),
        "gflop_by_phase": {phase.name: digits(phase.flops / 1e9) for phase in work.phases},
        "gflop_of_head": digits(work.head_flops / 1e9),
        "weights_read_per_step_gb": digits(work.step_bytes / 1e9),
        "keys_and_values_per_text_mb": digits(work.kv_bytes / 1e6),
        "images_at_once": limit.images,
        "texts_at_once": limit.texts,
        "new_tokens": digits(limit.new_tokens),
    }


def run_facts(done: Pass) -> dict[str, Any]:
    """Return the figures of one run. On a GPU, which computes asynchronously, `stages_s` are not the true times."""
    return {
        "images": done.num_images,
        "rows": done.num_rows_ok,
        "seconds": digits(done.seconds),
        "images_per_s": digits(done.images_per_s),
        "s_per_image": digits(done.seconds / done.num_images),
        "new_tokens": digits(done.num_tokens / done.num_rows_ok),
        "images_at_once": done.images_at_once,
        "texts_at_once": done.texts_at_once,
        "waiting_for_images_s": digits(done.waiting_s),
        "write_s": digits(done.write_s),
        "stages_s": {name: digits(seconds) for name, seconds in done.stages.items()},
        "counts": done.counts,
        "overhead": digits(1 - sum(done.stages.values()) / done.seconds),
        "texts": done.texts[:3],
    }


def baseline_facts(
    runs: Sequence[Mapping[str, Any]], before: float, after: float, texts: Sequence[str]
) -> dict[str, Any]:
    """Compare images/s of ours, before and after, and the texts, with the best of the plain script's runs.

    A run is what the script printed, or `batch_size` and `error`.
    """
    good = [run for run in runs if "error" not in run]
    best = max(good, key=lambda run: run["images_per_s"], default=None)
    theirs = best["texts"] if best else ()
    ours = (before + after) / 2
    return {
        "peer": "plain transformers",
        "dtype": PLAIN_DTYPE,
        "runs": [
            {
                "batch_size": run["batch_size"],
                "images_per_s": run.get("images_per_s", 0.0),
                "load_s": run.get("load_s", 0.0),
                "peak_rss_mb": run.get("peak_rss_mb", 0.0),
                "error": run.get("error", ""),
                "num_images": run.get("images", 0),
                "versions": run.get("versions", {}),
            }
            for run in runs
        ],
        "best_batch_size": best["batch_size"] if best else None,
        "best_images_per_s": digits(best["images_per_s"]) if best else None,
        "images_per_s": digits(ours),
        "images_per_s_before": digits(before),
        "images_per_s_after": digits(after),
        "ratio": digits(ours / best["images_per_s"]) if best else None,
        "num_texts_compared": min(len(texts), len(theirs)),
        "num_texts_equal": sum(one == other for one, other in zip(texts, theirs, strict=False)),
    }


def estimate(num_images: int, images_per_s: Mapping[str, float]) -> dict[str, Any]:
    """Return the seconds that a run over `num_images` takes at the median, highest and lowest measured rate."""
    median, fastest, slowest = (digits(num_images / images_per_s[name]) for name in ("median", "max", "min"))
    return {
        "num_images": num_images,
        "images_per_s": images_per_s["median"],
        "seconds": median,
        "fastest_s": fastest,
        "slowest_s": slowest,
    }


def spread(passes: Sequence[Pass]) -> dict[str, float]:
    """Return the lowest, median and highest images/s."""
    rates = [one.images_per_s for one in passes]
    return {"min": digits(min(rates)), "median": digits(median(passes).images_per_s), "max": digits(max(rates))}


def digits(value: float) -> float:
    """Keep four digits: more would claim more than was measured."""
    return float(f"{value:.4g}")
