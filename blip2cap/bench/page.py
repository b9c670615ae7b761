"""Figures in words: first what people want to know, then lines, a table of stages, sentences, bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2cap.bench.budget import duration
from blip2cap.models.vlm.families import VLM_FAMILIES

Facts = Mapping[str, Any]


def answers(facts: Facts) -> list[tuple[str, str]]:
    """Return the speed, how long many images take, what limits it and what would help, as pairs of words."""
    figures = facts["figures"]
    rate, bounds = figures["images_per_s"], figures["bounds_ms"]
    median = rate["median"]
    in_order = ", ".join(f"{name} {short(ms)}" for name, ms in sorted(bounds.items(), key=lambda item: -item[1]))
    pairs = [
        (
            "images/s",
            f"{short(median)} here ({short(rate['min'])} to {short(rate['max'])}): 1,000 images take about "
            f"{duration(1e3 / median)}, 1,000,000 about {duration(1e6 / median)}",
        ),
        ("limited by", f"{figures['bound_by']}: {in_order} ms an image"),
        ("what helps", advice(facts)),
    ]
    if "estimate" in facts:
        pairs += _estimate(facts)
    if facts["machine"]["num_gpus"] > 1:
        pairs.append(("GPUs", _several_gpus(facts)))
    return pairs


def _estimate(facts: Facts) -> list[tuple[str, str]]:
    """Say how long the asked number of images takes, and on which measurement that rests."""
    estimate, images = facts["estimate"], facts["images"]
    like = f"drawn scenes of {images['size'][0]}x{images['size'][1]}" if images["drawn"] else "those of this run"
    times = [in_words(estimate[name]) for name in ("seconds", "fastest_s", "slowest_s")]
    passes = f" (by the fastest pass {times[1]}, by the slowest {times[2]})" if times[1] != times[2] else ""
    return [
        ("estimate", f"{estimate['num_images']:,} images like {like} take about {times[0]}{passes}"),
        (
            "rests on",
            f"{short(estimate['images_per_s'])} images/s, measured from files to rows with this model and these "
            "settings. Pictures of other sizes decode faster or slower; files were read from memory, a slow disk or a "
            "bucket takes longer. Listing the images and loading the model come on top",
        ),
    ]


def _several_gpus(facts: Facts) -> str:
    """Say what the other GPUs could add: at most their number, and no more than the cores can decode."""
    settings, figures, machine = (facts[name] for name in ("settings", "figures", "machine"))
    num_gpus, num_cores = machine["num_gpus"], machine["num_cores"]
    decoded_per_s = 1e3 / figures["bounds_ms"]["decode"] * num_cores / min(settings["threads"], num_cores)
    one = f"one of {num_gpus} was measured; with {num_gpus} GPUs, a process each, at most about"
    if decoded_per_s < num_gpus * figures["images_per_s"]["median"]:
        return f"{one} {short(decoded_per_s)} images/s: the {num_cores} cores cannot read and decode more"
    return f"{one} {num_gpus} times as fast"


def advice(facts: Facts) -> str:
    """Say what would make the slowest of decoding, model and writing faster."""
    settings, figures, model, machine = (facts[name] for name in ("settings", "figures", "model", "machine"))
    tips = []
    match figures["bound_by"]:
        case "decode":
            if settings["decode"] == "exact":
                tips.append("--decode fast")
            if settings["threads"] < machine["num_cores"]:
                tips.append(f"--threads {machine['num_cores']}")
            tips.append("more or faster processor cores, or smaller image files")
        case "write":
            tips.append("an --out on a faster disk")
        case _:
            if settings["batch_size"]:
                tips.append("leave --batch-size out")
            if settings["num_beams"] > 1:
                tips.append("--num-beams 1")
            times = {stage["stage"]: stage["ms"] for stage in figures["stages"]}
            if times.get("step", 0) + times.get("generate", 0) > sum(times.values()) / 2:
                tips.append(f"--max-new-tokens below {settings['max_new_tokens']}")
            if model["device"] != "cpu":
                tips.append("a smaller model, or several GPUs (--workers)")
            else:
                if not model["quantize"] and model["family"] not in VLM_FAMILIES:
                    tips.append("--quantize int8-dynamic")
                tips.append("a GPU")
    return "; ".join(tips)


def header(facts: Facts) -> list[str]:
    """Describe the machine, the model and the images in one line each."""
    machine, model, settings, work, images = (
        facts[name] for name in ("machine", "model", "settings", "work", "images")
    )
    where = f"{machine['cpu']}, {machine['num_cores']} cores, {machine['memory_gb']:.0f} GB"
    if machine["gpu"]:
        where = f"{machine['gpu']}, {machine['gpu_memory_gb']:.0f} GB; {where}"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    commit = f" ({machine['commit']})" if machine["commit"] else ""
    name = Path(model["name"]).name if model["name"].startswith("/") else model["name"]
    weights = ", random weights" if model["random_weights"] else ""
    numbers = f"{model['quantize']} and {model['dtype']}" if model["quantize"] else model["dtype"]
    search = f"{settings['num_beams']} beams" if settings["num_beams"] > 1 else "greedy"
    size = f" of {images['size'][0]}x{images['size'][1]}" if images["size"] else ""
    asked = f", {counted(len(settings['questions']), 'question')} about each" if settings["questions"] else ""
    shown = counted(images["num_images"], "drawn scene" if images["drawn"] else "image")
    return [
        f"{where}; Python {machine['python']}, {versions}{commit}",
        f"{name}{weights}: {numbers} on {model['device']}, {search}, {work['new_tokens']:.3g} new tokens; "
        f"{counted(work['images_at_once'], 'image')} and {counted(work['texts_at_once'], 'text')} at once",
        f"{shown}{size}{asked}; {counted(settings['repeats'], 'pass', 'passes')}",
    ]


def table(facts: Facts) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the table of stages: stage, ms for an image, least ms, share of the limit, note."""
    figures = facts["figures"]
    last = {
        "stage": "files to rows",
        "ms": 1e3 / figures["images_per_s"]["median"],
        "limit_ms": 1e3 / figures["limit_images_per_s"],
        "share_of_limit": figures["share_of_limit"],
        "note": "all at once",
    }
    return [
        (
            row["stage"],
            short(row["ms"]),
            "" if row["limit_ms"] is None else short(row["limit_ms"]),
            "" if row["share_of_limit"] is None else percent(row["share_of_limit"]),
            row["note"],
        )
        for row in (*figures["stages"], last)
    ]


