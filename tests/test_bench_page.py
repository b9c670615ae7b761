"""Numbers and bars as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from blip2cap.bench.page import bars, percent, short


def sweep_of(*points: tuple[int, float]) -> list[Any]:
    return [{"batch_size": size, "images_per_s": {"median": rate}} for size, rate in points]


OURS = sweep_of((1, 10.0), (2, 18.0), (4, 30.0), (8, 41.5))


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
