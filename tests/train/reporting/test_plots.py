"""Charts as SVG: well-formed, every point told on hover, nothing told by colour alone, no peak thinned away."""

import re
import xml.etree.ElementTree as ET

import pytest

from puna.train.reporting.plots import MOST_POINTS, Chart, PlotLine, draw_svg, legend, thin, tick_text, ticks

TWO = Chart(
    "Loss",
    "nats a token",
    [
        PlotLine("training", [(1, 4.0), (2, 2.0), (3, 1.0)], "learnt"),
        PlotLine("held out", [(0, 4.5), (3, 1.2)], "held"),
        PlotLine("x", []),
    ],
    steps=3,
    text="{:.2f}".format,
    level=("goal", 0.5),
)


def test_a_chart_is_well_formed_and_tells_each_point_on_hover() -> None:
    svg = ET.fromstring(draw_svg(TWO))
    told = [title.text for title in svg.iter("title")]
    assert told[0] == "step 1: training 4.00" and told[-1] == "step 3: held out 1.20" and len(told) == 5
    assert svg.get("role") == "img" and "training 4.00 at step 1, 1.00 at step 3" in (svg.get("aria-label") or "")


def test_lines_differ_in_dots_as_well_as_in_colour() -> None:
    svg, key = draw_svg(TWO), legend(TWO)
    assert svg.count('class="dot held"') == 2 and 'class="dot learnt"' not in svg
    assert key.count("dot held") == 1 and "training 1.00" in key and "goal 0.50" in key


def test_points_lie_inside_and_fall_where_values_fall() -> None:
    spots = re.findall(r'class="spot learnt" cx="([\d.]+)" cy="([\d.]+)"', draw_svg(TWO, 420, 240))
    xs, ys = [float(x) for x, _ in spots], [float(y) for _, y in spots]
    assert xs == sorted(xs) and ys == sorted(ys) and all(0 < x < 420 for x in xs) and all(0 < y < 240 for y in ys)


def test_an_empty_chart_draws_nothing_and_one_point_is_a_dot() -> None:
    assert draw_svg(Chart("a", "b", [PlotLine("x", [])], 5, str)) == ""
    assert 'class="dot plain"' in draw_svg(Chart("a", "b", [PlotLine("x", [(1, 0.0)])], 5, str))


def test_names_cannot_break_out_of_the_drawing() -> None:
    ET.fromstring(draw_svg(Chart('a"<b>', "", [PlotLine("<x>", [(1, 1.0), (2, 3.0)])], 5, str)))


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0, 80, ["0", "20", "40", "60", "80"]),
        (0, 0.003, ["0", "0.001", "0.002", "0.003"]),
        (1.0, 1.4, ["1.0", "1.1", "1.2", "1.3", "1.4"]),
        (0, 10, ["0", "2.5", "5.0", "7.5", "10.0"]),
        (0, 9_000, ["0", "2,500", "5,000", "7,500"]),
        (0, 2e-5, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
    ],
)
def test_ticks_are_round_and_have_the_decimals_they_need(low: float, high: float, told: list[str]) -> None:
    found = ticks(low, high, 4)
    assert [tick_text(tick, found) for tick in found] == told


def test_thinning_keeps_both_ends_and_every_peak() -> None:
    points = [(float(i), 1.0) for i in range(10_000)]
    points[4_321] = (4_321.0, 50.0)
    kept = thin(points)
    assert len(kept) <= MOST_POINTS and kept[0] == points[0] and kept[-1] == points[-1] and points[4_321] in kept
    assert kept == sorted(kept) and thin(points[:5]) == points[:5]
