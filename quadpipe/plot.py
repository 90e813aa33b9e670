"""Plots of curves for people: one value over another, with error bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_ZOOM = 2  # drawn larger, then shrunk, for smooth lines
_PANEL, _TEXT = (480, 340), 13
_LEFT, _TOP, _RIGHT, _BOTTOM = 58, 34, 20, 46
_LEGEND = 24
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#888888")
_INK, _GRID = "#181818", "#dddddd"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points in ascending x. errors: half the length of the bars, one per point; nan for none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] | None = None


def draw_curves(panels: Mapping[str, Sequence[Curve]], *, x: str, y: str) -> Image.Image:
    """Panels side by side, RGB, by title; the names of the axes are x and y.

    Curves of one name have one color in all panels. Both axes begin at 0.
    """
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    colors = {name: _COLORS[n % len(_COLORS)] for n, name in enumerate(names)}
    width, height = _PANEL
    size = (width * len(panels), height + _LEGEND * len(names) + 8)
    sheet = Image.new("RGB", (size[0] * _ZOOM, size[1] * _ZOOM), "white")
    for number, (title, curves) in enumerate(panels.items()):
        panel = _panel(curves, colors, f"{y}, {title}" if title else y, x)
        sheet.paste(panel, (number * width * _ZOOM, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT * _ZOOM)
    for number, (name, color) in enumerate(colors.items()):
        left, top = _LEFT * _ZOOM, (height + number * _LEGEND) * _ZOOM
        pen.rectangle((left, top, left + 12 * _ZOOM, top + 12 * _ZOOM), color)
        pen.text((left + 20 * _ZOOM, top + 6 * _ZOOM), name, _INK, font, anchor="lm")
    return sheet.resize(size, Image.Resampling.LANCZOS)


def _panel(
    curves: Sequence[Curve], colors: Mapping[str, str], title: str, x_axis: str
) -> Image.Image:
    width, height = _PANEL[0] * _ZOOM, _PANEL[1] * _ZOOM
    left, right = _LEFT * _ZOOM, width - _RIGHT * _ZOOM
    top, bottom = _TOP * _ZOOM, height - _BOTTOM * _ZOOM
    panel = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(_TEXT * _ZOOM)
    x_step = tick_step(max((value for curve in curves for value in curve.x), default=1.0))
    y_step = tick_step(max((value for curve in curves for value in curve.y), default=1.0))
    most_x = _upper(x_step, [value for curve in curves for value in curve.x])
    most_y = _upper(y_step, [value for curve in curves for value in curve.y])

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / most_x * (right - left), bottom - y / most_y * (bottom - top)

    for n in range(round(most_y / y_step) + 1):
        pen.line((place(0, n * y_step), place(most_x, n * y_step)), _GRID, _ZOOM)
        pen.text(place(0, n * y_step), f"{n * y_step:g} ", _INK, font, anchor="rm")
    for n in range(round(most_x / x_step) + 1):
        at, _ = place(n * x_step, 0)
        pen.text((at, bottom + 6 * _ZOOM), f"{n * x_step:g}", _INK, font, anchor="mt")
    pen.text(((left + right) / 2, height - 6 * _ZOOM), x_axis, _INK, font, anchor="mb")
    pen.text((left, 8 * _ZOOM), title, _INK, font)
    for curve in curves:
        color = colors[curve.name]
        points = [place(*point) for point in zip(curve.x, curve.y, strict=True)]
        if len(points) > 1:
            pen.line(points, color, 2 * _ZOOM)
        for number, (x, y) in enumerate(points):
            error = curve.errors[number] if curve.errors else math.nan
            if math.isfinite(error):
                reach = error / most_y * (bottom - top)
                pen.line(((x, y - reach), (x, y + reach)), color, 2 * _ZOOM)
            dot = 4 * _ZOOM
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), color)
    return panel


def tick_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that an axis up to `largest` has 3 to 7 ticks."""
    if not largest > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest / 3))
    return next(step * power for step in (1, 2, 5, 10) if largest / (step * power) <= 6)


def _upper(step: float, values: Sequence[float]) -> float:
    """The end of an axis: the first tick at or above all values."""
    return step * max(math.ceil(max(values, default=0.0) / step - 1e-9), 1)
