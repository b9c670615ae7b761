"""Output of `evaluate`: tables, the same as JSON, and the worst items as a table or a section of a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from blip2cap.cli.terminal import cell, count, page
from blip2cap.records import ImageRef

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from blip2cap.evaluate.bootstrap import Difference, Score
    from blip2cap.evaluate.closed import Closed
    from blip2cap.evaluate.evaluation import Evaluation, Item
    from blip2cap.evaluate.run import Evaluated
    from blip2cap.index.sheet import Section

_DIGITS = 6
_MOST_REFERENCES = 5
"""Most references of an item that a table or a card shows."""


def print_result(found: Evaluated) -> None:
    """Print all scores as tables."""
    from blip2cap.evaluate.bootstrap import differences, scores

    own, other = found.own, found.other
    with page() as console:
        console.print(cell(_heading(found)))
        if other is None:
            console.print(_scores_table(scores(own.metrics)))
        else:
            console.print(cell(f"compared with {other.given}"))
            console.print(_differences_table(differences(own.metrics, other.metrics)))
        for kind, groups in groupby(own.groups, key=lambda group: group.kind):
            console.print(_groups_table(kind, own, [*groups]))
        for closed in own.closed:
            _print_closed(console, closed)
        for note in _notes(found):
            console.print(cell(note))


def facts_of(found: Evaluated, worst: int | None) -> dict[str, Any]:
    """Return the result as --json prints it; scores are shares, not percentages."""
    from blip2cap.evaluate.bootstrap import differences, scores

    own, other = found.own, found.other
    facts: dict[str, Any] = {
        "output": own.given,
        f"{own.noun}s": len(own.items),
        "compared_by": found.by,
        "metrics": {each.name: _score_facts(each) for each in scores(own.metrics)},
        "groups": [
            {
                "by": group.kind,
                "name": group.name,
                "items": len(group.metric.statistics),
                **{each.name: _score_facts(each) for each in scores([group.metric])},
            }
            for group in own.groups
        ],
        "closed": [_closed_facts(closed) for closed in own.closed],
        "notes": _notes(found),
    }
    if other is not None:
        facts["compare"] = {
            "output": other.given,
            "metrics": {each.name: _difference_facts(each) for each in differences(own.metrics, other.metrics)},
        }
    if worst is not None:
        facts["worst"] = [
            {
                "file_name": item.image,
                **({"question": item.question} if item.question else {}),
                "text": item.text,
                "references": [*item.references],
                own.score_name: round(score, _DIGITS),
            }
            for item, score, _ in own.worst(worst)
        ]
    return facts


def print_worst(found: Evaluation, number: int) -> None:
    """Print the items with the lowest scores."""
    from rich.table import Table

    chosen = found.worst(number)
    has_questions, has_references = (
        any(getattr(item, name) for item, _, _ in chosen) for name in ("question", "references")
    )
    table = Table()
    table.add_column("score x 100", justify="right", no_wrap=True)
    text = "first caption" if found.noun == "image" else found.noun
    names = ("image", *(["question"] if has_questions else []), text, *(["references"] if has_references else []))
    for name in names:
        table.add_column(name, overflow="fold")
    for item, score, _ in chosen:
        question = [cell(item.question)] if has_questions else []
        references = [cell(_references(item))] if has_references else []
        table.add_row(_times_100(score), cell(item.image), *question, cell(_text(item)), *references)
    with page() as console:
        every = count(len(found.items), found.noun)
        console.print(f"the lowest {found.score_name} of {every}" if chosen else f"all {every} are right")
        if chosen:
            console.print(table)


def section_of(found: Evaluation, number: int, refs: Sequence[ImageRef]) -> Section:
    """Return the items with the lowest scores as a section of a sheet; `refs` are the images of all items."""
    from blip2cap.index.sheet import Card, Section

    chosen = found.worst(number)
    cards = tuple(
        Card(
            ref=refs[at],
            scores=f"{found.score_name} {_times_100(score)}",
            text=item.question or item.text,
            details=_details(item),
        )
        for item, score, at in chosen
    )
    return Section(heading=f"The lowest {found.score_name}", note=count(len(cards), found.noun), cards=cards)


def _details(item: Item) -> tuple[str, ...]:
    """Return the lines of a card below the first one."""
    answer = f"answer: {item.text}" if item.question else ""
    references = f"reference: {_references(item)}" if item.references else ""
    return tuple(filter(None, (answer, item.note, references)))


def _heading(found: Evaluated) -> str:
    own = found.own
    num_references = [len(item.references) for item in own.items]
    parts = [f"{own.given}: {count(len(own.items), own.noun)}"]
    if found.by:
        least, most = min(num_references), max(num_references)
        each = count(most, "reference") if least == most else f"{least} to {most} references"
        parts.append(f"{each} each, found by {found.by}")
    return ", ".join(parts)


def _notes(found: Evaluated) -> list[str]:
    results = [each for each in (found.own, found.other) if each is not None]
    warnings = [
        f"{each.given}, {_about(closed)}: {closed.warning}"
        for each in results
        for closed in each.closed
        if closed.warning
    ]
    left_out = [f"left out: {found.left_out}"] if found.left_out else []
    return [*warnings, *found.own.notes, *left_out]


def _scores_table(scores: Sequence[Score]) -> Table:
    table = _table("metric", "score x 100", "95 % interval")
    for each in scores:
        table.add_row(cell(each.name), _times_100(each.value), _interval(each.low, each.high))
    return table


def _differences_table(differences: Sequence[Difference]) -> Table:
    table = _table("metric", "score x 100", "other", "difference", "95 % interval", "p")
    for each in differences:
        change = f"{100 * each.difference:+.1f}"
        row = (_times_100(each.value), _times_100(each.other), change, _interval(each.low, each.high, sign="+"))
        table.add_row(cell(each.name), *row, f"{each.p:.3f}")
    return table


def _groups_table(kind: str, found: Evaluation, groups: Sequence[Any]) -> Table:
    from blip2cap.evaluate.bootstrap import scores

    table = _table(kind, f"{found.noun}s", groups[0].metric.name, "95 % interval")
    for group in groups:
        (score,) = scores([group.metric])
        number = f"{len(group.metric.statistics):,}"
        table.add_row(cell(group.name), number, _times_100(score.value), _interval(score.low, score.high))
    return table


def _print_closed(console: Console, closed: Closed) -> None:
    console.print(f"{cell(_about(closed))}: which answer was given for which")
    columns = [f'"{cell(answer)}"' for answer in closed.answers]
    table = _table("reference", *columns, *(["other"] if closed.others else []), "right")
    for at, (answer, row) in enumerate(zip(closed.answers, closed.table.tolist(), strict=True)):
        total = sum(row)
        cells = [f"{number:,}" for number in (row if closed.others else row[:-1])]
        table.add_row(f'"{cell(answer)}"', *cells, f"{row[at] / total:.1%} of {total:,}")
    console.print(table)
    others = ", ".join(f'"{cell(answer)}"' for answer in closed.others[:_MOST_REFERENCES])
    console.print(
        f'always "{cell(closed.answers[0])}" would be right for {closed.always:.1%}'
        + (f"; other: {others}" if others else "")
    )


def _about(closed: Closed) -> str:
    number = count(closed.num_questions, "question")
    return number if closed.about in ("all", "") else f"{closed.about} ({number})"


def _table(name: str, *numbers: str) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column(name, overflow="fold")
    for each in numbers:
        table.add_column(each, justify="right", no_wrap=True)
    return table


def _text(item: Item) -> str:
    return f"{item.text} ({item.note})" if item.note else item.text


def _references(item: Item) -> str:
    more = len(item.references) - _MOST_REFERENCES
    distinct = [*dict.fromkeys(item.references[:_MOST_REFERENCES])]
    return " | ".join(distinct) + (f" | and {more} more" if more > 0 else "")


def _times_100(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(low: float, high: float, *, sign: str = "") -> str:
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _score_facts(score: Score) -> dict[str, float]:
    return {name: round(getattr(score, name), _DIGITS) for name in ("value", "low", "high")}


def _difference_facts(found: Difference) -> dict[str, float]:
    names = ("value", "other", "difference", "low", "high", "p")
    return {name: round(getattr(found, name), _DIGITS) for name in names}


def _closed_facts(closed: Closed) -> dict[str, Any]:
    return {
        "about": closed.about,
        "questions": closed.num_questions,
        "answers": [*closed.answers],
        "table": closed.table.tolist(),
        "other_answers": [*closed.others],
        "balanced_accuracy": round(closed.balanced_accuracy.value, _DIGITS),
        "always_most_frequent": round(closed.always, _DIGITS),
        "warning": closed.warning,
    }
