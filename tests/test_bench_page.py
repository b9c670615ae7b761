"""Numbers and bars as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from blip2cap.bench.budget import duration
from blip2cap.bench.page import advice, answers, bars, percent, short


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
        "model": {"device": device, "quantize": quantize},
        "machine": {"num_cores": 4},
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
