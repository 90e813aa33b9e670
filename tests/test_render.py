import numpy as np
import pytest
from PIL import Image

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.render import Exhibit, draw, draw_quadtrees, draw_scorers


@pytest.fixture
def exhibit(square) -> Exhibit:
    mosaic = quadpipe.Tokenizer(tokens=100).tokenize(square[:1])[0]
    return Exhibit(mosaic=mosaic, title="temple/01.jpg", image=square[0])


def panels(sheet: Image.Image) -> tuple[int, int]:
    """Columns and rows of 512-pixel panels that a sheet has room for."""
    return sheet.width // 512, sheet.height // 512


def test_one_budget_is_a_row_of_image_quadtree_and_mosaic(exhibit, square):
    sheet = draw([exhibit], [64])
    assert panels(sheet) == (3, 1)
    pixels = np.asarray(sheet).astype(int)
    image = np.asarray(Image.fromarray(square[0]).resize((512, 512), Image.Resampling.BICUBIC))
    left, top = 16, 36
    np.testing.assert_array_equal(pixels[top : top + 512, left : left + 512], image)
    mosaic = exhibit.mosaic.rebuild(64).repeat(2, 0).repeat(2, 1)
    left += 2 * (512 + 16)
    np.testing.assert_array_equal(pixels[top : top + 512, left : left + 512], mosaic)


def test_the_quadtree_has_a_line_along_every_leaf(exhibit):
    pixels = np.asarray(draw([exhibit], [64]))
    left, top = 16 + 512 + 16, 36
    for x, y, scale in exhibit.mosaic.leaves(64).boxes.tolist():
        side = 32 << scale
        row = pixels[top + y * 32, left + x * 32 : left + x * 32 + side]
        assert (row == 255).all()


def test_several_budgets_are_side_by_side(exhibit):
    assert panels(draw([exhibit], [16, 64, 100])) == (4, 2)


def test_exhibits_are_stacked_and_may_lack_an_image(exhibit):
    bare = Exhibit(mosaic=exhibit.mosaic, title="x" * 300)
    assert panels(draw([bare, bare], [64])) == (2, 2)


def test_scorers_are_columns_of_a_heat_map_and_quadtrees(square):
    importance = np.zeros((8, 8))
    importance[2, 5] = 3.0
    tokenizer = quadpipe.Tokenizer(scorer="laplacian", tokens=64)
    mosaic = tokenizer.tokenize(square[:1])[0]
    shown = [
        Exhibit(mosaic=mosaic, title="a.jpg", image=square[0], scorer="a", importance=importance),
        Exhibit(mosaic=mosaic, title="a.jpg", image=square[0], scorer="b"),
    ]
    sheet = draw_scorers(shown, [31, 64])
    assert panels(sheet) == (3, 3)
    pixels = np.asarray(sheet).astype(int)
    heat, plain = (pixels[16 : 16 + 512, left : left + 512] for left in (16 + 528, 16 + 2 * 528))
    warm = heat[..., 0] > heat[..., 2]
    hot = np.zeros((8, 8), bool)
    hot[2, 5] = True
    inner = np.zeros((64, 64), bool)
    inner[8:-8, 8:-8] = True  # interpolation mixes colors at the edges
    inner = np.tile(inner, (8, 8))
    assert (warm == hot.repeat(64, 0).repeat(64, 1))[inner].all()
    assert (plain.max(-1) == plain.min(-1)).all()


def test_quadtrees_are_in_rows_with_their_titles(square):
    exhibits = [
        Exhibit(mosaic=quadpipe.Tokenizer(scorer=name, tokens=31)(image), title=name)
        for name in ("pixel-blur", "laplacian", "entropy")
        for image in square[:1]
    ]
    sheet = draw_quadtrees(exhibits, 31, columns=2)
    assert sheet.size == (2 * 528 + 16, 2 * (512 + 36) + 16)
    pixels = np.asarray(sheet)
    assert (pixels[700:, 600:] == 255).all()  # no fourth one
    assert not (pixels[:500, 600:1100] == 255).all()


def test_drawing_no_samples_is_an_error():
    with pytest.raises(ConfigError, match="no samples to draw"):
        draw([], [31])
