"""What was measured -> figures as JSON takes them, and as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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


def machine_line(machine: Mapping[str, Any]) -> str:
    """Describe the machine and the versions in one line; takes the facts of a `Machine`."""
    where = f"{machine['cpu']}, {machine['num_cores']} cores, {machine['memory_gb']:.0f} GB"
    if machine["gpu"]:
        where = f"{machine['gpu']}, {machine['gpu_memory_gb']:.0f} GB; {where}"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    commit = f" ({machine['commit']})" if machine["commit"] else ""
    return f"{where}; Python {machine['python']}, {versions}{commit}"


def model_line(facts: Mapping[str, Any]) -> str:
    """Say in one line which model wrote how much, and how."""
    model, settings, work = facts["model"], facts["settings"], facts["work"]
    weights = ", random weights" if model["random_weights"] else ""
    numbers = f"{model['quantize']} and {model['dtype']}" if model["quantize"] else model["dtype"]
    search = f"{settings['num_beams']} beams" if settings["num_beams"] > 1 else "greedy"
    return (
        f"{short_name(model['name'])}{weights}: {numbers} on {model['device']}, {search}, "
        f"{work['new_tokens']:.3g} new tokens; "
        f"{work['images_at_once']} images and {work['texts_at_once']} texts at once"
    )


def images_line(facts: Mapping[str, Any]) -> str:
    """Say in one line what it was shown, and how often."""
    images, settings = facts["images"], facts["settings"]
    size = f" of {images['size'][0]}x{images['size'][1]}" if images["size"] else ""
    asked = f", {_count(len(settings['questions']), 'question')} about each" if settings["questions"] else ""
    drawn = _count(images["num_images"], "drawn scene" if images["drawn"] else "image")
    return f"{drawn}{size}{asked}; {_count(settings['repeats'], 'pass', 'passes')}"


def short_name(name: str) -> str:
    """Return the name of a model, of a folder the last part only."""
    return Path(name).name if name.startswith("/") else name


def table(facts: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Make the rows of the table of stages: stage, ms an image, least ms, share of the limit, note."""
    rows = []
    for stage in facts["figures"]["stages"]:
        least = "" if stage["limit_ms"] is None else short(stage["limit_ms"])
        rows.append((stage["stage"], short(stage["ms"]), least, percent(stage["share_of_limit"]), stage["note"]))
    figures = facts["figures"]
    median_ms = 1e3 / figures["images_per_s"]["median"]
    least_ms = 1e3 / figures["limit_images_per_s"]
    rows.append(("files to rows", short(median_ms), short(least_ms), percent(figures["share_of_limit"]), "all at once"))
    return rows


def sentences(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what came out of it: a word, and what there is to say about it."""
    figures, rates, work = facts["figures"], facts["rates"], facts["work"]
    rate, bounds = figures["images_per_s"], figures["bounds_ms"]
    lines = [
        ("images/s", f"{short(rate['median'])} ({short(rate['min'])} to {short(rate['max'])})"),
        (
            "limit",
            f"{short(figures['limit_images_per_s'])} images/s; {percent(figures['share_of_limit'])} of it reached. "
            f"{short(work['gflop'])} GFLOP an image at {short(rates['matrix_tflop_per_s'])} TFLOP/s, "
            f"{short(work['weights_read_per_step_gb'])} GB a step at {short(rates['memory_gb_per_s'])} GB/s",
        ),
        (
            "bound by",
            f"{figures['bound_by']}: "
            + ", ".join(f"{name} {short(ms)}" for name, ms in sorted(bounds.items(), key=lambda item: -item[1]))
            + " ms an image",
        ),
    ]
    if figures["overhead"] is not None:
        lines.append(("overhead", f"{percent(figures['overhead'])} of the time is not the model"))
    if figures["num_bad_images"]:
        lines.append(("bad images", f"{figures['num_bad_images']}, left out of the figures"))
    if "baseline" in facts:
        lines.append(("baseline", _baseline_sentence(facts["baseline"])))
    return lines


def _baseline_sentence(baseline: Mapping[str, Any]) -> str:
    if baseline["ratio"] is None:
        return "none: the plain script gave no result at any batch size"
    runs = ", ".join(
        f"{run['batch_size']}: {'failed' if run['error'] else short(run['images_per_s'])}" for run in baseline["runs"]
    )
    return (
        f"{short(baseline['ratio'])} times the plain transformers script, which makes "
        f"{short(baseline['best_images_per_s'])} images/s at its best ({baseline['dtype']}; by batch size {runs}); "
        f"ours before {short(baseline['images_per_s_before'])}, after {short(baseline['images_per_s_after'])}; "
        f"{baseline['num_texts_equal']} of {baseline['num_texts_compared']} texts are the same"
    )


def series(facts: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Return images/s by batch size, ours and, where it was run, the plain script's."""
    lines = {"blip2cap": [(point["batch_size"], point["images_per_s"]["median"]) for point in facts["sweep"]]}
    runs = facts.get("baseline", {}).get("runs", ())
    if plain := [(run["batch_size"], run["images_per_s"]) for run in runs if not run["error"]]:
        lines[f"plain transformers, {facts['baseline']['dtype']}"] = plain
    return lines


def plot_note(facts: Mapping[str, Any]) -> str:
    """Say under the title of a plot what was measured on what."""
    machine, model = facts["machine"], facts["model"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores"
    versions = machine["versions"]
    return (
        f"{where} · {model['dtype']} · {facts['work']['new_tokens']:.3g} new tokens · torch {versions['torch']} · "
        f"transformers {versions['transformers']} · blip2cap {versions['blip2cap']}"
    )


def percent(share: float | None) -> str:
    """Write a share of 1 in percent; "" for None."""
    if share is None:
        return ""
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def _count(count: int, noun: str, nouns: str = "") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or noun + 's'}"


def _spread(passes: Sequence[Pass]) -> dict[str, float]:
    rates = [one.images_per_s for one in passes]
    return {"min": _round(min(rates)), "median": _round(median(passes).images_per_s), "max": _round(max(rates))}


def _round(value: float) -> float:
    """Keep four digits: more would say more than was measured."""
    return float(f"{value:.4g}")
