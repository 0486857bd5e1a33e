"""The HTML report in a real browser: it opens without a complaint or a request, and does what its controls say."""

import io

import pytest
from PIL import Image

from edgekit import report
from tests import browser
from tests.report_bundles import HOSTILE, make_bundle

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

SEEN = """
const seen = "article:not([hidden]) .plot:not([hidden]), #tradeoff .plot";
return [...document.querySelectorAll(seen)].map(figure => [
  figure.dataset.plot,
  figure.querySelectorAll("svg path").length,
  figure.querySelector("[role=graphics-document]")?.getAttribute("aria-label"),
  figure.querySelector("figcaption").textContent,
]);
"""
LAYERS = ["stem.conv", "blocks.0.conv", "blocks.1.conv", HOSTILE, "head"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    bundles = [make_bundle(folder / name, LAYERS[index:]) for index, name in enumerate(("first", "second"))]
    report.write_page(report.bundle_entries(bundles), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver(path):
    started = browser.start(path.parent / "profile")
    browser.show(started, path)
    yield started
    started.quit()


@pytest.fixture
def page(driver, path):
    """The page as it opens."""
    browser.show(driver, path)
    return driver


def choose(page, selector: str, value: str) -> None:
    page.execute_script(
        "const item = document.querySelector(arguments[0]); item.value = arguments[1];"
        "item.dispatchEvent(new Event(item.tagName === 'INPUT' ? 'input' : 'change'))",
        selector,
        value,
    )


def first_column(page, column: int) -> list[str]:
    rows = "article:not([hidden]) .layer-table tbody tr"
    return page.execute_script(
        f"return [...document.querySelectorAll('{rows}')].map(r => r.cells[{column}].textContent)"
    )


def test_it_opens_without_errors_or_requests(driver, path):
    assert driver.get_log("browser") == []
    assert {url for url in browser.requests(driver, path) if not url.startswith("data:")} == {path.as_uri()}
    assert driver.execute_script("return window.stolen") is None


def test_every_plot_is_drawn_and_named(driver):
    plots = driver.execute_script(SEEN)
    names = {plot[0] for plot in plots}
    assert {"tradeoff", "stages", "layers ms", "layers gain_db", "roofline", "training loss"} <= names
    assert all(marks > 0 and label and caption for _, marks, label, caption in plots)


def test_the_cost_can_be_chosen(page):
    axis = "return document.querySelector('#tradeoff .role-axis-title text').textContent"
    titles = [page.execute_script(axis)]
    choose(page, "#cost", "macs")
    titles.append(browser.wait(page, f"{axis} === 'MACs' && 'MACs'"))
    assert titles == ["latency [ms]", "MACs"]


def test_searching_narrows_table_and_bars_alike(page):
    choose(page, "article:not([hidden]) .search", "BLOCKS")
    bars = "document.querySelector('article:not([hidden]) [data-plot=\"layers ms\"]').dataset.rows"
    browser.wait(page, f"return {bars} === '2'")
    assert first_column(page, 1) == ["blocks.0.conv", "blocks.1.conv"]
    assert page.execute_script("return document.querySelector('.count').textContent") == "2 of 5 layers"
    choose(page, "article:not([hidden]) .search", "no such layer")
    browser.wait(page, f"return {bars} === '0'")
    assert first_column(page, 1) == []


def test_columns_sort_from_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    header = "article:not([hidden]) th button[data-key=gain_db]"
    page.find_element("css selector", header).send_keys(Keys.ENTER)
    assert first_column(page, 0) == ["5", "4", "3", "2", "1"]
    assert page.switch_to.active_element.get_attribute("data-key") == "gain_db"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert first_column(page, 0) == ["1", "2", "3", "4", "5"]
    place = page.find_element("css selector", header).find_element("xpath", "..")
    assert place.get_attribute("aria-sort") == "ascending"


def test_another_bundle_and_another_file(page):
    choose(page, "#entry", "1")
    assert page.execute_script("return [...document.querySelectorAll('article')].map(a => a.hidden)") == [True, False]
    assert first_column(page, 1) == [name.replace("\x00", "�") for name in LAYERS[1:]]
    choose(page, "article:not([hidden]) .file-choice", "base.onnxruntime.fp32.onnx")
    assert first_column(page, 3) == ["4"] * 4


def test_dark_and_narrow(driver):
    grounds = []
    for dark in (False, True):
        browser.look(driver, 390, dark)
        grounds.append(driver.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    assert grounds == ["rgb(251, 251, 250)", "rgb(20, 23, 26)"]
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
    assert picture.width == 390 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    assert driver.get_log("browser") == []
