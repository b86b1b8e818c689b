"""What the pictures show: the figures that they are made of, in their places."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.helpers import fake_run
from train.compare import chart
from train.compare.estimates import Estimate, Row
from train.core import plotting
from train.report import curves, weight_plots
from train.visualize import gallery
from train.visualize.images import Picture
from train.visualize.predictions import View

ROWS = list(fake_run.rows(3))


def drawn(draw):
    figure = Figure()
    draw(figure)
    return figure


def test_heat_map_shows_the_sorted_weights_of_each_layer():
    weights = {"a": np.array([0.7, 0.01, 0.29]), "b": np.full((2, 2), 0.25), "c": np.zeros(5)}
    figure = drawn(weight_plots.heat_map(weights, "channels").draw)
    (image,) = figure.axes[0].images
    shown = image.get_array()
    np.testing.assert_allclose(shown[0, [0, -1]], [2.1, 0.03])
    assert (np.diff(shown[0]) <= 0).all()
    np.testing.assert_allclose(shown[1:, [0, 100, -1]], [[1, 1, 1], [0, 0, 0]])
    # The third of `a` and all of `c`.
    marks = [line.get_segments()[0][0] for line in figure.axes[0].collections]
    np.testing.assert_allclose(marks, [[100 * 2 / 3, -0.5], [0, 1.5]])


def test_sorted_weights_and_maps_of_a_single_layer():
    weights = {"spatial": np.full((2, 3), 1 / 6)}
    (axes,) = drawn(weight_plots.sorted_weights(weights, "pixels").draw).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1)
    *grid, _ = drawn(weight_plots.maps(weights).draw).axes
    assert [len(axes.images) for axes in grid] == [1, 0, 0, 0]


def test_curve_of_a_single_point_is_seen_and_told():
    rows = list(fake_run.rows(1))
    picture = curves.loss([row for row in rows if row["split"] == "eval"])
    (line,) = drawn(picture.draw).axes[0].lines
    assert line.get_marker() == "o"
    assert "evaluation: from 1.125 to 1.125" in picture.alt


def points(split, field, factor=1):
    rows = [row for row in ROWS if row["split"] == split]
    return [[row["epoch"], factor * row[field]] for row in rows]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (curves.loss(ROWS), [("train", "loss"), ("eval", "loss")]),
        (
            curves.errors(ROWS),
            [("train", "top1_error"), ("eval", "top1_error"), ("eval", "top5_error")],
        ),
        (curves.learning_rate(ROWS), [("train", "learning_rate")]),
        (curves.images_per_second(ROWS), [("train", "images_per_second")]),
        (curves.data_wait(ROWS), [("train", "data_wait", 100)]),
        (curves.small_weights(ROWS, 0.1), [("eval", "small_weights")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_curves_of_a_run(picture, expected):
    (axes,) = drawn(picture.draw).axes
    for line, wanted in zip(axes.lines, expected, strict=True):
        np.testing.assert_allclose(line.get_xydata(), points(*wanted))


def test_what_the_font_lacks_is_drawn_without_a_warning():
    assert plotting.png(lambda figure: figure.suptitle("猫"), 1, 1).startswith(b"\x89PNG")


def row(variant, error, difference):
    return Row(variant, (0, 1, 2), 1, 1, error, error, difference, error, None)


def whiskers(axes):
    """The ends of the horizontal lines, by their height."""
    ends = [line.get_segments()[0] for line in axes.collections]
    return {end[0][1]: (end[0][0], end[1][0]) for end in ends}


def test_errors_with_deviations_and_differences_with_intervals():
    table = [
        row("none", Estimate(3, 30.0, 2.0, 25.0, 35.0), None),
        row("nam", Estimate(3, 28.0, 1.0, 25.5, 30.5), Estimate(3, -2.0, 0.5, -3.25, -0.75)),
        row("se", Estimate(1, 29.0), Estimate(1, -1.0)),
        row("tam", Estimate(2, 27.0, 0.0), Estimate(2, -3.0, 0.0)),
    ]
    errors, differences = drawn(chart.comparison(table)[0]).axes
    assert [label.get_text() for label in errors.get_yticklabels()] == ["none", "nam", "se", "tam"]
    shown = [line.get_xydata()[0] for line in errors.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(shown, [[30, 0], [28, 1], [29, 2], [27, 3]])
    assert whiskers(errors) == {0: (28, 32), 1: (27, 29), 3: (27, 27)}
    shown = [line.get_xydata()[0] for line in differences.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(shown, [[-2, 1], [-1, 2], [-3, 3]])
    assert whiskers(differences) == {1: (-3.25, -0.75)}


def test_small_weights_lie_below_the_line():
    (axes, _) = drawn(
        weight_plots.sorted_weights({"a": np.ones(2), "b": np.ones(3)}, "x").draw
    ).axes
    *_, line = axes.lines
    assert set(line.get_ydata()) == {weight_plots.SMALL}


def test_gallery_shows_the_heat_and_the_gates_less_one_half():
    rng = np.random.default_rng(0)
    views = [View(1, 0.75, rng.random((4, 4)), rng.random(6), rng.random((2, 3))) for _ in range(2)]
    pictures = [Picture(f"test {n}", rng.integers(0, 255, (8, 8, 3)), n) for n in range(2)]
    draw, *_ = gallery.gallery(pictures, views, "layer1_0", ["zero", "one"])
    axes = np.reshape(drawn(draw).axes[:15], (3, 5))
    for line, picture, view in zip(axes, pictures, views, strict=False):
        text, image, heat, channels, pixels = line
        assert "predicted one (75.0 %)" in text.texts[0].get_text()
        np.testing.assert_array_equal(image.images[0].get_array(), picture.image)
        np.testing.assert_array_equal(heat.images[1].get_array(), view.heat)
        steps = sum(patch.get_data().values for patch in channels.patches)
        np.testing.assert_allclose(steps, view.channels - 0.5)
        np.testing.assert_allclose(pixels.images[0].get_array(), view.pixels - 0.5)
