"""The pages in a real browser: mouse, keyboard, narrow screen, dark theme, print, and no network requests."""

import base64
import json
import shutil
import time

import pytest

from harness.reporting.html import pages
from tests.support.report_samples import evil_run, other_seed, sweep

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
selenium = pytest.importorskip(
    "selenium", reason="the browser is driven by selenium: pip install 'vision-harness[test]'"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here: apt install chromium chromium-driver"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))  # so it looks for none
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages of a run, of two runs and of a sweep, all with hostile text."""
    folder = tmp_path_factory.mktemp("pages")
    one = evil_run(folder / "one")
    two = other_seed(one, folder / "two", 1, 0.5)
    return {
        "run": pages.write_page([one]),
        "runs": pages.write_page([one, two], folder / "all.html"),
        "sweep": pages.write_page([sweep(folder / "sweep")]),
        "many": pages.write_page(
            [
                other_seed(one, folder / f"a-rather-long-name-of-a-run-{n}", 0, 0.5, lr_max=0.01 * (n + 1))
                for n in range(9)
            ],
            folder / "many.html",
        ),
    }


def open_page(browser, path, width=1280, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(path.as_uri())
    began = time.monotonic()
    while not browser.execute_script("return document.documentElement.dataset.charts"):
        assert time.monotonic() - began < 60, browser.get_log("browser")
        time.sleep(0.05)


def script(browser, text, *arguments):
    return browser.execute_script(text, *arguments)


def requested(browser):
    """Return the addresses that a file's page requested (the browser's start page requests some too), and its console."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"].startswith("file:")
    ], browser.get_log("browser")


@pytest.mark.parametrize("name", ["run", "runs", "sweep", "many"])
def test_a_page_fits_a_wide_and_a_narrow_screen_and_makes_no_request(browser, made, name):
    requested(browser)
    for width, scheme in ((1280, "light"), (360, "dark")):
        open_page(browser, made[name], width, scheme)
        assert script(browser, "return document.documentElement.scrollWidth") <= width
        drawn = "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('svg') || !p.offsetWidth)"
        assert script(browser, drawn)
        assert script(browser, "return document.querySelectorAll('.plot svg').length")
        paper = script(browser, "return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
        chart = script(browser, "return document.querySelector('.js-plotly-plot').layout.paper_bgcolor")
        assert chart == ("#ffffff" if scheme == "light" else "#14171b")
        assert not script(
            browser, "return [...document.querySelectorAll('.modebar-btn')].some(b => /share/i.test(b.dataset.title))"
        )
    addresses, console = requested(browser)
    assert addresses
    assert all(address.startswith(("file:", "data:", "blob:")) for address in addresses), addresses
    assert not console


def test_tabs_sorting_and_filters_work_by_mouse_and_by_keyboard(browser, made):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, made["run"])
    tab = browser.find_element(By.ID, "tab-epochs")
    tab.click()
    tab.send_keys(Keys.ARROW_RIGHT)
    other = browser.switch_to.active_element
    assert (other.get_attribute("id"), other.get_attribute("aria-selected")) == ("tab-steps", "true")
    assert browser.find_element(By.ID, "panel-steps").is_displayed()
    assert not browser.find_element(By.ID, "panel-epochs").is_displayed()
    assert script(browser, "return !!document.querySelector('#step-loss svg')")
    other.send_keys(Keys.HOME)
    assert browser.find_element(By.ID, "panel-epochs").is_displayed()

    heads = browser.find_elements(By.CSS_SELECTOR, "#classes ~ .charts th[aria-sort] button")
    recall = next(head for head in heads if head.text.startswith("Recall"))
    values = """return [...arguments[0].closest('table').tBodies[0].rows].map(r => Number(r.cells[2].dataset.value))"""
    recall.click()
    assert script(browser, values, recall) == sorted(script(browser, values, recall))
    recall.send_keys(Keys.ENTER)
    assert script(browser, values, recall) == sorted(script(browser, values, recall), reverse=True)
    assert recall.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"

    gallery = browser.find_element(By.ID, "panel-misclassified")
    shown = "return [...arguments[0].querySelectorAll('.tile:not([hidden])')].map(t => ({...t.dataset}))"
    everything = script(browser, shown, gallery)
    truth = gallery.find_element(By.NAME, "truth")
    truth.send_keys(Keys.ARROW_DOWN)
    chosen = truth.get_property("value")
    some = script(browser, shown, gallery)
    assert 0 < len(some) < len(everything)
    assert {tile["truth"] for tile in some} == {chosen}
    status = gallery.find_element(By.CSS_SELECTOR, "[role=status]").text
    assert status == f"{len(some)} of {len(everything)} shown"
    gallery.find_element(By.CSS_SELECTOR, "button.all").click()
    assert len(script(browser, shown, gallery)) == len(everything)
    option = gallery.find_element(By.CSS_SELECTOR, "select[name=sort] option[value='loss down']")
    option.click()
    losses = [float(tile["loss"]) for tile in script(browser, shown, gallery)]
    assert losses == sorted(losses, reverse=True)
    browser.find_element(By.ID, "tab-correct").click()
    assert browser.find_element(By.ID, "panel-correct").is_displayed()
    assert not browser.get_log("browser")


