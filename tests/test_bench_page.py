"""Numbers and bars as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from blip2cap.bench import report
from blip2cap.bench.budget import duration
from blip2cap.bench.page import advice, answers, bars, in_words, percent, short


def sweep_of(*points: tuple[int, float]) -> list[Any]:
    return [{"batch_size": size, "images_per_s": {"median": rate}} for size, rate in points]


OURS = sweep_of((1, 10.0), (2, 18.0), (4, 30.0), (8, 41.5))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.04 s"),
        (3.2, "3 s"),
        (116, "116 s"),
        (118, "2 min"),
        (3000, "50 min"),
        (75600, "21 hours"),
        (1e6, "12 days"),
        (4e5, "4.6 days"),
    ],
)
def test_times_are_in_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def facts_of(bound_by: str, *, device: str = "cpu", quantize: str | None = None, **settings: Any) -> dict[str, Any]:
    defaults = {"decode": "fast", "threads": 4, "batch_size": None, "num_beams": 1, "max_new_tokens": 12}
    return {
        "figures": {
            "images_per_s": {"median": 335.0, "min": 330.0, "max": 340.0},
            "bounds_ms": {"decode": 1.0, "model": 2.0, "write": 0.1},
            "bound_by": bound_by,
            "stages": [{"stage": "vision", "ms": 1.0}, {"stage": "step", "ms": settings.pop("step_ms", 0.5)}],
        },
        "settings": defaults | settings,
        "model": {"device": device, "quantize": quantize, "family": "opt"},
        "machine": {"num_cores": 4, "num_gpus": 0},
    }


def test_the_page_begins_with_the_time_of_many_images_and_what_limits_it() -> None:
    told = dict(answers(facts_of("model")))
    assert told["images/s"] == "335 here (330 to 340): 1,000 images take about 3 s, 1,000,000 about 50 min"
    assert told["limited by"] == "model: model 2.00, decode 1.00, write 0.100 ms an image"
    assert told["what helps"] == "--quantize int8-dynamic; a GPU"


@pytest.mark.parametrize(
    ("facts", "tips"),
    [
        (facts_of("decode", decode="exact", threads=1), ["--decode fast", "--threads 4", "processor cores"]),
        (facts_of("decode"), ["more or faster processor cores"]),
        (facts_of("write"), ["an --out on a faster disk"]),
        (
            facts_of("model", batch_size=1, num_beams=3, quantize="fp8"),
            ["leave --batch-size out", "--num-beams 1", "a GPU"],
        ),
        (facts_of("model", device="cuda", step_ms=5.0), ["--max-new-tokens below 12", "a smaller model"]),
        (facts_of("model", quantize="int8-dynamic"), ["a GPU"]),
    ],
)
def test_advice_is_about_what_limits_the_run(facts: dict[str, Any], tips: list[str]) -> None:
    told = advice(facts).split("; ")
    assert len(told) == len(tips)
    assert all(tip in line for tip, line in zip(tips, told, strict=True))


def test_a_number_of_images_that_was_asked_for_is_a_time_in_words_and_what_it_rests_on() -> None:
    facts = facts_of("model")
    assert "estimate" not in dict(answers(facts))
    facts["estimate"] = report.estimate(2_000_000, facts["figures"]["images_per_s"])
    facts["images"] = {"drawn": True, "size": [640, 480]}
    told = dict(answers(facts))
    assert told["estimate"] == (
        "2,000,000 images like drawn scenes of 640x480 take about 1 hour 40 minutes (by the fastest pass 1 hour 38 "
        "minutes, by the slowest 1 hour 41 minutes)"
    )
    assert told["rests on"].startswith("335 images/s, measured from files to rows with this model and these settings.")
    facts["images"] = {"drawn": False, "size": None}
    facts["figures"]["images_per_s"] = dict.fromkeys(("median", "min", "max"), 60.0)
    facts["estimate"] = report.estimate(2_000_000, facts["figures"]["images_per_s"])
    assert dict(answers(facts))["estimate"] == "2,000,000 images like those of this run take about 9 hours 20 minutes"


def test_an_estimate_is_the_number_of_images_by_the_measured_rates() -> None:
    assert report.estimate(1000, {"median": 10.0, "min": 5.0, "max": 20.0}) == {
        "num_images": 1000,
        "images_per_s": 10.0,
        "seconds": 100.0,
        "fastest_s": 50.0,
        "slowest_s": 200.0,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2, "a minute or less"),
        (60, "1 minute"),
        (45 * 60, "45 minutes"),
        (3599, "1 hour"),
        (3660, "1 hour 1 minute"),
        (33333, "9 hours 20 minutes"),
        (2 * 86400 - 1, "2 days"),
        (2 * 86400 + 3600, "2 days 1 hour"),
        (9 * 86400, "9 days"),
        (10 * 86400 - 1, "10 days"),
        (1e8, "1,157 days"),
    ],
)
def test_a_long_time_is_written_as_people_say_it(seconds: float, text: str) -> None:
    assert in_words(seconds) == text


@pytest.mark.parametrize(
    ("num_gpus", "decode_ms", "threads", "text"),
    [
        (0, 1.0, 4, None),
        (1, 1.0, 4, None),
        (2, 1.0, 4, "one of 2 was measured; with 2 GPUs, a process each, at most about 2 times as fast"),
        (
            8,
            1.0,
            4,
            "one of 8 was measured; with 8 GPUs, a process each, at most about 1,000 images/s: the 4 cores cannot read "
            "and decode more",
        ),
        (8, 1.0, 1, "one of 8 was measured; with 8 GPUs, a process each, at most about 8 times as fast"),
    ],
)
def test_other_gpus_are_promised_no_more_than_the_cores_can_decode(
    num_gpus: int, decode_ms: float, threads: int, text: str | None
) -> None:
    facts = facts_of("model", device="cuda", threads=threads)
    facts["machine"]["num_gpus"] = num_gpus
    facts["figures"]["bounds_ms"]["decode"] = decode_ms
    assert dict(answers(facts)).get("GPUs") == text


@pytest.mark.parametrize("points", [[(16, 0.0321)], [(1, 12345.6), (1024, 99999.0)], [(1, 0.0)]])
def test_extreme_values_are_drawn_too(points: list[tuple[int, float]]) -> None:
    assert bars(sweep_of(*points)).count("\n") == 1 + len(points)


def test_bars_are_as_long_as_the_rates_and_fit_the_width() -> None:
    for width in (40, 80):
        lines = bars(OURS, width=width, blocks=False).splitlines()
        assert max(map(len, lines)) <= width
        lengths = [line.count("#") for line in lines[1:]]
        assert lengths == sorted(lengths)
        assert lengths[0] * 4 == pytest.approx(lengths[-1], abs=4)
        assert [line.split()[0] for line in lines[1:]] == ["1", "2", "4", "8"]
        assert [line.split()[-1] for line in lines[1:]] == ["10.0", "18.0", "30.0", "41.5"]
    assert bars(OURS, blocks=False).isascii()
    assert "█" in bars(OURS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000123, "0.000123"),
        (0.0123, "0.0123"),
        (1.234, "1.23"),
        (9.999, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (12345, "12,345"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.0949, "9.5 %"), (0.25, "25 %"), (-0.012, "-1.2 %")])
def test_shares_are_percent(share: float, text: str) -> None:
    assert percent(share) == text
