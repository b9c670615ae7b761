from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blip2cap.bench.plot import _COLOURS, bars, draw_plot, nice_step, short

OURS = [(1, 10.0), (2, 18.0), (4, 30.0), (8, 41.5)]
PLAIN = [(1, 5.0), (8, 9.0)]


def columns_of(picture: Image.Image, colour: tuple[int, int, int]) -> set[int]:
    """Return the columns in which pixels have this colour."""
    return set(np.nonzero((np.asarray(picture) == colour).all(axis=2))[1].tolist())


def test_every_series_is_a_line_across_the_plot() -> None:
    picture = draw_plot({"blip2cap": OURS, "plain": PLAIN}, title="tiny", note="a machine")
    assert picture.size == (1000, 600)
    for colour in _COLOURS[:2]:
        columns = columns_of(picture, colour)
        assert min(columns) < 125
        assert max(columns) > 920
    assert not columns_of(picture, _COLOURS[2])


def test_a_higher_rate_is_drawn_higher() -> None:
    picture = np.asarray(draw_plot({"blip2cap": OURS}, title="", note=""))
    rows, columns = np.nonzero((picture == _COLOURS[0]).all(axis=2))
    assert rows[columns.argmin()] > rows[columns.argmax()]


@pytest.mark.parametrize("points", [[(16, 0.0321)], [(1, 12345.6), (1024, 99999.0)], [(1, 0.0)]])
def test_extreme_values_are_drawn_too(points: list[tuple[int, float]]) -> None:
    draw_plot({"blip2cap": points}, title="x" * 200, note="\x1b")
    assert bars(points)


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
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("least", "step"), [(0.9, 1), (1, 1), (1.1, 2), (2.1, 2.5), (3, 5), (7, 10), (0.003, 0.005), (0, 1)]
)
def test_ticks_are_at_round_numbers(least: float, step: float) -> None:
    assert nice_step(least) == pytest.approx(step)
