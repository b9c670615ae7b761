"""What a run says: images that fail as they fail, the plan of a dry run, the summary at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from blip2cap.cli.terminal import clean, say, write_out
from blip2cap.errors import ImageError
from blip2cap.records import ImageRef
from blip2cap.tasks.worklist import Worklist
from blip2cap.urls import shown

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats
    from blip2cap.source.inputs import Source

_NAMED_FAILURES = 20


class Failures:
    """Names images that fail; after the first few only their number, unless --verbose."""

    def __init__(self, say: Callable[[str], None], *, verbose: bool, quiet: bool) -> None:
        self.say = say
        self.limit = 0 if quiet else sys.maxsize if verbose else _NAMED_FAILURES
        self.quiet = quiet
        self.count = 0

    def add(self, ref: ImageRef, error: ImageError) -> None:
        """Say which image failed, and why."""
        self.count += 1
        if self.count <= self.limit:
            self.say(f"{clean(shown(ref.file_name))}: {error.code}: {clean(error.detail)}")

    def close(self) -> None:
        """Say how many were not named."""
        if self.count > self.limit and not self.quiet:
            self.say(f"... and {self.count - self.limit} more failures; --verbose names them all.")


def plan_facts(
    out: str,
    source: Source,
    plan: Worklist,
    finished: Container[str],
    num_failed: int,
    refs: Iterable[ImageRef] | None = None,
) -> dict[str, Any]:
    """Walk the whole source, or what was read of it, and count what a run would do."""
    num_images_to_do = num_rows_to_do = 0
    for task in plan.requests(source if refs is None else refs, finished):
        num_images_to_do += 1
        num_rows_to_do += len(task.queries)
    return {
        "out": out,
        "images": plan.num_images,
        "images_to_do": num_images_to_do,
        "rows_to_do": num_rows_to_do,
        "rows_there_before": plan.num_finished,
        "rows_failed_before": num_failed,
        "skipped": dict(source.skipped),
    }


def summary_facts(
    out: str, source: Source, plan: Worklist, num_failed_before: int, summary: RunStats | None, *, stopped: bool
) -> dict[str, Any]:
    """Gather what a run has done; `summary` is None if there was nothing to do."""
    seconds = summary.seconds if summary else 0.0
    return {
        "out": out,
        "images": plan.num_images,
        "rows_ok": summary.num_ok if summary else 0,
        "rows_failed": summary.num_failed if summary else 0,
        "failed_by_error": dict(summary.failed) if summary else {},
        "rows_there_before": plan.num_finished,
        "rows_failed_before": num_failed_before,
        "skipped": dict(source.skipped),
        "seconds": round(seconds, 3),
        "images_per_s": round(summary.num_images / seconds, 2) if summary and seconds else 0.0,
        "stopped": stopped,
    }


def flag_facts(summary: RunStats | None) -> dict[str, Any]:
    """Gather what the loop guard did."""
    flags = dict(summary.flags) if summary else {}
    return {"rows_retried": flags.pop("retried", 0), "rows_flagged": sum(flags.values()), "flagged_by_fault": flags}


def print_json(facts: dict[str, Any]) -> None:
    """Print one object on one line of stdout."""
    write_out(json.dumps(facts) + "\n")


def say_plan(facts: dict[str, Any]) -> None:
    """Say in one line what a dry run found."""
    rows = f" ({_count(facts['rows_to_do'], 'row')})" if facts["rows_to_do"] != facts["images_to_do"] else ""
    parts = [f"{facts['images_to_do']} of {_count(facts['images'], 'image')} to do{rows}", *_before(facts)]
    say(f"dry run of {_where(facts)}: {', '.join(parts + _skipped(facts['skipped']))}; nothing was written")


def say_summary(facts: dict[str, Any]) -> None:
    """Say in one line what a run did."""
    kinds = ", ".join(f"{count} {error}" for error, count in facts["failed_by_error"].items())
    parts = [f"{facts['rows_ok']} ok", f"{facts['rows_failed']} failed" + (f" ({kinds})" if kinds else "")]
    parts += _flags(facts)
    rate = f"; {facts['images_per_s']} images/s" if facts["images_per_s"] else ""
    retry = "; --retry-failed does failed ones again" if facts["rows_failed_before"] else ""
    say(f"{_where(facts)}: {', '.join(parts + _before(facts) + _skipped(facts['skipped']))}{rate}{retry}")


def no_image(source: Source) -> str:
    """Say that there is nothing to do, and what was passed over."""
    given = shown(", ".join((*source.options.inputs, *source.options.files_from)))
    skipped = f" ({', '.join(_skipped(source.skipped))})" if source.skipped else ""
    if source.skipped.keys() & {"excluded", "not_included"}:
        return f"no image found in {given}{skipped}. Check --include and --exclude."
    return f"no image found in {given}{skipped}. Expected files like .jpg .png .webp; name other ones one by one."


def _where(facts: dict[str, Any]) -> str:
    return "standard output" if facts["out"] == "-" else clean(facts["out"])


def _before(facts: dict[str, Any]) -> list[str]:
    failed = f" ({facts['rows_failed_before']} failed)" if facts["rows_failed_before"] else ""
    return [f"{facts['rows_there_before']} there before{failed}"] if facts["rows_there_before"] else []


def _flags(facts: dict[str, Any]) -> list[str]:
    if "rows_flagged" not in facts:
        return []
    kinds = ", ".join(f"{count} {fault}" for fault, count in facts["flagged_by_fault"].items())
    return [f"{facts['rows_retried']} retried", f"{facts['rows_flagged']} flagged" + (f" ({kinds})" if kinds else "")]


def _skipped(skipped: Mapping[str, int]) -> list[str]:
    return [f"skipped {count} {reason.replace('_', ' ')}" for reason, count in skipped.items()]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
