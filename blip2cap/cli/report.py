"""The messages of a run: images that fail, the result of a dry run, the summary at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from blip2cap.cli.resume import quote
from blip2cap.cli.terminal import clean, say, write_out
from blip2cap.errors import ImageError
from blip2cap.jobs.job import DryRun, Outcome, skipped_phrases
from blip2cap.records import ImageRef
from blip2cap.server_options import ServerOptions
from blip2cap.urls import shown

_NAMED_FAILURES = 20


class Failures:
    """Names images that fail; after the first 20 it prints only their number, unless --verbose is given."""

    def __init__(self, say: Callable[[str], None], *, verbose: bool, quiet: bool) -> None:
        self.say = say
        self.limit = 0 if quiet else sys.maxsize if verbose else _NAMED_FAILURES
        self.quiet = quiet
        self.count = 0

    def add(self, ref: ImageRef, error: ImageError) -> None:
        """Print the name of an image and the reason why it failed."""
        self.count += 1
        if self.count <= self.limit:
            self.say(f"{clean(shown(ref.file_name))}: {error.code}: {clean(error.detail)}")

    def close(self) -> None:
        """Print the number of images that were not named."""
        if self.count > self.limit and not self.quiet:
            self.say(f"... and {self.count - self.limit} more failures; --verbose names them all.")


def dry_run_facts(found: DryRun) -> dict[str, Any]:
    """Return the result of a dry run, as --json prints it."""
    return {
        "out": found.out,
        "images": found.num_images,
        "images_to_do": found.num_images_to_do,
        "rows_to_do": found.num_rows_to_do,
        "rows_there_before": found.num_rows_before,
        "rows_failed_before": found.num_failed_before,
        "rows_failed_not_asked": found.num_failed_not_asked,
        "skipped": dict(found.skipped),
    }


def outcome_facts(outcome: Outcome, *, flags: bool) -> dict[str, Any]:
    """Return the result of a run, as --json prints it; with `flags`, also the counts of the loop guard."""
    stats = outcome.stats
    seconds = stats.seconds if stats else 0.0
    facts = {
        "out": outcome.out,
        "images": outcome.num_images,
        "rows_ok": outcome.num_ok,
        "rows_failed": outcome.failed.total(),
        "failed_by_error": dict(outcome.failed),
        "rows_there_before": outcome.num_rows_before,
        "rows_failed_before": outcome.num_failed_before,
        "rows_failed_not_asked": outcome.num_failed_not_asked,
        "skipped": dict(outcome.skipped),
        "seconds": round(seconds, 3),
        "images_per_s": round(stats.num_images / seconds, 2) if stats and seconds else 0.0,
        "stopped": outcome.stopped,
    }
    if (parts := outcome.parts) is not None:
        facts |= {"parts": parts.num_parts, "parts_there": parts.num_existing, "parts_lost": parts.num_lost}
    if flags:
        by_fault = dict(stats.flags) if stats else {}
        retried = by_fault.pop("retried", 0)
        facts |= {"rows_retried": retried, "rows_flagged": sum(by_fault.values()), "flagged_by_fault": by_fault}
    return facts


def token_facts(num_prompt_tokens: float, num_text_tokens: float, server: ServerOptions) -> dict[str, Any]:
    """Return numbers of tokens, and what they cost if prices are given, as --json prints them."""
    facts: dict[str, Any] = {"prompt_tokens": round(num_prompt_tokens), "tokens": round(num_text_tokens)}
    cost = server.cost(num_prompt_tokens, num_text_tokens)
    return facts if cost is None else {**facts, "cost": round(cost, 4)}


def print_json(facts: dict[str, Any]) -> None:
    """Print one object on one line of stdout."""
    write_out(json.dumps(facts) + "\n")


def say_dry_run(facts: dict[str, Any]) -> None:
    """Print the result of a dry run in one line."""
    rows = f" ({_count(facts['rows_to_do'], 'row')})" if facts["rows_to_do"] != facts["images_to_do"] else ""
    parts = [f"{facts['images_to_do']} of {_count(facts['images'], 'image')} to do{rows}", *_before(facts)]
    parts += [f"at most about {tokens}" for tokens in _tokens(facts)]
    say(f"dry run of {_where(facts)}: {', '.join(parts + skipped_phrases(facts['skipped']))}; nothing was written")


def say_outcome(facts: dict[str, Any], *, nothing_to_do: bool) -> None:
    """Print the result of a run in one line."""
    kinds = ", ".join(f"{count} {error}" for error, count in facts["failed_by_error"].items())
    made = [f"{facts['rows_ok']} ok", f"{facts['rows_failed']} failed" + (f" ({kinds})" if kinds else "")]
    made += _flags(facts)
    counts = [*_before(facts), "nothing to do"] if nothing_to_do else made + _before(facts)
    rate = f"; {facts['images_per_s']} images/s" if facts["images_per_s"] else ""
    retry = "; --retry-failed retries failed ones" if facts["rows_failed_before"] else ""
    tokens = "".join(f"; {each}" for each in _tokens(facts))
    say(f"{_where(facts)}: {', '.join(counts + skipped_phrases(facts['skipped']))}{rate}{tokens}{retry}")
    if (not_asked := facts["rows_failed_not_asked"]) and not facts["stopped"]:
        prune = quote(["blip2cap", "status", facts["out"], "--prune"])
        say(f"{_where(facts)}: {_count(not_asked, 'failed row')} of other inputs, kept; {prune} removes failed rows")
    if "parts" in facts:
        say(f"{facts['parts_there']} of {facts['parts']} parts done")


def _where(facts: dict[str, Any]) -> str:
    return "standard output" if facts["out"] == "-" else clean(facts["out"])


def _before(facts: dict[str, Any]) -> list[str]:
    failed = f" ({facts['rows_failed_before']} failed)" if facts["rows_failed_before"] else ""
    return [f"{facts['rows_there_before']} already done{failed}"] if facts["rows_there_before"] else []


def _tokens(facts: dict[str, Any]) -> list[str]:
    """Return a phrase on tokens if there are any."""
    if not facts.get("prompt_tokens"):
        return []
    cost = f" for {facts['cost']:.4g}" if "cost" in facts else ""
    return [f"{facts['prompt_tokens']} + {facts['tokens']} tokens{cost}"]


def _flags(facts: dict[str, Any]) -> list[str]:
    if "rows_flagged" not in facts:
        return []
    kinds = ", ".join(f"{count} {fault}" for fault, count in facts["flagged_by_fault"].items())
    return [f"{facts['rows_retried']} retried", f"{facts['rows_flagged']} flagged" + (f" ({kinds})" if kinds else "")]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