def sentences(facts: Facts) -> list[tuple[str, str]]:
    """Return the other results as pairs of a word and a sentence."""
    figures, rates, work = facts["figures"], facts["rates"], facts["work"]
    overhead = figures["overhead"]
    lines = [
        (
            "limit",
            f"{short(figures['limit_images_per_s'])} images/s; {percent(figures['share_of_limit'])} of it reached. "
            f"{short(work['gflop'])} GFLOP an image at {short(rates['matrix_tflop_per_s'])} TFLOP/s, "
            f"{short(work['weights_read_per_step_gb'])} GB a step at {short(rates['memory_gb_per_s'])} GB/s",
        ),
        (
            "overhead",
            f"not measurable: {figures['overhead_unknown']}"
            if overhead is None
            else f"{percent(overhead)} of the time is not the model",
        ),
    ]
    if figures["num_bad_images"]:
        lines.append(("bad images", f"{figures['num_bad_images']}, left out of the figures"))
    if "baseline" in facts:
        lines.append(("baseline", _baseline(facts["baseline"])))
    return lines


def _baseline(baseline: Facts) -> str:
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


def bars(sweep: list[Facts], *, width: int = 80, blocks: bool = True) -> str:
    """Draw a bar for each batch size of a sweep in at most `width` columns; without `blocks`, in ASCII."""
    rates = [point["images_per_s"]["median"] for point in sweep]
    labels = [short(rate) for rate in rates]
    longest = max(1, width - 10 - 2 - max(map(len, labels)) - 1)
    lines = ["batch size  images/s"]
    for point, rate, label in zip(sweep, rates, labels, strict=True):
        length = max(1, round(longest * rate / max(rates))) if rate else 1
        lines.append(f"{point['batch_size']:>10}  {('█' if blocks else '#') * length} {label}")
    return "\n".join(lines) + "\n"


def short(value: float) -> str:
    """Write a number with three significant digits: 0.0123, 1.23, 12.3, 123, 1,234."""
    value = float(f"{value:.3g}") if value < 100 else value
    if value >= 99.95:
        return f"{value:,.0f}"
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def percent(share: float) -> str:
    """Write a share of 1 in percent."""
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Write a number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or noun + 's'}"


def in_words(seconds: float) -> str:
    """Write a time with two units: 45 minutes, 9 hours 20 minutes, 3 days 4 hours, 1,157 days."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return counted(minutes, "minute") if minutes else "a minute or less"
    if minutes < 48 * 60:
        # Above two hours to ten minutes: more would claim more than was measured.
        (large, small), units = divmod(round(minutes, -1) if minutes >= 120 else minutes, 60), ("hour", "minute")
    else:
        (large, small), units = divmod(round(minutes / 60), 24), ("day", "hour")
        if large >= 10:
            return f"{minutes / 60 / 24:,.0f} days"
    return counted(large, units[0]) + (f" {counted(small, units[1])}" if small else "")
