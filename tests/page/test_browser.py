"""The page as a person sees it, in headless Chromium."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Browser, browsing
from job_runs import tokenize_small
from page_texts import hostile
from PIL import Image

import quadpipe
from quadpipe.cli.gallery import exhibits
from quadpipe.counts import CountLimits
from quadpipe.page.build import build_page
from quadpipe.render import Exhibit

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

READY = "document.getElementById('gallery')?.getAttribute('aria-busy') === 'false'"


@pytest.fixture(scope="module")
def dataset(image_folder, tmp_path_factory) -> quadpipe.Dataset:
    return tokenize_small(image_folder, tmp_path_factory.mktemp("browser") / "shards")


@pytest.fixture(scope="module")
def shown(dataset) -> list[Exhibit]:
    return exhibits(dataset, "train", 23)


@pytest.fixture(scope="module")
def limits(dataset) -> CountLimits:
    return CountLimits.of(dataset.manifest.geometry, dataset.manifest.tokenizer.tokens)


@pytest.fixture(scope="module")
def page(dataset, shown, limits, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(build_page(dataset, "train", shown, limits), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1280, 900)
        yield opened


def captions(browser: Browser) -> list[str]:
    script = "[...document.querySelectorAll('figcaption .count')].map(each => each.textContent)"
    return list(browser.run(script))


def drawn(browser: Browser, number: int, height: int, width: int) -> np.ndarray:
    """The mosaic of a sample as it is drawn, one of each pixel's copies."""
    script = """((number, height, width) => {
        const canvas = document.querySelectorAll('figure')[number].querySelectorAll('canvas')[1];
        const [zoom, context] = [canvas.height / height, canvas.getContext('2d')];
        const pixels = [];
        for (let y = 0; y < height; y++) {
            const row = context.getImageData(0, (y + 0.5) * zoom, canvas.width, 1).data;
            for (let x = 0; x < width; x++)
                pixels.push(...row.slice(4 * Math.floor((x + 0.5) * zoom)).slice(0, 3));
        }
        return pixels;
    })"""
    pixels = browser.run(f"{script}({number}, {height}, {width})")
    return np.array(pixels, int).reshape(height, width, 3)


def move(browser: Browser, value: int) -> None:
    browser.run(
        f"slider.value = {value}; slider.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


def test_the_slider_redraws_every_sample_at_its_budget(browser, page, shown):
    browser.open(page, READY)
    assert captions(browser) == ["40 tokens"] * 23
    for budget in (7, 22, 37):
        move(browser, budget)
        assert captions(browser) == [f"{budget} tokens"] * 23
        assert browser.run("count.textContent") == f"{budget} tokens"
        for number in (0, 9):
            mosaic = shown[number].mosaic
            pixels = drawn(browser, number, 64, 64)
            errors = {
                other: np.abs(pixels - mosaic.rebuild(other).astype(int)).mean()
                for other in (4, 7, 10, 19, 22, 25, 34, 37, 40)
            }
            assert min(errors, key=errors.__getitem__) == budget
            assert errors[budget] < 4  # of a JPEG


def test_the_keyboard_moves_the_slider(browser, page):
    browser.open(f"{page}#tokens=31", READY)
    assert captions(browser) == ["31 tokens"] * 23
    for _ in range(2):  # the radio buttons, then the slider
        browser.press("Tab")
    assert browser.run("document.activeElement.id") == "slider"
    assert browser.run("getComputedStyle(slider).outlineStyle") == "solid"
    browser.press("ArrowRight")
    assert captions(browser) == ["34 tokens"] * 23
    browser.press("Home")
    assert captions(browser) == ["4 tokens"] * 23
    assert browser.run("slider.getAttribute('aria-valuetext')") == "4 tokens"
    assert browser.run("location.hash") == "#tokens=4"


def test_at_a_mean_each_sample_has_its_own_count(browser, page, dataset, limits):
    browser.open(f"{page}#mean=19", READY)
    gains = dataset.gains("train")
    for mean in (19, 31):
        move(browser, mean)
        splits = limits.at_threshold(gains, limits.threshold(gains, mean))
        assert captions(browser) == [f"{4 + 3 * count} tokens" for count in splits]
        heights = browser.run(
            "[...histogram.querySelectorAll('rect')].map(bar => Number(bar.getAttribute('height')))"
        )
        expected = np.bincount(splits, minlength=13)
        np.testing.assert_allclose(heights, 100 * expected / expected.max(), atol=0.2)
    assert len(set(captions(browser))) > 1


def problems(events: list[dict[str, Any]]) -> list[str]:
    """What a page did that it must not: dialogs, exceptions, refused or made requests."""
    found = []
    for event in events:
        name = event.get("method", "")
        request = event.get("params", {}).get("request", {}).get("url", "")
        if name in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Log.entryAdded"):
            found.append(json.dumps(event))
        elif request and not request.startswith(("file:", "data:", "about:")):
            found.append(request)
    return found


def test_hostile_text_is_shown_and_nothing_of_it_runs(browser, dataset, limits, tmp_path):
    other, shown, text = hostile(quadpipe.Dataset(dataset.folder))
    path = tmp_path / "hostile.html"
    path.write_text(build_page(other, "train", shown, limits), encoding="utf-8")
    browser.events.clear()
    browser.open(path.as_uri(), READY)
    assert browser.run("document.title") == text
    assert browser.run("document.querySelector('figcaption .class').textContent") == text
    assert browser.run("document.querySelectorAll('img, iframe, object, a').length") == 0
    assert browser.run("document.scripts.length") == 2
    move(browser, 10)
    assert captions(browser) == ["10 tokens"] * len(shown)
    assert problems(browser.events) == []
    # The policy keeps back what would run if it came to be in the page.
    injected = '<img src=x onerror="document.title=1"><b style="color:red" id=styled>x</b>'
    browser.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(injected)})")
    assert browser.run("new Promise(done => setTimeout(() => done(document.title), 100))") == text
    assert browser.run("getComputedStyle(styled).color") != "rgb(255, 0, 0)"


def test_it_fits_narrow_screens_and_has_a_dark_scheme(browser, page, tmp_path):
    backgrounds = {}
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark")):
        browser.resize(width, 844, scheme=scheme)
        browser.open(page, READY)
        assert browser.run("document.documentElement.scrollWidth") <= width
        backgrounds[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as picture:
            assert picture.width == width
            corner = picture.convert("RGB").getpixel((2, 2))
        assert backgrounds[scheme] == f"rgb{corner}"
    assert len(set(backgrounds.values())) == 2
    browser.resize(1280, 900)
