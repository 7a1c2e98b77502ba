"""The page of a run in a real browser."""

import pytest

from tests.browser import needs_browser, opened_browser
from tests.reporting.page_run import annotations_of, page_of

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with a page opened in it."""
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(page_of(annotations_of(folder)), encoding="utf-8")
    with opened_browser() as driver:
        driver.get(path.as_uri())
        yield driver


def click(browser, selector):
    browser.find_element("css selector", selector).click()


def visible(browser, selector):
    return sum(item.is_displayed() for item in browser.find_elements("css selector", selector))


def test_the_page_loads_without_errors(browser):
    """Prevents a script that its own Content-Security-Policy refuses, and pictures that do not decode."""
    assert browser.get_log("browser") == []
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 4 and min(widths) > 0


def test_a_phone_scrolls_only_down(browser):
    """Prevents a wide table from making the whole page wide."""
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_filters_hide_and_show_pictures(browser):
    """Prevents buttons that do nothing, or that do not show again what they hid."""
    pictures = "figure[data-kinds]"
    assert visible(browser, pictures) == 4
    click(browser, "button[data-kind=invented]")
    assert visible(browser, pictures) == visible(browser, "figure[data-kinds=invented]") == 1
    assert browser.find_element("css selector", "button[data-kind=invented]").get_attribute("aria-pressed") == "true"
    click(browser, "button[data-kind=all]")
    assert visible(browser, pictures) == 4


def test_boxes_can_be_hidden(browser):
    """Prevents a crowd of right boxes from covering what is wrong."""
    click(browser, "button[data-toggle=no-right]")
    assert (visible(browser, ".box.right"), visible(browser, ".box.missed")) == (0, 1)
    click(browser, "button[data-toggle=no-right]")
    assert visible(browser, ".box.right") == 2


def test_a_name_from_the_data_runs_nothing(browser):
    """Prevents an alert of a class name."""
    assert browser.execute_script("return document.scripts.length") == 1
    assert "<script>alert(1)</script>" in browser.find_element("css selector", "#classes").text
