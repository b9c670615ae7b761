"""What was measured -> figures, as JSON takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blip2cap.bench.baseline import DTYPE, Comparison
from blip2cap.bench.machine import Decoding
from blip2cap.bench.plot import short
from blip2cap.bench.stages import Measured, Pass, median
from blip2cap.bench.sweep import Point
from blip2cap.bench.work import TEXT_PHASES, Work

_PHASES = {
    "vision": ("vision", "qformer", "projection"),
    "prefill": ("prefill",),
    "step": ("steps",),
    "generate": ("prefill", "steps"),
}
"""Stage of the model -> the phases of the work that are done in it."""
_INSTRUCTED = {"vision": ("vision",), "qformer": ("qformer", "projection")}
"""Where the Q-Former reads the prompt, it is a stage of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """What the machine allows."""

    work: Work
    flops_per_s: float
    bytes_per_s: float
    images: int
    """In one call of the image side."""
    texts: int
    """In one call of the text side."""
    new_tokens: float
    """Generated for each text, on average."""

    @property
    def images_per_s(self) -> float:
        """If all of the machine worked at its best all the time."""
        return 1 / self.work.seconds(self.flops_per_s, self.bytes_per_s, images=self.images, texts=self.texts)

    def stage_s(self, names: Sequence[str]) -> float:
        """Return the least time for these phases of one image."""
        return sum(
            self.work[name].seconds(
                self.flops_per_s, self.bytes_per_s, self.texts if name in TEXT_PHASES else self.images
            )
            for name in names
        )


def figures(measured: Measured, limit: Limit, num_threads: int) -> dict[str, Any]:
    """Gather images/s, the stages, what bounds the run and the share of the limit. Times are ms for one image."""
    whole, alone = median(measured.whole), median(measured.alone)
    model_s = alone.model_s / alone.num_images
    bounds = {
        "decode": (measured.decoding.read_s + measured.decoding.decode_s) / num_threads,
        "model": model_s,
        "write": whole.write_s / whole.num_images,
    }
    bound_by = max(bounds, key=lambda name: bounds[name])
    overhead = max(0.0, 1 - model_s * whole.num_images / whole.seconds)
    return {
        "images_per_s": _spread(measured.whole),
        "model_alone_images_per_s": _spread(measured.alone),
        "limit_images_per_s": _round(limit.images_per_s),
        "share_of_limit": _round(whole.images_per_s / limit.images_per_s),
        "bound_by": bound_by,
        "bounds_ms": {name: _round(seconds * 1e3) for name, seconds in bounds.items()},
        "overhead": _round(overhead) if bound_by == "model" else None,
        "waiting_for_images_ms": _round(whole.waiting_s / whole.num_images * 1e3),
        "num_bad_images": len(whole.bad),
        "stages": stages(measured, limit, num_threads),
    }


def stages(measured: Measured, limit: Limit, num_threads: int) -> list[dict[str, Any]]:
    """List the stages in the order of an image's way, each with its time for one image, and its least time if known."""
    decoding, staged, whole = measured.decoding, measured.staged, median(measured.whole)
    threads = f"1 thread of {num_threads}" if num_threads > 1 else "1 thread"
    found = [_stage("read", decoding.read_s), _stage("decode", decoding.decode_s, note=threads)]
    phases = _PHASES | (_INSTRUCTED if "qformer" in staged.stages else {})
    for name, seconds in staged.stages.items():
        limit_s = limit.stage_s(phases[name]) if name in phases else None
        num_steps = staged.counts[name] if name == "step" else 0
        note = f"{num_steps} steps of {short(seconds / num_steps * 1e3)} ms" if num_steps else ""
        found.append(_stage(name, seconds / staged.num_images, limit_s, note))
    rest = staged.model_s - sum(staged.stages.values())
    found.append(_stage("rest of the model", max(0.0, rest) / staged.num_images))
    found.append(_stage("write", whole.write_s / whole.num_images))
    return found


def _stage(name: str, seconds: float, limit_s: float | None = None, note: str = "") -> dict[str, Any]:
    return {
        "stage": name,
        "ms": _round(seconds * 1e3),
        "limit_ms": None if limit_s is None else _round(limit_s * 1e3),
        "share_of_limit": _round(limit_s / seconds) if limit_s is not None and seconds else None,
        "note": note,
    }


def rates(limit: Limit, decoding: Decoding) -> dict[str, Any]:
    """Say how fast the machine is."""
    return {
        "matrix_tflop_per_s": _round(limit.flops_per_s / 1e12),
        "memory_gb_per_s": _round(limit.bytes_per_s / 1e9),
        "decode_images_per_s_one_core": _round(1 / decoding.decode_s) if decoding.decode_s else None,
    }


def work_facts(limit: Limit) -> dict[str, Any]:
    """Say how much there is to compute and to read for one image."""
    work = limit.work
    return {
        "gflop": _round(work.flops / 1e9),
        "gflop_by_phase": {phase.name: _round(phase.flops / 1e9) for phase in work.phases},
        "gflop_of_head": _round(work.head_flops / 1e9),
        "weights_read_per_step_gb": _round(work.step_bytes / 1e9),
        "keys_and_values_per_text_mb": _round(work.kv_bytes / 1e6),
        "images_at_once": limit.images,
        "texts_at_once": limit.texts,
        "new_tokens": _round(limit.new_tokens),
    }


def baseline_facts(comparison: Comparison, texts: Sequence[str]) -> dict[str, Any]:
    """Gather the plain script's figures, how many times ours are theirs, and how many texts are the same."""
    best = comparison.best
    peers = []
    for peer in comparison.peers:
        facts = asdict(peer)
        del facts["texts"]
        peers.append(facts)
    theirs = best.texts if best else ()
    return {
        "peer": "plain transformers",
        "dtype": DTYPE,
        "runs": peers,
        "best_batch_size": best.batch_size if best else None,
        "best_images_per_s": _round(best.images_per_s) if best else None,
        "images_per_s": _round(comparison.ours),
        "images_per_s_before": _round(comparison.before),
        "images_per_s_after": _round(comparison.after),
        "ratio": _round(comparison.ours / best.images_per_s) if best else None,
        "num_texts_compared": min(len(texts), len(theirs)),
        "num_texts_equal": sum(one == other for one, other in zip(texts, theirs, strict=False)),
    }


def sweep_facts(points: Sequence[Point]) -> list[dict[str, Any]]:
    """List images/s by batch size."""
    return [
        {
            "batch_size": point.batch_size,
            "images_per_s": {
                "min": _round(point.lowest),
                "median": _round(point.images_per_s),
                "max": _round(point.highest),
            },
        }
        for point in points
    ]


def _spread(passes: Sequence[Pass]) -> dict[str, float]:
    rates = [one.images_per_s for one in passes]
    return {"min": _round(min(rates)), "median": _round(median(passes).images_per_s), "max": _round(max(rates))}


def _round(value: float) -> float:
    """Keep four digits: more would say more than was measured."""
    return float(f"{value:.4g}")
