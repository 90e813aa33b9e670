"""Pictures of mosaics: the image, its quadtree, its mosaic, its importance, at some budgets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quadpipe.errors import ConfigError
from quadpipe.mosaic import Leaves, Mosaic

_PANEL = 384  # shortest side of a panel in pixels, at least
_GAP = 16
_CAPTION = 36
_TEXT_SIZE = 20
_INK, _PALE_INK = (24, 24, 24), (96, 96, 96)
_LINE, _SHADOW = (255, 255, 255), (0, 0, 0)
_SMOOTH = Image.Resampling.BICUBIC
# Dark blue, purple, orange, yellow: lighter is higher, also in print and for color-blind eyes.
_HEAT = np.array([(13, 8, 135), (156, 23, 158), (237, 121, 83), (240, 249, 33)], float)
_HEAT_STOPS = np.linspace(0, 1, len(_HEAT))


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One mosaic to be shown.

    image: the original, uint8 `[H, W, 3]`, where it is at hand. label: the name of its class, for
    pages. scorer, importance: name of the
    scorer, and its importance of patches in a grid over the image, float `[rows, columns]`, for
    `draw_scorers`. tokens: the image's own number of tokens, drawn instead of the budgets.
    """

    mosaic: Mosaic
    title: str
    image: np.ndarray | None = None
    label: str = ""
    scorer: str = ""
    importance: np.ndarray | None = None
    tokens: int | None = None


def draw(exhibits: Sequence[Exhibit], budgets: Sequence[int] = ()) -> Image.Image:
    """A sheet with a block for each exhibit, RGB.

    With one budget a block is a row: image, quadtree, mosaic. With several budgets, each is a
    column beside the image, with the mosaic below the quadtree. Raises ConfigError on a budget that
    a mosaic does not serve, and without exhibits.
    """
    if not exhibits:
        raise ConfigError("no samples to draw")
    blocks = [_block(exhibit, budgets) for exhibit in exhibits]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def draw_scorers(exhibits: Sequence[Exhibit], budgets: Sequence[int]) -> Image.Image:
    """One image under several scorers, RGB: the image, then a column for each exhibit.

    A column has the importance as a heat map from its smallest (dark) to its largest value
    (yellow), then the quadtree at each budget. All exhibits must have one geometry, their image
    and, where the scorer has one, their importance. Raises ConfigError as `draw` does.
    """
    columns = []
    for exhibit in exhibits:
        column = [_captioned(_heat_map(exhibit), exhibit.scorer)]
        for budget in budgets:
            tree = _quadtree(exhibit, exhibit.mosaic.rebuild(budget), budget)
            column.append(_captioned(tree, f"{budget} tokens"))
        columns.append(column)
    first = exhibits[0]
    assert first.image is not None
    left = _captioned(_zoomed(first.image, _zoom(first.mosaic), _SMOOTH), first.title)
    return _framed(_beside(left, _stack([list(row) for row in zip(*columns, strict=True)])))


