import numpy as np
import pytest

from quadpipe.plot import Curve, draw_curves, tick_step


@pytest.mark.parametrize(
    ("largest", "step"), [(100, 20), (58.2, 10), (0.31, 0.1), (7, 2), (20.6, 5), (1, 0.2), (0, 1)]
)
def test_an_axis_has_a_few_round_ticks(largest, step):
    assert tick_step(largest) == pytest.approx(step)


def test_a_curve_of_one_name_has_one_color_and_higher_values_are_higher():
    low = Curve(name="low", x=[10, 20], y=[10, 10], errors=[1, float("nan")])
    high = Curve(name="high", x=[10, 20], y=[40, 40])
    both = np.asarray(draw_curves({"a": [low, high], "b": [high]}, x="cost", y="gain")).astype(int)
    assert both.shape[1] == 2 * 480
    plot = both[:330]  # without the names below
    blue = (plot[..., 2] - plot[..., 0]) > 120  # the first color
    red = (plot[..., 0] - plot[..., 2]) > 120
    assert not blue[:, 480:].any()
    assert red[:, :480].any()
    assert red[:, 480:].any()
    assert np.nonzero(red[:, :480])[0].mean() < np.nonzero(blue)[0].mean()
