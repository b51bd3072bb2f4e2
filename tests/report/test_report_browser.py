"""The report of the paper's size in a real browser: the page loads and filters quickly, and every part works.

It needs Chromium (`browsers`). With REPORT_SCREENSHOTS=docs/report the documentation's pictures are made
anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from browsers import wait_until as wait_until_in
from playwright.sync_api import Browser, Page
from report_cases import DOMAIN, HOSTILE, RUNS, STAGED, write_full_size

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.summary import summarize, to_table
from lora_retriever.cli import main
from lora_retriever.data.rows import Row
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.metrics import Scoring

pytestmark = pytest.mark.long

LIMIT = 5000  # milliseconds; a quiet machine takes a tenth, and a test must not fail on a busy machine
ROWS = 2395

# In the page: do something, wait for the next frame, and tell how long both took.
TIMED = """async ([id, value]) => {
  const start = performance.now();
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input", {bubbles: true}));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


wait_until = partial(wait_until_in, seconds=LIMIT / 1000)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_rows: list[Row]) -> Path:
    """The folder with the runs and their report."""
    folder = tmp_path_factory.mktemp("results") / "full-size"
    write_full_size(folder, sorted({word for row in tiny_rows for word in row.inputs.split()}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_retriever.resampling.DRAWS", 200)  # intervals of 2,000 draws would take ten seconds
        assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def answers(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of every run's file."""
    return {
        name: [json.loads(line) for line in (results / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in RUNS
    }


Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """Messages on the console, errors, and requests to the network, of any page."""
    return []


@pytest.fixture(scope="module")
def open_page(browser: Browser, results: Path, complaints: list[str]) -> Opened:
    """A function that opens the report at an address within the page, with options of the browser's page."""
    report = (results / "report.html").as_uri()

    def opened(address: str = "", **options: Any) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1440, "height": 900}} | options)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(report) or complaints.append(request.url))
        page.goto(report + address)
        wait_until(page, "performance.getEntriesByName('usable').length > 0")
        return page

    return opened


@pytest.fixture
def opened(open_page: Opened, browser: Browser, shared: Page, complaints: list[str]) -> Iterator[Opened]:
    """A function that opens new pages, for a test that needs its own pages. At the end, no page may have complaints."""
    yield open_page
    for context in browser.contexts:
        if context != shared.context:
            context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def shared(open_page: Opened) -> Page:
    return open_page()


@pytest.fixture
def page(shared: Page, complaints: list[str]) -> Iterator[Page]:
    """The page that tests share, without a filter and with the first row.

    At the end, the page may have no complaints.
    """
    shared.evaluate("document.activeElement.blur(); location.hash = '#reader?row=0'")
    wait_until(shared, f"document.getElementById('filter-count').textContent === '{ROWS} of {ROWS} rows'")
    wait_until(shared, "document.querySelector('#detail h3')?.textContent.startsWith('Row 0 ')")
    yield shared
    assert complaints == []


def first_column(page: Page, table: str = "#tables .panel[data-shown=true] tbody") -> list[str]:
    return page.locator(f"{table} th").all_inner_texts()


def count(page: Page) -> int:
    return int(page.inner_text("#filter-count").split()[0])


def address(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(page.url.partition("#reader?")[2]).items()}


def test_loading_and_filtering_take_well_under_a_second(opened: Opened, results: Path) -> None:
    page = opened()
    loading = page.evaluate("performance.getEntriesByName('usable')[0].startTime")
    filtering = {
        f"{control}={value}": page.evaluate(TIMED, [f"filter-{control}", value])
        for control, value in [
            ("text", "a"), ("text", "person"), ("text", ""), ("verdict", "wrong"), ("domain", "nli"), ("verdict", ""),
        ]
    }  # fmt: skip
    size = (results / "report.html").stat().st_size
    print(
        f"\n{size / 1e6:.1f} MB; usable after {loading:.0f} ms; filters: ", {k: round(v) for k, v in filtering.items()}
    )
    assert loading < LIMIT
    assert max(filtering.values()) < LIMIT


def test_the_leaderboard_explains_sorts_finds_and_chooses_runs(
    page: Page, opened: Opened, answers: dict[str, list[dict[str, Any]]]
) -> None:
    board = page.locator("#leaderboard tbody tr")
    cells = {line.locator("th").inner_text().strip(): line.locator("td").all_inner_texts() for line in board.all()}
    assert cells.keys() == RUNS.keys()
    means = [float(line[1].split(" ±")[0]) for line in cells.values()]
    assert means == sorted(means, reverse=True), "the best run is first"
    assert cells["mixture_ood"][0] == (
        "the average of the outputs of the best k adapters; the row's own adapter is masked"
    )
    assert cells["mixture@k=8"][0] == "the average of the outputs of the best k adapters; k = 8"
    assert (cells["base"][4], cells["mixture"][4]) == ("–", "0.4"), "seconds a row"
    assert cells["base"][5:] == ["–", "–"], "the base uses no adapter"
    first = sum(line["adapters"][:1] == [line["task"]] for line in answers["selection"]) / ROWS
    assert float(cells["selection"][5]) == pytest.approx(100 * first, abs=0.051)
    page.locator("#leaderboard").get_by_role("button", name="seconds a row").click()
    assert first_column(page, "#leaderboard tbody")[0].strip() in ("fusion@k=8", "mixture@k=8")
    page.locator("#leaderboard").get_by_role("button", name="mean over tasks").click()

    page.check("#filter-disagree")
    page.fill("#run-search", "MASKED")
    masked = [name for name in RUNS if name.endswith("_ood")]
    assert sorted(text.strip() for text in board.locator("th:visible").all_inner_texts()) == sorted(masked)
    page.get_by_role("button", name="Untick these").click()
    page.fill("#run-search", "")
    page.locator("#leaderboard").get_by_label("show base below").uncheck()
    ticked = [name for name in RUNS if name not in (*masked, "base")]
    heads = page.locator("#tables .panel[data-shown=true] thead th button").all_inner_texts()
    for shown in (heads[1:], page.locator("#detail .answers tbody th").all_inner_texts()):
        assert sorted(shown) == sorted(ticked)
    assert set(first_column(page, "#use-tables tbody")) == set(ticked)
    page.select_option("#filter-task", "cb")
    verdicts = [
        {answers[name][id]["predicted_answer"] == answers[name][id]["targets"] for name in ticked}
        for id in range(ROWS)
        if answers["base"][id]["task"] == "cb"
    ]
    assert count(page) == sum(len(found) > 1 for found in verdicts) < 45
    assert page.url.count("without=") == len(masked) + 1
    again = opened("#reader?" + page.url.partition("#reader?")[2])
    assert again.inner_text("#filter-count") == page.inner_text("#filter-count")
    assert again.locator("#leaderboard input:not(:checked)").count() == len(masked) + 1


def test_a_name_sorts_by_its_column_down_then_up_then_not(opened: Opened) -> None:
    page = opened()
    as_it_was = first_column(page)
    head = page.locator("#tables .panel[data-shown=true] th", has=page.get_by_role("button", name="best_selection"))
    place = head.evaluate("head => head.cellIndex")
    seen = {}
    for order in ("descending", "ascending", "none"):
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        cells = page.locator("#tables .panel[data-shown=true] tbody tr").evaluate_all(
            f"rows => rows.map(row => parseFloat(row.cells[{place}].textContent))"
        )
        seen[order] = cells
    assert seen["descending"] == sorted(seen["none"], reverse=True)
    assert seen["ascending"] == sorted(seen["none"])
    assert first_column(page) == as_it_was
    page.get_by_role("button", name="score").first.click()
    assert first_column(page) == sorted(as_it_was, key=str.lower, reverse=True)
    assert first_column(page, "#tables .panel[data-shown=true] tfoot") == ["mean over tasks", "normalized"]


def test_the_table_by_task_has_every_task(page: Page) -> None:
    page.get_by_role("button", name="by task").click()
    page.wait_for_selector("#tables .panel[data-shown=true] tbody th")
    assert {label.rpartition(" ")[0] for label in first_column(page)} == set(DOMAIN)
    assert page.locator("#tables .panel[data-shown=false]").is_hidden()
    page.get_by_role("button", name="by domain").click()


def test_cells_are_rounded_as_in_the_terminals_tables(page: Page, results: Path) -> None:
    table = to_table(summarize(read_runs(results), Scoring("paper")), intervals=False)
    rows = page.locator("#tables .panel[data-shown=true] tr").filter(has=page.locator("td"))
    found = {
        row.locator("th").first.inner_text(): [text.split(" ±")[0] for text in row.locator("td").all_inner_texts()[:-1]]
        for row in rows.all()
    }
    assert found == {label: [f"{cell.value:.1f}" for cell in cells] for label, cells in table.rows}  # type: ignore[union-attr]
    numbers = [at / 8 for at in range(-80, 81)] + [0.05, 0.15, 2.675, 99.95, 81.24999999999999, 81.25000000000001]
    assert page.evaluate("numbers => numbers.map(rounded)", numbers) == [f"{number:.1f}" for number in numbers]
    assert page.evaluate("numbers => numbers.map(signedNumber)", numbers) == [f"{number:+.1f}" for number in numbers]


def test_notes_that_tables_share_stand_once(page: Page) -> None:
    notes = page.locator("#tables > .note, #tables .panel .note").all_text_contents()
    assert sum(note.startswith("± half of the 95 %") for note in notes) == 1
    assert len(set(notes)) == len(notes)


def test_whiskers_lie_on_the_scale_of_their_row(page: Page) -> None:
    places = page.locator("#tables .panel[data-shown=true] .whisker").evaluate_all(
        "all => all.map(one => ['--low', '--at', '--high'].map(name => parseFloat(one.style.getPropertyValue(name))))"
    )
    assert len(places) == 14 * 12  # 12 scores of domains and 2 means, 12 runs
    assert all(-0.01 <= min(place) <= max(place) <= 100.01 and place[0] <= place[2] for place in places)


def test_the_heat_map_can_be_read_cell_by_cell(opened: Opened, answers: dict[str, list[dict[str, Any]]]) -> None:
    page = opened("#retrieval")
    page.locator("#retrieval-map td[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    tasks = list(DOMAIN)
    of_task = [line for line in answers["selection"] if line["task"] == tasks[0]]
    hits = sum(line["adapters"][0] == tasks[1] for line in of_task)
    wanted = f"{tasks[0]} → {tasks[1]}: {100 * hits / len(of_task):g} % ({hits} of {len(of_task)} rows)"
    assert page.inner_text("#retrieval .readout") == wanted
    page.select_option("#retrieval-run", label="selection_ood, fusion_ood, mixture_ood")
    diagonal = page.locator("#retrieval-map tbody tr").evaluate_all(
        "rows => rows.map((row, place) => [...row.querySelectorAll('td')][place].textContent)"
    )
    assert diagonal == [""] * len(DOMAIN)  # out of domain, no task gets its own adapter


def test_filters_find_the_rows_that_the_files_have(page: Page, answers: dict[str, list[dict[str, Any]]]) -> None:
    assert count(page) == ROWS
    page.select_option("#filter-task", "cb")
    assert count(page) == 45
    page.select_option("#filter-run", label="mixture")
    page.select_option("#filter-verdict", "right")
    of_task = {name: [line for line in answers[name] if line["task"] == "cb"] for name in RUNS}
    right = {name: [line["predicted_answer"] == line["targets"] for line in lines] for name, lines in of_task.items()}
    assert count(page) == sum(right["mixture"])
    page.select_option("#filter-verdict", "wrong")
    assert count(page) == 45 - sum(right["mixture"])
    page.select_option("#filter-verdict", "")
    page.select_option("#filter-retrieval", "among")
    assert count(page) == sum("cb" in line["adapters"][1:] for line in of_task["mixture"])
    page.select_option("#filter-retrieval", "")
    page.check("#filter-disagree")
    assert count(page) == sum(len(set(verdicts)) > 1 for verdicts in zip(*right.values(), strict=True))
    page.get_by_role("button", name="All rows").click()
    wait_until(page, f"document.getElementById('filter-count').textContent.startsWith('{ROWS} ')")
    page.select_option("#filter-domain", "nli")
    assert count(page) == 495


def test_search_looks_into_inputs_targets_and_answers(page: Page, answers: dict[str, list[dict[str, Any]]]) -> None:
    page.fill("#filter-text", "KARIN")

    def texts(id: int) -> list[str]:
        lines = [answers[name][id] for name in RUNS]
        return [lines[0]["inputs"], lines[0]["targets"], *(line["predicted_answer"] for line in lines)]

    assert count(page) == sum(any("karin" in text.lower() for text in texts(id)) for id in range(ROWS))
    assert page.locator("#detail mark").first.inner_text().lower() == "karin"
    page.fill("#filter-text", "nothing says this")
    assert count(page) == 0
    assert page.inner_text("#detail") == "No row passes these filters."


def test_a_row_shows_every_runs_answer_with_what_was_used(page: Page, answers: dict[str, list[dict[str, Any]]]) -> None:
    page.evaluate("location.hash = '#reader?row=1234'")
    wait_until(page, "document.querySelector('#detail h3')?.textContent.startsWith('Row 1234 ')")
    assert page.locator("#detail .boxed:not(.prompt)").all_text_contents() == [
        answers["base"][1234]["inputs"], answers["base"][1234]["targets"],
    ]  # fmt: skip
    page.locator("#detail summary").click()
    assert page.locator("#detail .prompt").text_content() == ALPACA.replace("{inputs}", answers["base"][1234]["inputs"])
    found = page.locator("#detail .found li").all_text_contents()  # hits with the row's own adapter, and masked
    for start, name in ((0, "selection"), (8, "mixture_ood")):
        kept = answers[name][1234]["retrieved"]
        wanted = zip(kept["adapters"], kept["scores"], kept["probabilities"], strict=True)
        assert [text.replace(" (own)", "") for text in found[start : start + 8]] == [
            f"{adapter} · {score:.3f} · p {share:.2f}" for adapter, score, share in wanted
        ]
    assert len(found) == 16
    lines = page.locator("#detail .answers tbody tr")
    assert sorted(lines.locator("th").all_inner_texts()) == sorted(RUNS)
    for name in RUNS:
        wanted = answers[name][1234]
        line = lines.filter(has=page.get_by_role("rowheader", name=name, exact=True))
        assert line.locator("td.text").text_content() == wanted["predicted_answer"]
        used = [
            f"{adapter}{' (own)' if adapter == wanted['task'] else ''} · {round(weight, 3):g}"
            for adapter, weight in zip(wanted["adapters"], wanted["weights"], strict=True)
        ]
        if name != "best_selection":
            shares = (wanted["retrieved"] or {"probabilities": []})["probabilities"]
            numbers = zip(used, wanted["scores"], shares, strict=False)
            used = [f"{text} · {score:.3f} · p {share:.2f}" for text, score, share in numbers]
        assert line.locator(".adapters div").all_text_contents() == used


def test_a_row_in_stages_shows_the_questions_and_the_answers_of_each(page: Page) -> None:
    name, row = STAGED
    page.evaluate(f"location.hash = '#reader?row={row}'")
    wait_until(page, f"document.querySelector('#detail h3')?.textContent.startsWith('Row {row} ')")
    page.get_by_text(f"Stages of {name}: 2 questions").click()
    lines = page.locator("#detail .stages tbody tr")
    assert [lines.nth(place).locator("th, td").all_text_contents() for place in (0, 1)] == [
        ["1", "which?", "wet 0.91 (threshold 0.50)", "cb · 1"],
        ["2", "wet | sky", HOSTILE, "rte · 0.25"],
    ]
    assert lines.first.is_visible()
    page.evaluate("location.hash = '#reader?row=1234'")
    wait_until(page, "document.querySelector('#detail h3')?.textContent.startsWith('Row 1234 ')")
    assert page.locator("#detail .stages").count() == 0


def test_markup_in_an_answer_stays_text(page: Page) -> None:
    assert page.locator("#detail .answers td.text").first.text_content() == HOSTILE
    assert page.title() == "full-size – LoraRetriever report"


def test_the_reader_works_by_keyboard(page: Page) -> None:
    selected = page.locator("#list [aria-selected=true]")
    for keys, place in [("jjj", 4), ("k", 3)]:
        for key in keys:
            page.keyboard.press(key)
        assert selected.get_attribute("aria-posinset") == str(place)
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    assert selected.get_attribute("aria-posinset") == "4"
    page.keyboard.press("End")
    assert selected.get_attribute("aria-posinset") == str(ROWS)
    assert selected.get_attribute("id") == page.get_attribute("#list", "aria-activedescendant")
    assert selected.is_visible()
    assert page.locator("#list .item").count() < 60  # the page has no element that is out of view
    page.keyboard.press("/")
    page.keyboard.type("jk")  # letters in the search are letters
    assert page.input_value("#filter-text") == "jk"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"


def test_the_address_brings_back_the_row_and_the_filters(opened: Opened) -> None:
    page = opened()
    assert "#" not in page.url  # a page that was just opened has no choice to keep
    page.select_option("#filter-domain", "nli")
    page.select_option("#filter-run", label="mixture@k=8")
    page.fill("#filter-text", "a & b=c #")
    page.fill("#filter-text", "wh")
    page.wait_for_function("location.hash.includes('text=wh')")  # the page filters when the typing has paused
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    state = address(page)
    assert state == {"domain": "nli", "run": "mixture@k=8", "text": "wh", "row": state["row"]}
    again = opened("#reader?" + page.url.partition("#reader?")[2])
    assert again.inner_text("#filter-count") == page.inner_text("#filter-count")
    assert again.inner_text("#detail h3") == page.inner_text("#detail h3")
    unknown = opened("#reader?run=gone&task=gone&row=99999")
    assert count(unknown) == ROWS


def test_dark_and_light(opened: Opened) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    white, black = light.evaluate(background), dark.evaluate(background)
    assert (white, black) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    light.click("#theme")
    dark.click("#theme")
    assert (light.evaluate(background), dark.evaluate(background)) == (black, white)


def test_it_prints_on_white_with_all_tables_and_without_the_reader(opened: Opened, tmp_path: Path) -> None:
    page = opened(color_scheme="dark")
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF-")
    assert 5 < pdf.count(b"/Type /Page\n") < 20
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#reader").is_hidden()
    assert page.locator("#tables table").nth(1).is_visible()
    assert page.locator("table.heat").count() == 2  # printing draws the maps that were not in view yet


def test_hidden_characters_are_shown_as_escapes(browser: Browser, tmp_path: Path) -> None:
    name = "nul \x00 bidi \u202egnp half \ud83d </script><b> \x1b[31m \u2028"
    shown = "nul \\x00 bidi \\u202egnp half \\ud83d </script><b> \\x1b[31m \\u2028"
    row = {"inputs": name, "targets": name, "task": name, "domain": name, "metric": "em", "predicted_answer": name}
    used = {"adapters": [name], "weights": [], "scores": [0.5]}  # a weight is missing, too
    for run in ("selection", "mixture@k=1", "mixture@k=2"):
        (tmp_path / f"{run}.jsonl").write_text(json.dumps({"id": 0, **row, **used}) + "\n")
    assert main(["report", str(tmp_path)]) == 0
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    wait_until(page, "performance.getEntriesByName('usable').length > 0")
    assert page.locator("#detail .boxed").all_text_contents() == [shown, shown]
    assert page.locator("#detail .adapters div").first.text_content() == f"{shown} (own) · ? · 0.500"
    page.locator("#retrieval-map td[tabindex='0']").focus()
    assert page.inner_text("#retrieval .readout") == f"{shown} → {shown}: 100 % (1 of 1 rows)"
    page.select_option("#filter-task", index=1)
    assert count(page) == 1
    assert errors == []


def test_a_report_without_adapters_opens_too(
    browser: Browser, answers: dict[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_retriever.resampling.DRAWS", 200)
    original = ("inputs", "targets", "metric", "domain", "task", "predicted_answer")  # as in the original's files
    for name in ("base", "selection"):
        lines = [{key: line[key] for key in original} for line in answers[name][::25]]
        lines[1]["predicted_answer"] = "\n"
        (tmp_path / f"{name}.json").write_text(json.dumps(lines), encoding="utf-8")
    assert main(["report", str(tmp_path), "--versus", "base"]) == 0
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    wait_until(page, "performance.getEntriesByName('usable').length > 0")
    page.get_by_role("button", name="against base").click()
    page.wait_for_selector("#tables .panel[data-shown=true] .whisker.zero")
    for place in page.locator("#tables .panel[data-shown=true] .whisker").evaluate_all(
        "all => all.map(one => ['--zero', '--at'].map(name => parseFloat(one.style.getPropertyValue(name))))"
    ):
        assert 0 <= min(place) <= max(place) <= 100, "every line has room for the difference and for zero"
    assert page.locator("nav a").all_inner_texts() == ["Runs", "Scores", "Use", "Rows", "How it was made"]
    page.keyboard.press("j")
    assert page.locator("#detail .answers tbody tr").count() == 2
    assert page.locator("#detail .answers td.text").all_text_contents() == ["\n(empty)"] * 2
    assert page.locator("#detail .adapters").all_text_contents()[-2:] == ["unknown", "unknown"]
    used, right, _ = page.locator("#use-tables table").all()
    for row in used.locator("tbody tr").all():
        assert row.locator("td").all_inner_texts() == ["unknown"] * 6
    assert right.locator("thead th").all_inner_texts() == ["run", "not recorded"]
    for retrieval, shown in (("unknown", 96), ("none", 0), ("absent", 0)):
        page.select_option("#filter-retrieval", retrieval)
        assert count(page) == shown
    if "REPORT_SCREENSHOTS" in os.environ:
        page.locator("#use").screenshot(path=Path(os.environ["REPORT_SCREENSHOTS"]) / "unknown.png")
    assert errors == []


def test_groups_of_rows_stand_side_by_side_on_the_leaderboard(
    browser: Browser, answers: dict[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_retriever.resampling.DRAWS", 200)
    exact = [id for id, line in enumerate(answers["base"]) if line["metric"] == "em" and line["task"] != "cb"]
    kept = exact[::5]  # ten rows of each task
    wording = {id: "unseen" if place % 3 else "seen" for place, id in enumerate(kept)}
    del wording[kept[0]]  # a row without the field
    for name in ("base", "selection", "mixture"):
        lines = [
            {**answers[name][id], **({"instruction": wording[id]} if id in wording else {})}
            for id in kept
            if name != "base" or wording.get(id) == "seen"  # a run without a row of one value
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert main(["report", str(tmp_path), "--by", "instruction"]) == 0
    page, errors = browser.new_page(viewport={"width": 1440, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    wait_until(page, "performance.getEntriesByName('usable').length > 0")
    heads = [head.rstrip("↕↓↑\xa0") for head in page.locator("#leaderboard thead th").all_inner_texts()]
    places = {value: heads.index(f"mean, instruction: {value}") - 1 for value in ("seen", "unseen")}
    assert heads.index("mean over tasks") in places.values(), "the groups stand beside the mean"
    lines = {line.locator("th").inner_text().strip(): line for line in page.locator("#leaderboard tbody tr").all()}
    for name in ("selection", "mixture"):
        for value, place in places.items():
            right: dict[str, list[bool]] = {}
            for id, its in wording.items():
                line = answers[name][id]
                if its == value:
                    right.setdefault(line["task"], []).append(line["predicted_answer"] == line["targets"])
            # Paper scoring rounds the score of a task to one decimal.
            shares = [round(100 * sum(of_task) / len(of_task), 1) for of_task in right.values()]
            mean = sum(shares) / len(shares)
            cell = lines[name].locator("td").nth(place)
            shown, _, half = cell.inner_text().partition(" ±")
            assert float(shown) == pytest.approx(mean, abs=0.051)
            assert 0 < float(half) < 20
            assert cell.locator(".whisker").count() == 1
    assert [lines["base"].locator("td").nth(place).inner_text() for place in places.values()] == ["–", "–"]
    notes = page.locator("#runs .note").all_inner_texts()
    of_value = {value: list(wording.values()).count(value) for value in ("unseen", "seen")}
    assert notes[0] == "By instruction: " + ", ".join(f"{value} {rows} rows" for value, rows in of_value.items()) + "."
    assert notes[1] == f"Rows without instruction, left out of the groups: {kept[0]}."
    assert notes[2] == "base has no row of unseen, so it is left out of the groups."
    page.select_option("#filter-group", label="unseen")
    assert count(page) == of_value["unseen"]
    page.keyboard.press("j")
    again = browser.new_page()
    again.goto(page.url)
    wait_until(again, f"document.getElementById('filter-count').textContent.startsWith('{of_value['unseen']} ')")
    if "REPORT_SCREENSHOTS" in os.environ:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=tmp_path / "groups.png")
        print(tmp_path / "groups.png")
    assert errors == []


@pytest.mark.skipif("REPORT_SCREENSHOTS" not in os.environ, reason="the documentation's pictures were not asked for")
def test_the_documentations_pictures(opened: Opened) -> None:
    folder = Path(os.environ["REPORT_SCREENSHOTS"])

    def picture(name: str, scheme: str, section: str, act: Callable[[Page], None] = lambda page: None) -> None:
        page = opened(f"#{section}", color_scheme=scheme)
        act(page)
        page.wait_for_timeout(500)
        page.screenshot(path=folder / f"{name}.png")

    def read(page: Page) -> None:
        page.select_option("#filter-run", label="mixture")
        page.select_option("#filter-verdict", "wrong")
        page.fill("#filter-text", "person")
        page.keyboard.press("Escape")
        page.evaluate("document.getElementById('reader').scrollIntoView()")

    picture("runs-light", "light", "runs")
    picture("scores-light", "light", "scores")
    picture("retrieval-light", "light", "retrieval")
    picture("similarity-dark", "dark", "similarity")
    picture("use-light", "light", "use")
    picture("reader-light", "light", "reader", read)
    picture("reader-dark", "dark", "reader", read)
