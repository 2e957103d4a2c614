"""The HTML page of a report, read and used in a real browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from synthetic_runs import kept_group, write_run

from sspo_cli.report import write_report
from sspo_cli.report.figures import Drawing, gates_figure
from sspo_cli.tracking.files import read_jsonl, write_jsonl_atomic

HOSTILE = (
    "</script><script>document.title='owned'</script><!-- <script> "
    "<img src=x onerror=\"document.title='owned'\"> \u2028 &lt;"
)
FLAGS = (
    "--headless",
    "--no-sandbox",  # the sandbox cannot work as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as chrome:
        chrome.get("about:blank")
        chrome.get_log("performance")  # discards the requests of the browser's own first page
        yield chrome


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a report on four runs.

    `a` is whole, `b` has hostile completions, `c10` has completions of an older version without tokens, and `d` has
    none.
    """
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "a", whole=True)
    hostile = {"completion": HOSTILE, "pieces": [HOSTILE[:30], HOSTILE[30:]], "weights": [1.0, 0.25]}
    write_run(runs / "b & <i>b", "objective.method=grpo", "optimizer.learning_rate=1e-5", steps=1, whole=True)
    row = kept_group(3, 1, HOSTILE)[0]
    write_jsonl_atomic(
        runs / "b & <i>b" / "completions.jsonl", [{**row, **hostile, "prompt": HOSTILE, "gold": HOSTILE}]
    )
    write_run(runs / "c10", "seed=10", last=7, state="failed", reason="<b>full</b> disk")
    old = [{name: row[name] for name in row if name not in ("pieces", "weights")} for row in kept_group(2, 2, "p2")]
    write_jsonl_atomic(runs / "c10" / "completions.jsonl", old)
    write_run(runs / "d", "seed=9")
    file = runs / "a" / "eval" / "arithmetic.jsonl"
    rows = read_jsonl(file)
    hostile = {"prompt": HOSTILE, "completion": HOSTILE, "gold": HOSTILE}
    write_jsonl_atomic(file, [row | hostile if row["id"] == "arithmetic-0" else row for row in rows])

    def figures(*_: object) -> Iterator[Drawing]:
        yield Drawing("gates", "Gates", "With `code` & <b>.", gates_figure())
        figure = Figure(figsize=(7, 2))
        figure.subplots().plot([0, 1], [0, 1])
        yield Drawing("line", "A line", "From 0 to 1.", figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sspo_cli.report.page.figures", figures)
        written = write_report([runs], tmp_path_factory.mktemp("report"))
    return written[0].as_uri()


@pytest.fixture(autouse=True)
def quiet(browser: webdriver.Chrome) -> Iterator[None]:
    """Check that a test leaves nothing on the console and requests local files only."""
    yield
    assert browser.get_log("browser") == []
    requests = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all('"url":"file:///' in request or '"url":"data:' in request for request in requests)


def open_at(browser: webdriver.Chrome, address: str, width: int = 1280, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}, still]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")  # otherwise a change of the fragment alone loads nothing
    browser.get(address)


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def run_names(browser: webdriver.Chrome) -> list[str]:
    return [Path(path).name for path in texts(browser, "#runs tbody td:first-child")]


def picked(browser: webdriver.Chrome) -> list[str]:
    picks = [Select(browser.find_element(By.ID, f"pick-{name}")) for name in ("run", "step", "problem")]
    return [pick.first_selected_option.text for pick in picks]


