"""The page of mode 'web' in a real browser."""

import json

import pytest

from tests.browser import needs_browser, opened_browser
from tests.modes.test_images import Fake
from tests.modes.test_web import picture, serving

pytestmark = [needs_browser, pytest.mark.slow]
NAMES = ["cat &lt;b&gt;.png", "street.png"]


@pytest.fixture
def browser(tmp_path):
    """Chromium with the page, on which two pictures were dropped; its downloads go to the folder `files`."""
    for name in NAMES:
        (tmp_path / name).write_bytes(picture(size_hw=(200, 400)))
    options = {"download__default_directory": str(tmp_path / "files"), "download__prompt_for_download": False}
    with serving(Fake()) as server, opened_browser(**options) as driver:
        driver.implicitly_wait(10)
        driver.get(f"http://127.0.0.1:{server.server_address[1]}")
        add(driver, *(tmp_path / name for name in NAMES))
        driver.find_elements("css selector", "article:nth-child(2)[aria-busy=false] img.drawn")
        yield driver


def add(browser, *paths):
    browser.find_element("id", "files").send_keys("\n".join(map(str, paths)))


def texts(browser, selector):
    return [item.text for item in browser.find_elements("css selector", selector)]


def settled(browser, script):
    """What a script returns once all pictures are done."""
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 10)
    return wait.until(
        lambda _: browser.execute_script(f"return !document.querySelector('[aria-busy=true]') && {script}")
    )


def test_pictures_come_back_with_boxes(browser):
    """Prevents pictures that do not decode, a script that the page's own policy refuses, names that become markup, a
    page wider than a phone, and requests to anywhere else."""
    assert texts(browser, "article h2") == NAMES
    assert texts(browser, "article p") == ["2 objects: cat 1, a/dog 1"] * 2
    assert texts(browser, "#total") == ["2 pictures, 4 objects: cat 2, a/dog 2."]
    assert texts(browser, "tbody tr")[:2] == ["cat 0.900 0 0 200 200", "a/dog 0.600 396 196 400 200"]
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert widths == [400, 400]
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    own = browser.current_url, f"blob:{browser.current_url}", "data:"
    assert len(sent) >= 6 and [url for url in sent if not url.startswith(own)] == []


def test_the_filter_and_the_slider_look_again(browser):
    """Prevents controls that do nothing, and a reset that does not bring the detector's own scores back."""
    for item in ("#filter summary", "#none"):
        browser.find_element("css selector", item).click()
    assert settled(browser, "document.querySelector('#total').textContent") == "2 pictures, 0 objects."
    for item in ("#all", "#crops"):
        browser.find_element("css selector", item).click()
    assert settled(browser, "document.querySelectorAll('.cut img').length") == 4
    slider = browser.find_element("id", "confidence")
    slider.send_keys("\ue014")  # the key with the arrow to the right
    assert texts(browser, "#score") == ["0.51"] and settled(browser, "true")
    browser.find_element("id", "reset").click()
    assert texts(browser, "#score") == ["0.50"] and settled(browser, "true")


def test_the_files_can_be_downloaded(browser, tmp_path):
    """Prevents links that the page's own policy refuses, and label files of another picture."""
    for link in browser.find_elements("css selector", "article:nth-child(2) .downloads a"):
        link.click()
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 10)
    names = ["classes.txt", "street.txt", "street.xml", "street_boxes.png"]
    wait.until(lambda _: sorted(path.name for path in (tmp_path / "files").glob("*")) == names)
    assert (tmp_path / "files/classes.txt").read_text(encoding="utf-8") == "cat\na/dog\n"
    labels = (tmp_path / "files/street.txt").read_text(encoding="utf-8")
    assert labels == "0 0.250000 0.500000 0.500000 1.000000\n1 0.995000 0.990000 0.010000 0.020000\n"


def test_a_broken_picture_is_a_sentence(browser, tmp_path):
    """Prevents a trace on the page, and one broken picture that stops the others."""
    (tmp_path / "broken.png").write_text("no picture")
    add(browser, tmp_path / "broken.png", tmp_path / NAMES[1])
    sentence = "broken.png cannot be decoded as an image: its header cannot be read as an image. Expected a JPEG, a PNG"
    assert texts(browser, "[role=alert]") == [f"{sentence} or the like."]
    assert settled(browser, "document.querySelector('#total').textContent").startswith("3 pictures, 6 objects")