def _heat_map(exhibit: Exhibit) -> Image.Image:
    """Importance in colors, with the light and dark of the image; gray without importance."""
    assert exhibit.image is not None
    gray = np.asarray(Image.fromarray(exhibit.image).convert("L"))
    shade = 0.6 + 0.4 * gray[..., None] / 255
    height, width = gray.shape
    if exhibit.importance is None:
        return _zoomed(_as_pixels(255 * shade.repeat(3, 2)), _zoom(exhibit.mosaic), _SMOOTH)
    values = exhibit.importance.astype(np.float64)
    values -= values.min()
    values /= values.max() or 1.0
    rows, columns = values.shape
    colors = np.stack([np.interp(values, _HEAT_STOPS, channel) for channel in _HEAT.T], -1)
    colors = colors.repeat(height // rows, 0).repeat(width // columns, 1)
    return _zoomed(_as_pixels(colors * shade), _zoom(exhibit.mosaic), _SMOOTH)


def _as_pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def draw_quadtrees(
    exhibits: Sequence[Exhibit], budget: int | None = None, *, columns: int
) -> Image.Image:
    """Quadtrees only, RGB: a panel for each exhibit with its title below, row by row.

    There is at least one exhibit, and all have one geometry. budget: of the exhibits without their
    own number of tokens, by default the stored one. Raises ConfigError as `draw` does.
    """
    panels = []
    for exhibit in exhibits:
        tokens = exhibit.tokens or budget or exhibit.mosaic.budget
        tree = _quadtree(exhibit, exhibit.mosaic.rebuild(tokens), tokens)
        panels.append(_captioned(tree, exhibit.title))
    panels += [Image.new("RGB", panels[0].size, "white")] * (-len(panels) % columns)
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    return _framed(_stack(rows))


def _framed(grid: Image.Image) -> Image.Image:
    framed = Image.new("RGB", (grid.width + _GAP, grid.height + _GAP), "white")
    framed.paste(grid, (_GAP, _GAP))
    return framed


def _quadtree(exhibit: Exhibit, rebuilt: np.ndarray, budget: int) -> Image.Image:
    """Outlines of the leaves on the image, or without one on the rebuilt image."""
    zoom = _zoom(exhibit.mosaic)
    shown = rebuilt if exhibit.image is None else exhibit.image
    tree = _zoomed(shown, zoom, _SMOOTH)
    _draw_boxes(tree, exhibit.mosaic.leaves(budget), exhibit.mosaic.geometry.patch_size * zoom)
    return tree


def _zoom(mosaic: Mosaic) -> int:
    return -(-_PANEL // min(mosaic.geometry.height, mosaic.geometry.width))


def _block(exhibit: Exhibit, budgets: Sequence[int]) -> Image.Image:
    mosaic = exhibit.mosaic
    zoom = _zoom(mosaic)
    trees, mosaics = [], []
    for budget in budgets if exhibit.tokens is None else [exhibit.tokens]:
        rebuilt = mosaic.rebuild(budget)
        tree = _quadtree(exhibit, rebuilt, budget)
        pixels = _zoomed(rebuilt, zoom, Image.Resampling.NEAREST)
        trees.append(_captioned(tree, f"quadtree, {budget} tokens"))
        mosaics.append(_captioned(pixels, f"mosaic, {budget} tokens"))
    grid = _stack([trees, mosaics] if len(budgets) > 1 else [trees + mosaics])
    if exhibit.image is not None:
        image = _captioned(_zoomed(exhibit.image, zoom, _SMOOTH), "image")
        grid = _beside(image, grid)
    titled = Image.new("RGB", (grid.width, grid.height + _CAPTION), "white")
    titled.paste(grid, (0, _CAPTION))
    _write(titled, (0, 10), exhibit.title, _INK)
    framed = Image.new("RGB", (titled.width + _GAP, titled.height + _GAP), "white")
    framed.paste(titled, (_GAP, 0))
    return framed


def _captioned(panel: Image.Image, caption: str) -> Image.Image:
    """A panel with its caption below and room to the right of it."""
    cell = Image.new("RGB", (panel.width + _GAP, panel.height + _CAPTION), "white")
    cell.paste(panel)
    _write(cell, (0, panel.height + 4), caption, _PALE_INK)
    return cell


def _stack(rows: list[list[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    grid = Image.new("RGB", (len(rows[0]) * width, len(rows) * height), "white")
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            grid.paste(cell, (c * width, r * height))
    return grid


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    joined = Image.new("RGB", (left.width + right.width, right.height), "white")
    joined.paste(left, (0, (right.height - left.height) // 2))
    joined.paste(right, (left.width, 0))
    return joined


def _write(
    canvas: Image.Image, position: tuple[int, int], text: str, ink: tuple[int, int, int]
) -> None:
    """One line of text. Long text is cut at its start, since paths differ at their ends."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_TEXT_SIZE)
    shown = text[-200:]
    while len(shown) > 8 and draw.textlength(shown, font) > canvas.width - position[0]:
        shown = "..." + shown.removeprefix("...")[1:]
    draw.text(position, shown, ink, font)


def _zoomed(pixels: np.ndarray, zoom: int, resampling: Image.Resampling) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((width * zoom, height * zoom), resampling)


def _draw_boxes(panel: Image.Image, leaves: Leaves, unit: int) -> None:
    """Outline each leaf in white on black, which is visible on any picture."""
    draw = ImageDraw.Draw(panel)
    for color, width in ((_SHADOW, 3), (_LINE, 1)):
        for x, y, scale in leaves.boxes.tolist():
            left, top, side = x * unit, y * unit, unit << scale
            draw.line([(left, top), (left + side, top)], color, width)
            draw.line([(left, top), (left, top + side)], color, width)
        right, bottom = panel.width - 1, panel.height - 1
        draw.line([(right, 0), (right, bottom), (0, bottom)], color, width)