def test_a_printed_page_includes_the_hidden_tabs(browser, made):
    open_page(browser, made["run"], scheme="dark")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 20_000
    script(browser, "dispatchEvent(new Event('beforeprint'))")
    assert script(browser, "return !!document.querySelector('#step-loss svg')")
    script(browser, "dispatchEvent(new Event('afterprint'))")
    assert not browser.get_log("browser")


@pytest.mark.parametrize("name", ["run", "runs", "sweep", "many"])
def test_on_a_phone_every_caption_is_read_without_and_every_column_with_scrolling_its_own_box(browser, made, name):
    open_page(browser, made[name], 375)
    script(browser, "document.querySelectorAll('details').forEach(part => { part.open = true })")
    boxes = script(
        browser,
        """
        return [...document.querySelectorAll('.scroll')].filter(box => box.offsetWidth).map(box => {
          const edge = () => document.documentElement.clientWidth;
          const caption = box.querySelector('caption > span');
          const inside = part => { const r = part.getBoundingClientRect(); return r.left >= 0 && r.right <= edge(); };
          const before = !caption || inside(caption);
          box.scrollLeft = box.scrollWidth;
          const last = box.querySelector('thead tr')?.lastElementChild ?? box.firstElementChild;
          const right = last.getBoundingClientRect().right;
          return [box.getAttribute('aria-label'), before && (!caption || inside(caption)), right <= edge() + 1];
        })
        """,
    )
    assert boxes and all(caption and column for _, caption, column in boxes), boxes
    assert script(browser, "return document.documentElement.scrollWidth") <= 375


@pytest.fixture(scope="module")
def phone(made):
    """The page of two runs with a long word as a class and settings with long names, of which each row has one line."""
    classes = ["лягушки", "a", "Pferde & Fohlen", "house cats"]
    path = made["run"].with_name("phone.html")
    text = made["run"].read_text(encoding="utf-8")
    table = "".join(f"<tr><th scope='row'>{name}</th>{'<td>26.5 % of all</td>' * 6}</tr>" for name in classes)
    box = f"<div class='scroll' id='wide'><table><thead><tr><th>Class</th></tr></thead><tbody>{table}</tbody></table></div>"
    path.write_text(text.replace('<main id="main">', f'<main id="main">{box}', 1), encoding="utf-8")
    return path


