"""Figures as people read them: lines, a table of stages, sentences, the series of a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2cap.bench.plot import short


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
