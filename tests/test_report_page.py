"""The page of a report: self-contained, harmless, and usable, as tried in a headless browser."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium_axe_python import Axe
from test_report import FAILED, OK, scored, store
from test_report_tables import BINS

from lra.record import Record
from lra.report.grid import build_grid
from lra.report.pages import write_report
from lra.report.tables import THROUGHPUT, accuracy_table, throughput_table
from lra.report.web.curve import HEIGHT, WIDTH, draw
from lra.report.web.page import Report, whole_page
from lra.trajectory import write_trajectory

RECORDS = [
    scored(replace(OK, scale="paper"), 900),
    scored(replace(OK, scale="paper", seed=1, best_accuracy=0.6), 1000),
    replace(scored(replace(OK, scale="paper", attention="mra"), 800), test_by_length=BINS),
    scored(replace(OK, scale="paper", attention="linear", steps_per_second=9.0), 1800),
    replace(FAILED, scale="paper"),
]


def written(folder: Path, *records: Record) -> Path:
    """Write a report of records and return its page."""
    runs = store(folder / "runs", *records)
    for record in records[:2]:
        validations = [(step, step / 200 + record.seed / 10) for step in (50, 100)]
        there = runs.joinpath(record.scale, record.protocol, *record.place)
        write_trajectory(there, np.ones(100, np.float32), validations)
    scale, protocol = records[0].scale, records[0].protocol
    write_report(runs, folder / "out", scale, protocol)
    return folder / "out" / scale / protocol / "index.html"


class Parts(HTMLParser):
    """What a page is made of, as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a page."""
    return written(tmp_path_factory.mktemp("page"), *RECORDS)


def test_the_page_is_self_contained(file: Path) -> None:
    tags = Parts(file.read_text()).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names)) > 20
    for tag, attributes in tags:
        for key in ("src", "href", "xlink:href", "aria-labelledby", "aria-controls"):
            value = attributes.get(key)
            # The colours of the heat map are embedded as pixels.
            if value and not value.startswith("data:"):
                assert value.removeprefix("#") in names, (tag, value)
        assert not any(key.startswith("on") for key in attributes), tag
    [policy] = [a["content"] for _, a in tags if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert sum(tag == "svg" for tag, _ in tags) == 4 + 1


def test_the_page_has_the_columns_of_the_other_formats(file: Path) -> None:
    text = file.read_text()
    grid = build_grid(RECORDS)
    titles = re.findall(r'<th scope="col"><button type="button">(.*?)</button>', text)
    accuracy, speed = accuracy_table(grid)[0], throughput_table(grid)[0]
    assert titles[: len(accuracy) + len(speed)] == accuracy + speed
    assert speed[2:] == [column.title for column in THROUGHPUT]
    # The accuracy and the speed of each of four entries, and a row of accuracy by length.
    assert text.count('<a class="opens" href="#entry-') == 4 + 4 + 1


NAMES = ("<script>alert(1)</script>", "\"'><b>", "{{ 7 * 7 }}", "--><i>", "&lt;", "`<u>`")


@pytest.mark.parametrize("name", NAMES)
def test_names_given_by_a_user_are_only_text_in_the_page(name: str) -> None:
    named = replace(
        OK,
        task=name,
        attention=name,
        variant=name,
        data_description=name,
        departures=name,
        deviations=[name],
        attention_source=name,
        config=OK.config | {name: name},
    )
    records = [named, replace(FAILED, task=name, reason=name)]
    page, plain = (
        whole_page(Report(build_grid(each), name, name, [["method"], [name]], {}, validated), {})
        for each in (records, [OK, FAILED])
    )
    assert page.count(str(escape(name))) > 20 and ("<" not in name or name not in page)
    kinds = {tag for tag, _ in Parts(page).tags}
    assert kinds == {tag for tag, _ in Parts(plain).tags} and not kinds & {"b", "i", "u"}
    assert page.count("<script>") == 2


def validated(record: Record) -> dict[int, float]:
    return {50: 20.0, 100: 40.0 + record.seed}


def test_a_learning_curve_is_drawn_to_scale_and_described_in_words() -> None:
    drawing = draw({0: {100: 20.0, 200: 40.0}, 3: {100: 30.0}, 4: {}})
    assert drawing is not None and [seed for seed, _ in drawing.lines] == [0, 3]
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in drawing.lines[0][1].split())
    heights = {text: place for place, text in drawing.up}
    widths = {text: place for place, text in drawing.across}
    assert (y0, y1) == (heights["20"], heights["40"]) and y1 < y0 < HEIGHT
    assert x1 == widths["200"] < WIDTH and x0 == pytest.approx((widths["0"] + x1) / 2)
    assert drawing.summary[0] == (
        "Seed 0: 20.0 % at update 100, best 40.0 % at update 200, last 40.0 % at update 200."
    )
    assert draw({0: {}}) is None and draw({}) is None
    flat = draw({0: {0: 50.0}})
    assert flat is not None and len(flat.lines) == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Start a headless Chromium."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"no {' and no '.join(missing)} here: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found["chromium"])
    options.add_argument("--headless=new")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Chromium's sandbox refuses to run as root, as containers do.
        options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    driver = webdriver.Chrome(options, Service(found["chromedriver"]))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def page(file: Path) -> str:
    """Return the address of a page."""
    return file.as_uri()


def shown(browser: webdriver.Chrome, table: str, column: int = 0) -> list[str]:
    """Return the visible texts of a column, from top to bottom."""
    rows = browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr")
    return [row.find_elements(By.XPATH, "./*")[column].text for row in rows if row.is_displayed()]


def title(browser: webdriver.Chrome, table: str, column: int) -> Any:
    return browser.find_elements(By.CSS_SELECTOR, f"#{table} thead button")[column]


def test_a_title_sorts_by_its_column_and_rows_without_a_result_stay_last(
    browser: webdriver.Chrome, page: str
) -> None:
    browser.get(page)
    assert shown(browser, "accuracy") == ["softmax", "fourier", "linear", "mra"]
    for click, order, rows in (
        (lambda button: button.click(), "descending", ["linear", "softmax", "mra", "fourier"]),
        # With the keyboard as well.
        (
            lambda button: button.send_keys(Keys.ENTER),
            "ascending",
            ["mra", "softmax", "linear", "fourier"],
        ),
    ):
        click(title(browser, "accuracy", 1))
        browser.implicitly_wait(1)
        browser.find_element(By.CSS_SELECTOR, f"#accuracy th[aria-sort={order}]")
        browser.execute_async_script("setTimeout(arguments[0], 50)")
        assert shown(browser, "accuracy") == rows
    foot = browser.find_element(By.CSS_SELECTOR, "#accuracy tfoot").text
    assert foot.startswith("(majority class) 18.0")


def test_a_filter_keeps_the_rows_that_contain_its_words_and_counts_them(
    browser: webdriver.Chrome, page: str
) -> None:
    browser.get(page)
    field = browser.find_element(By.CSS_SELECTOR, "input[data-table=speed]")
    output = field.find_element(By.XPATH, "../../output")
    assert output.text == "4 rows"
    field.send_keys("ListOps li")
    assert shown(browser, "speed", 1) == ["softmax", "fourier", "linear", "mra"]
    field.send_keys("near")
    assert shown(browser, "speed", 1) == ["linear"] and output.text == "1 of 4 rows"
    assert len(shown(browser, "accuracy")) == 4
    # Sorting keeps the filter.
    title(browser, "speed", 2).click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert shown(browser, "speed", 1) == ["linear"]
    field.clear()
    field.send_keys("x", Keys.BACKSPACE)
    assert len(shown(browser, "speed")) == 4 and output.text == "4 rows"


def test_a_cell_opens_its_record_configuration_and_learning_curve_and_escape_closes_it(
    browser: webdriver.Chrome, page: str
) -> None:
    browser.get(page)
    link = browser.find_element(By.LINK_TEXT, "47.5 ± 3.5 (n=2)")
    link.send_keys(Keys.ENTER)
    dialog = browser.find_element(By.CSS_SELECTOR, "dialog[open]")
    assert dialog.find_element(By.TAG_NAME, "h2").text == "listops: softmax"
    assert "50.00 1,000 of 2,000" in dialog.text
    assert len(dialog.find_elements(By.TAG_NAME, "polyline")) == 2
    assert "Seed 1: 35.0 % at update 50, best 60.0 % at update 100" in dialog.text
    for part, words in (("Configuration", "train.steps: 100"), ("Record of seed 1", '"seed": 1')):
        assert words not in dialog.text
        dialog.find_element(By.XPATH, f".//summary[text()='{part}']").click()
        assert words in dialog.text
    webdriver.ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    browser.implicitly_wait(0)
    assert not browser.find_elements(By.CSS_SELECTOR, "dialog[open]")
    assert browser.switch_to.active_element == link
    browser.get(page)
    browser.get(f"{page}#entry-1-2")
    dialog = browser.find_element(By.CSS_SELECTOR, "dialog[open]")
    assert "loss nan in steps 1 to 20" in dialog.text
    # A dialog that the address opened closes too.
    dialog.find_element(By.CLASS_NAME, "close").click()
    assert not dialog.is_displayed()


def test_published_figures_are_shown_and_hidden_by_a_switch(
    browser: webdriver.Chrome, page: str
) -> None:
    browser.get(page)
    switch = browser.find_element(By.ID, "published-switch")
    heading = browser.find_element(By.ID, "beside-title")
    seen = [heading.is_displayed()]
    for _ in range(2):
        switch.send_keys(Keys.SPACE)
        seen.append(heading.is_displayed())
    assert seen == [True, False, True]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_is_accessible_in_light_and_dark_mode_and_on_a_phone(
    browser: webdriver.Chrome, page: str, scheme: str, width: int
) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    axe = Axe(browser)
    for place in ("", "#entry-1-1"):
        browser.get("about:blank")
        browser.get(page + place)
        # Tables scroll by themselves; the page does not.
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        axe.inject()
        found = axe.run()
        assert len(found["passes"]) > 20
        violations = {
            each["id"]: [n["target"] for n in each["nodes"]] for each in found["violations"]
        }
        assert not violations, violations