def test_on_a_phone_words_stay_whole_row_lines_meet_and_a_shadow_shows_that_there_is_more(browser, phone):
    open_page(browser, phone, 375)
    rows = script(
        browser,
        """
        const lines = cell => {
          const range = document.createRange();
          range.selectNodeContents(cell);
          return new Set([...range.getClientRects()].map(r => Math.round(r.top))).size;
        };
        return [...document.querySelectorAll('#wide tbody tr')].map(row => {
          const [first, second] = [row.cells[0], row.cells[1]].map(cell => cell.getBoundingClientRect());
          return [row.cells[0].textContent, lines(row.cells[0]), first.bottom - second.bottom, first.bottom % 1];
        })
        """,
    )
    assert [words for words, *_ in rows] == ["лягушки", "a", "Pferde & Fohlen", "house cats"]
    for words, lines, offset, fraction in rows:
        assert lines <= len(words.replace("&", "").split()), words
        assert abs(offset) < 0.01 and abs(fraction - rows[0][3]) < 0.01
    box = "getComputedStyle(document.querySelector('#wide'))"
    assert script(browser, "const b = document.querySelector('#wide'); return b.scrollWidth > b.clientWidth")
    assert script(browser, f"return {box}.backgroundAttachment") == "local, scroll"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_accuracy_of_each_run_is_seen_without_scrolling(browser, made, width):
    open_page(browser, made["many"], width)
    right = "return document.querySelector('table.named td').getBoundingClientRect().right"
    assert 0 < script(browser, right) <= width
    heads = "return [...document.querySelectorAll('table.named thead th')].map(h => [h.textContent, h.getBoundingClientRect().right])"
    seen = [name.split()[0] for name, edge in script(browser, heads) if edge <= width]
    assert "test/acc" in seen and (width == 390 or "test/loss" in seen)


def test_a_loss_is_switched_to_a_logarithmic_axis_and_back(browser, made):
    open_page(browser, made["runs"])
    kind = "return document.getElementById('all-test-loss')._fullLayout.yaxis.type"
    button = "[data-log='all-test-loss']"
    assert script(browser, kind) == "linear"
    press(browser, button)
    assert script(browser, kind) == "log"
    assert script(browser, f'return document.querySelector("{button}").getAttribute("aria-pressed")') == "true"
    press(browser, button)
    assert script(browser, kind) == "linear"
    assert not script(browser, "return !!document.querySelector('[data-log=all-test-acc]')")
    assert not browser.get_log("browser")


def press(browser, selector, kind="click"):
    """Send an element what a mouse sends it."""
    script(browser, "document.querySelector(arguments[0]).dispatchEvent(new MouseEvent(arguments[1], {bubbles: true}))", selector, kind)  # fmt: skip


def test_the_legend_hides_a_configuration_in_every_chart_and_shows_it_alone(browser, made):
    open_page(browser, made["many"])
    visible = """return [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data.some(t => t.legendgroup))
        .map(p => p.data.filter(t => t.visible !== false).map(t => t.legendgroup).sort())"""
    everything = [f"g{n}" for n in range(9)]
    assert script(browser, visible) == [everything] * 4
    press(browser, "[data-group=g3]")
    assert script(browser, visible) == [[group for group in everything if group != "g3"]] * 4
    press(browser, "[data-group=g3]")
    press(browser, "[data-group=g5]", "dblclick")
    assert script(browser, visible) == [["g5"]] * 4
    press(browser, "[data-group=g5]", "dblclick")
    assert script(browser, visible) == [everything] * 4
    assert not browser.get_log("browser")


def test_a_click_enlarges_an_image_and_escape_closes_it(browser, made):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, made["run"])
    button = browser.find_element(By.CSS_SELECTOR, "#panel-misclassified .enlarge")
    small = script(browser, "return arguments[0].querySelector('img').getBoundingClientRect().width", button)
    button.click()
    viewer = browser.find_element(By.ID, "viewer")
    image = viewer.find_element(By.TAG_NAME, "img")
    assert viewer.is_displayed() and image.rect["width"] > 2 * small
    assert image.get_property("src") == script(browser, "return arguments[0].querySelector('img').src", button)
    assert "predicted as" in viewer.text and "loss" in viewer.text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not viewer.is_displayed()
    button.send_keys(Keys.ENTER)
    assert viewer.is_displayed()
    viewer.find_element(By.TAG_NAME, "button").click()
    assert not viewer.is_displayed()
    assert not browser.get_log("browser")