def backgrounds(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [
        token.value_of_css_property("background-color") for token in browser.find_elements(By.CSS_SELECTOR, selector)
    ]


def test_the_page_renders(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    assert browser.title == browser.find_element(By.TAG_NAME, "h1").text
    assert texts(browser, "h2") == ["Tables", "Figures", "Runs", "Completions", "Answers"]
    assert any("<b>full</b> disk" in sentence for sentence in texts(browser, "#missing li"))
    for drawing in browser.find_elements(By.CSS_SELECTOR, ".drawing svg"):
        assert drawing.size["width"] > 300
        assert drawing.size["height"] > 100
        assert drawing.value_of_css_property("max-width") != "none"
    assert texts(browser, ".drawing figcaption code") == ["code"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways(browser: webdriver.Chrome, page: str, width: int, scheme: str) -> None:
    open_at(browser, page, width, scheme)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    box = browser.find_element(By.CSS_SELECTOR, "#runs .scroll")  # a wide table scrolls within this box
    assert box.rect["x"] + box.rect["width"] <= width
    assert int(box.get_property("scrollWidth")) > box.rect["width"]
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ground == {"light": "rgba(252, 252, 250, 1)", "dark": "rgba(22, 24, 27, 1)"}[scheme]


def test_runs_sort_by_number_and_by_text_in_both_directions(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    assert sorted(run_names(browser)) == ["a", "b & <i>b", "c10", "d"]
    heads = {head.text.split("\n")[0]: head for head in browser.find_elements(By.CSS_SELECTOR, "#runs th")}
    heads["Seed"].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heads["Seed"].get_attribute("aria-sort") == "ascending"
    assert run_names(browser)[2:] == ["d", "c10"]  # 9 before 10
    heads["Seed"].find_element(By.TAG_NAME, "button").click()
    assert heads["Seed"].get_attribute("aria-sort") == "descending"
    assert run_names(browser)[:2] == ["c10", "d"]
    heads["Run"].find_element(By.TAG_NAME, "button").click()
    assert heads["Seed"].get_attribute("aria-sort") is None
    assert run_names(browser) == ["a", "b & <i>b", "c10", "d"]
    heads["Tokens"].find_element(By.TAG_NAME, "button").click()
    assert run_names(browser)[:2] == ["b & <i>b", "a"]  # 640 before 7,680
    for direction in ("ascending", "descending"):  # a missing number comes last in both directions
        heads["arithmetic"].find_element(By.TAG_NAME, "button").click()
        assert heads["arithmetic"].get_attribute("aria-sort") == direction
        assert run_names(browser)[-1] == "c10"


def test_runs_are_filtered_by_words_of_their_state_and_config(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    field = browser.find_element(By.ID, "runs-filter")
    for words, left in (
        ("failed", ["c10"]),
        ("GRPO clip", ["b & <i>b"]),
        ("finished sspo", ["a", "d"]),
        ("nowhere", []),
    ):
        field.clear()
        field.send_keys(words)
        assert sorted(run_names(browser)) == left
        assert texts(browser, "#runs-count") == [f"{len(left)} of 4 runs"]
    field.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert texts(browser, "#runs-count") == ["4 runs"]


def test_a_completion_is_picked_and_its_tokens_are_shaded(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    browser.find_element(By.LINK_TEXT, "a").click()
    assert picked(browser)[1:] == ["12", "p12"]
    Select(browser.find_element(By.ID, "pick-step")).select_by_visible_text("4")
    assert picked(browser)[1:] == ["4", "p4"]
    assert texts(browser, "#group .prompt pre") == ["What is 1 + 1?"]
    cards = browser.find_elements(By.CSS_SELECTOR, "#group .completion")
    assert len(cards) == 4
    assert "answer reward\n1" in cards[0].text.replace(" ", "\n").replace("\nreward", " reward")
    for said in ("advantage +0.87", "extracted 2", "tokens 8", "0.82 on average, 0.65 the lowest"):
        assert said in cards[0].text
    assert "advantage −0.87" in cards[1].text
    tokens = cards[0].find_elements(By.CSS_SELECTOR, ".token")
    assert [token.text.strip() for token in tokens][:3] == ["<think>", "1+", "1"]
    assert [token.get_attribute("title") for token in tokens][::7] == ["w = 1.00", "w = 0.65"]
    strength = [
        float(colour.rstrip(")").split(",")[-1]) for colour in backgrounds(browser, "#group .completion .token")[:8]
    ]
    assert strength[0] == 0
    assert strength == sorted(set(strength))  # a lower weight is darker
    assert strength[-1] == pytest.approx(0.75 * 0.35**0.5, abs=0.01)

    browser.find_element(By.ID, "step-before").send_keys(Keys.ENTER)
    assert picked(browser)[1:] == ["3", "p3"]
    assert set(backgrounds(browser, "#group .token")) == {"rgba(0, 0, 0, 0)"}
    assert "every weight 1" in texts(browser, "#group .completion")[0]
    assert "run=" in browser.current_url
    assert browser.current_url.endswith("&step=3&problem=p3")
    open_at(browser, browser.current_url.replace("step=3&problem=p3", "step=6&problem=p6"))
    assert picked(browser)[1:] == ["6", "p6"]
    assert browser.execute_script("return document.getElementById('completions').getBoundingClientRect().top") < 100


def test_the_legend_says_what_the_shades_mean(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    shown = dict(zip(texts(browser, "#legend .token"), backgrounds(browser, "#legend .token"), strict=True))
    assert shown["1.00"] == "rgba(0, 0, 0, 0)"
    assert shown["0.00"] == "rgba(213, 94, 0, 0.75)"
    assert shown["1.15"].startswith("rgba(0, 114, 178, ")


def test_what_a_policy_writes_is_text_and_nothing_else(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    pick = Select(browser.find_element(By.ID, "pick-run"))
    pick.select_by_value(next(o.get_attribute("value") for o in pick.options if "<i>" in o.text))
    written = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
    assert browser.execute_script(written, "#group pre") == [HOSTILE, HOSTILE]
    assert backgrounds(browser, "#group .token")[1] == "rgba(213, 94, 0, 0.65)"
    assert picked(browser)[2] == " ".join(HOSTILE.split())
    assert browser.title != "owned"
    assert browser.find_elements(By.CSS_SELECTOR, "img, #group script, i b, #group b b") == []
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 3
    browser.refresh()  # the address holds the hostile name
    assert browser.execute_script(written, "#group pre") == [HOSTILE, HOSTILE]


def test_older_runs_show_plain_text_and_runs_without_completions_say_so(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    pick = Select(browser.find_element(By.ID, "pick-run"))
    names = {Path(option.get_attribute("value")).name: option.get_attribute("value") for option in pick.options}
    pick.select_by_value(names["c10"])
    assert texts(browser, "#group .completion pre")[0] == "<think>1+1=2</think><answer>2</answer>"
    assert browser.find_elements(By.CSS_SELECTOR, "#group .token") == []
    assert "weights not recorded" in texts(browser, "#group .completion")[0]
    pick.select_by_value(names["d"])
    assert texts(browser, "#sampled") == ["This run recorded no completions."]
    assert texts(browser, "#group article") == []
    pick.select_by_value(names["a"])
    assert len(texts(browser, "#group article")) == 4


def test_the_answers_to_a_benchmark_are_browsed(browser: webdriver.Chrome, page: str) -> None:
    open_at(browser, page)
    picks = {
        name: Select(browser.find_element(By.ID, f"answers-{name}"))
        for name in ("source", "benchmark", "verdict", "problem")
    }
    assert [option.text.partition(" · ")[0] for option in picks["source"].options] == ["b & <i>b", "a"]
    picks["source"].select_by_visible_text("a · SSPO atanlog, seed 0")
    assert picks["benchmark"].first_selected_option.text == "arithmetic"
    assert texts(browser, "#answers-sampled") == [
        "Step 12: 120 of 200 answers to 200 problems are right. All answers are shown."
    ]
    written = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
    assert browser.execute_script(written, "#answered pre") == [HOSTILE, HOSTILE]
    assert browser.title != "owned"
    assert browser.find_elements(By.CSS_SELECTOR, "#answered img, #answered script") == []
    browser.find_element(By.ID, "answer-after").click()
    assert picks["problem"].first_selected_option.text == "arithmetic-1"
    assert texts(browser, "#answered pre") == ["What is 1 + 1?", "<answer>2</answer>"]
    assert texts(browser, "#answered .right") == ["verdict right"]
    picks["verdict"].select_by_value("wrong")
    assert len(picks["problem"].options) == 80
    assert texts(browser, "#answered .wrong") == ["verdict wrong"]
    picks["problem"].select_by_index(79)
    assert not browser.find_element(By.ID, "answer-after").is_enabled()
