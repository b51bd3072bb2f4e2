"""The report: its figures against loops over the files, and a page that shows any text as plain text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.summary import summarize
from lora_retriever.cli import main
from lora_retriever.metrics import Scoring
from lora_retriever.metrics.paper import rouge
from lora_retriever.report import make_content, plots, render
from lora_retriever.report.content import ReportContent
from lora_retriever.report.matrices import Label, Matrix
from lora_retriever.report.plots import save_plots
from lora_retriever.retrieval.index import AdapterIndex

ROWS = [  # task, domain, metric, targets
    ("sky", "weather", "em", "blue"),
    ("sky", "weather", "em", "grey"),
    ("rain", "weather", "em", "yes"),
    ("rain", "weather", "em", "no"),
    ("song", "music", "rouge", "la la li lo"),
    ("song", "music", "rouge", "do re mi"),
]
FIRST = ["sky", "rain", "rain", "song", "song", "extra"]  # `extra` is the adapter of no task
SECOND = ["rain", "sky", "song", "sky", "sky", "song"]
ANSWERS = {
    "base": ["", "green", "yes", "?", "la", "fa"],
    "selection": ["blue", "grey", "yes", "yes", "la la li lo", "do do"],
    "mixture": ["blue", "blue", "yes", "no", "la la", "do re mi"],
    "mixture@k=1": ["Blue.", "blue", "no", "yes", "la la", "do re mi"],
    "mixture@k=10": ["blue", "grey", "no", "no", "lo", "do"],
}
USED = {"base": 0, "selection": 1, "mixture": 2, "mixture@k=1": 1, "mixture@k=10": 2}


def line(name: str, id: int) -> dict[str, Any]:
    task, domain, metric, targets = ROWS[id]
    adapters = [FIRST[id], SECOND[id]][: USED[name]]
    return {
        "id": id, "inputs": f"input {id}", "targets": targets, "task": task, "domain": domain, "metric": metric,
        "predicted_answer": ANSWERS[name][id], "adapters": adapters, "weights": [1 / len(adapters) for _ in adapters],
        "scores": [0.75, 0.5][: len(adapters)],
    }  # fmt: skip


def write(folder: Path, name: str, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Five runs of six rows. The record of plain `mixture` makes this run a part of the sweep over k."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ANSWERS:
        write(folder, name, [line(name, id) for id in range(len(ROWS))])
    meta = {"configuration": {"k": 2, "adapters": {"sky": "1"}}, "configuration_hash": "c0ffee" * 10, "note": "A note."}
    (folder / "mixture.meta.json").write_text(json.dumps(meta))
    return folder


def content_of(folder: Path, index: AdapterIndex | None = None) -> ReportContent:
    return make_content(summarize(read_runs(folder), Scoring("paper")), index=index)


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts, by the rules of a browser's parser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._tag = tag

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._tag, []).append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_retrieval_map_counts_first_adapters(results: Path) -> None:
    found, *others = content_of(results).retrieval
    assert others == []
    assert found.title == "selection, mixture, mixture@k=1, mixture@k=10"  # all have the same first adapters
    assert [(label.name, label.domain) for label in found.rows] == [
        ("sky", "weather"), ("rain", "weather"), ("song", "music"),
    ]  # fmt: skip
    assert [label.name for label in found.columns] == ["sky", "rain", "song", "extra"]
    assert found.counts == [2, 2, 2]
    for row, values in zip(found.rows, found.values, strict=True):
        for column, value in zip(found.columns, values, strict=True):
            hits = sum(ROWS[id][0] == row.name and FIRST[id] == column.name for id in range(6))
            assert value == hits / 2


@pytest.mark.slow
def test_runs_that_retrieved_otherwise_have_a_map_of_their_own(results: Path) -> None:
    swapped = [line("selection", id) | {"adapters": [SECOND[id]]} for id in range(6)]
    write(results, "selection_ood", swapped)
    assert [found.title for found in content_of(results).retrieval][1:] == ["selection_ood"]


def cosine(left: list[float], right: list[float]) -> float:
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


@pytest.mark.slow
def test_similarity_is_the_cosine_of_mean_embeddings_in_the_domains_order(results: Path) -> None:
    dice = np.random.default_rng(0)
    names = ["extra", "song", "rain", "sky"]
    samples = {name: dice.normal(size=(3, 5)) for name in names}
    index = AdapterIndex.from_embeddings(names, [samples[name] for name in names])
    found = content_of(results, index).similarity
    assert found
    assert [label.name for label in found.rows] == ["sky", "rain", "song", "extra"]
    means = {name: [sum(column) / 3 for column in zip(*samples[name].tolist(), strict=True)] for name in names}
    for row, values in zip(found.rows, found.values, strict=True):
        for column, value in zip(found.columns, values, strict=True):
            assert value == pytest.approx(cosine(means[row.name], means[column.name]), abs=1e-4)


@pytest.mark.slow
def test_without_an_index_tasks_are_compared_by_what_was_retrieved(results: Path) -> None:
    found = content_of(results).similarity
    assert found
    assert "shares in which mixture retrieved" in found.title  # the first run of those with most adapters a row
    assert "--index" in found.title
    counts = {task: Counter[str]() for task in ("sky", "rain", "song")}
    for id, (task, *_) in enumerate(ROWS):
        counts[task].update([FIRST[id], SECOND[id]])
    for row, values in zip(found.rows, found.values, strict=True):
        for column, value in zip(found.columns, values, strict=True):
            vectors = [[counts[name][adapter] for adapter in ("sky", "rain", "song", "extra")] for name in
                       (row.name, column.name)]  # fmt: skip
            assert value == pytest.approx(cosine(*vectors), abs=1e-4)


@pytest.mark.slow
def test_a_sweep_has_its_values_in_order_and_the_plain_run_where_it_belongs(results: Path) -> None:
    (sweep,) = content_of(results).sweeps
    assert (sweep.setting, sweep.numeric, sweep.values) == ("k", True, ["1", "2", "10"])
    (swept,) = sweep.lines
    assert swept.name == "mixture"
    assert [(point.value, point.run) for point in swept.points] == [
        ("1", "mixture@k=1"), ("2", "mixture"), ("10", "mixture@k=10"),
    ]  # fmt: skip
    assert all(point.low <= point.mean <= point.high for point in swept.points)


@pytest.mark.slow
def test_other_swept_settings_are_kept_apart(results: Path) -> None:
    for name in ("mixture", "mixture@k=1", "mixture@k=10"):
        (results / f"{name}.jsonl").rename(results / f"{name}.old")
    (results / "mixture.meta.json").unlink()
    lines = [line("mixture", id) for id in range(6)]
    for name in ("k=1,scorer=cosine", "k=2,scorer=cosine", "k=1,scorer=nearest"):
        write(results, f"mixture@{name}", lines)
    sweeps = content_of(results).sweeps
    assert [(sweep.setting, sweep.numeric, [line.name for line in sweep.lines]) for sweep in sweeps] == [
        ("k", True, ["mixture@scorer=cosine"]),
        ("scorer", False, ["mixture@k=1"]),
    ]


@pytest.mark.slow
def test_situations_divide_a_runs_rows_by_how_retrieval_ended(results: Path) -> None:
    uses = {use.run: use for use in content_of(results).use}
    mixture = uses["mixture"]
    assert mixture.adapters_per_row == 2
    assert mixture.distinct == 4
    assert mixture.own_first == pytest.approx(100 * sum(FIRST[id] == ROWS[id][0] for id in range(6)) / 6)
    assert mixture.own_used == pytest.approx(100 * sum(ROWS[id][0] in (FIRST[id], SECOND[id]) for id in range(6)) / 6)
    assert mixture.domain_first == pytest.approx(100 * 4 / 6)
    assert dict(mixture.most_used)["sky"] == pytest.approx(100 * 4 / 6)
    by_name = {situation.name: situation for situation in mixture.situations}
    assert {name: (found.exact, found.others) for name, found in by_name.items()} == {
        "own adapter first": (2, 1),  # rows 0, 2 and 4
        "own adapter not first": (1, 1),  # rows 1 and 5
        "own absent, its domain first": (0, 0),
        "own absent, other domain first": (1, 0),  # row 3
        "no adapter": (0, 0),
        "not recorded": (0, 0),
    }
    assert by_name["own adapter first"].right == 100
    assert by_name["own adapter not first"].right == 0
    assert by_name["own adapter first"].score == pytest.approx(100 * rouge("la la li lo", "la la")["rouge-1"])
    assert by_name["own absent, its domain first"].right is None
    assert {situation.name for situation in uses["base"].situations if situation.exact} == {"no adapter"}


@pytest.mark.slow
def test_adapters_that_no_file_names_are_unknown(results: Path) -> None:
    lines = [line("mixture", id) for id in range(6)]
    write(results, "mixture", [{key: line[key] for key in line if key != "adapters"} for line in lines])
    write(results, "selection", [line("selection", 0), *({**line, "adapters": []} for line in lines[1:3]), *(
        {key: line[key] for key in line if key not in ("adapters", "weights", "scores")} for line in lines[3:]
    )])  # fmt: skip
    content = content_of(results)
    uses = {use.run: use for use in content.use}
    assert vars(uses["mixture"]) | {"situations": None} == {
        "run": "mixture", "adapters_per_row": None, "distinct": None, "most_used": None, "own_first": None,
        "own_used": None, "domain_first": None, "situations": None,
    }  # fmt: skip
    counts = {found.name: found.exact + found.others for found in uses["mixture"].situations}
    assert counts == dict.fromkeys(counts, 0) | {"not recorded": 6}
    partly = uses["selection"]  # recorded: row 0 with its own adapter, rows 1 and 2 without any adapter
    assert (partly.adapters_per_row, partly.distinct) == (pytest.approx(1 / 3), 1)
    assert partly.own_first == partly.own_used == partly.domain_first == pytest.approx(100 / 3)
    assert partly.most_used == [("sky", pytest.approx(100 / 3))]
    used = {run.name: rows.used for run, rows in zip(content.runs, content.rows.runs, strict=True)}
    assert used["mixture"] == [-2] * 6
    assert used["selection"][3:] == [-2] * 3 and min(used["selection"][:3]) >= 0


@pytest.mark.slow
def test_the_interval_of_a_share_is_wilsons(results: Path) -> None:
    base = {use.run: use for use in content_of(results).use}["base"].situations[-2]
    assert base.name == "no adapter"
    n, share, z = 4, 1 / 4, 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert base.right == 25
    assert (base.low, base.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-3)


@pytest.mark.slow
def test_the_page_holds_every_line_of_every_file(results: Path) -> None:
    text = render(content_of(results), "title")
    data = Page(text).data
    rows, names = data["rows"], [run["name"] for run in data["runs"]]
    assert sorted(names) == sorted(ANSWERS)
    for name, packed in zip(names, rows["runs"], strict=True):
        for index in range(len(ROWS)):
            wanted = line(name, rows["ids"][index])
            adapters, weights, scores = rows["used"][packed["used"][index]]
            task = rows["tasks"][rows["task"][index]]
            assert {
                "id": rows["ids"][index],
                "inputs": rows["inputs"][index],
                "targets": rows["targets"][index],
                "task": task["name"],
                "domain": task["domain"],
                "metric": task["metric"],
                "predicted_answer": rows["texts"][packed["answers"][index]],
                "adapters": [rows["adapters"][adapter] for adapter in adapters],
                "weights": weights,
                "scores": scores,
            } == wanted
            if wanted["metric"] == "em":
                right = wanted["predicted_answer"].lower().replace(".", "") == wanted["targets"]
                assert packed["scores"][index] == 100 * right
            elif wanted["predicted_answer"]:
                expected = 100 * rouge(wanted["targets"], wanted["predicted_answer"])["rouge-1"]
                assert packed["scores"][index] == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_the_questions_of_every_stage_are_there_with_their_answers(results: Path) -> None:
    """A row in two stages, the first of which detects labels. A field `stages` of other programs is not read."""
    lines = [line("mixture", id) for id in range(len(ROWS))]
    detected = {"labels": ["wet"], "probabilities": {"wet": 0.912, "dry": 0.25}, "threshold": 0.5}
    asked = {"adapters": ["sky", "rain"], "weights": [0.5, 0.5]}
    lines[1]["stages"] = [
        [{"inputs": "which?", **asked, **detected}],
        [{"inputs": "wet | sky", **asked, "answer": "a"}, {"inputs": "dry | sky", "answer": ""}],
    ]
    lines[2]["stages"] = "three"
    lines[3]["stages"] = [[{"inputs": "any?", **asked, **detected, "labels": []}]]
    write(results, "mixture", lines)
    content = content_of(results)
    rows = content.rows
    packed = {run.name: rows for run, rows in zip(content.runs, rows.runs, strict=True)}
    assert packed["base"].stages == []

    def shown(id: int) -> Any:
        at = rows.ids.index(id)
        return [
            [(rows.texts[q], rows.texts[a], [rows.adapters[name] for name in rows.used[u][0]]) for q, a, u in stage]
            for stage in packed["mixture"].stages[at] or ()
        ]

    both = ["sky", "rain"]
    assert shown(1) == [
        [("which?", "wet 0.91 (threshold 0.50)", both)],
        [("wet | sky", "a", both), ("dry | sky", "", [])],
    ]
    assert shown(3) == [[("any?", "no label (threshold 0.50)", both)]]
    assert shown(0) == shown(2) == []


@pytest.mark.slow
def test_rows_that_a_run_lacks_are_marked(results: Path) -> None:
    write(results, "base", [line("base", id) for id in (0, 3, 5)])
    content = content_of(results)
    rows = content.rows
    assert content.runs[0].interval is None  # a task of one row has nothing to draw from
    assert [answer == -1 for answer in rows.runs[0].answers] == [False, True, True, False, True, False]
    assert rows.runs[0].scores[1] is None


def test_runs_without_adapters_have_a_report_without_retrieval(results: Path) -> None:
    for path in results.iterdir():
        path.unlink()
    original = ("inputs", "targets", "metric", "domain", "task", "predicted_answer")  # what its files hold
    lines = [{key: value for key, value in line("mixture", id).items() if key in original} for id in range(6)]
    (results / "mixture.json").write_text(json.dumps(lines))
    content = content_of(results)
    assert (content.retrieval, content.similarity, content.sweeps) == ([], None, [])
    page = render(content, "title")
    assert 'id="retrieval"' not in page
    assert "No record" in page


HOSTILE = ["</script><script>alert(1)</script>", "<!--<script>", "<img src=x onerror=alert(1)>", "]]>&amp;\u2028\x00"]


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(results: Path, text: str) -> None:
    plain = Page(render(content_of(results), "title")).tags
    lines = [line("mixture", id) for id in range(6)]
    fields = {"predicted_answer": text, "adapters": [text], "weights": [1.0], "scores": [1.0]}
    write(results, "mixture", [lines[0] | fields, *lines[1:]])
    meta = {"note": text, "configuration": {"k": text}, "profile": text}
    (results / "mixture.meta.json").write_text(json.dumps(meta))
    page = Page(render(content_of(results), text))
    assert text in page.data["rows"]["texts"]
    added = page.tags - plain
    assert set(added) <= {"dt", "dd"}


NASTY = [
    "nul \x00 bell \x07 escape \x1b[31m",
    "bidi \u202egnp.exe\u2066",
    "half \ud83d",
    "other half \udc4d",
    "line \u2028 paragraph \u2029",
    "\ufeffbyte order mark",
    "two\nlines\r\nhere",
    "$a_b$ and $\\frac$",
    "\\input{/etc/passwd} %s {0} {{ 7*7 }}",
    "<b>&amp;\"'`]]>",
    "_begins with an underscore",
    "é € 👍 \u00a0",
    "x" * 5000,
    "费用",
    "\uffff\ufffe\x85",
]
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff\uffff\ufffe]")


def escaped(text: str) -> str:
    """The text, with Python's escape in place of every hidden character."""
    return "".join(ascii(character)[1:-1] if HIDDEN.match(character) else character for character in text)


def write_named(folder: Path, *names: str) -> None:
    """Runs in which tasks, domains, adapters, answers and the values of a record have these names."""
    for run in ANSWERS:
        lines = []
        for name in names:
            texts = dict.fromkeys(("task", "domain", "inputs", "targets", "predicted_answer"), name)
            for like in (line(run, 0), line(run, 1)):
                lines.append(like | texts | {"adapters": [name] * len(like["adapters"])})
        lines += [line(run, id) for id in range(2, 6)]
        write(folder, run, [one | {"id": id} for id, one in enumerate(lines)])
    name = names[0]
    configuration = {"k": name, name: name}
    meta = {"note": name, "profile": name, "versions": {name: name}, "hardware": name, "configuration": configuration}
    (folder / "mixture.meta.json").write_text(json.dumps(meta))


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_any_name_gives_a_page_that_shows_it_without_hidden_characters(results: Path, name: str) -> None:
    write_named(results, name)
    text = render(content_of(results), name).encode("utf-8").decode("utf-8")
    page = Page(text)
    assert page.data["rows"]["tasks"][0]["name"] == name, "the data are the file's, unchanged"
    assert page.tags["script"] == 2
    assert page.texts["h1"] == [escaped(name)]
    assert escaped(name) in page.texts["dd"]
    assert not any(HIDDEN.search(part) for tag, parts in page.texts.items() if tag != "script" for part in parts)


@pytest.mark.long
def test_any_name_is_drawn_as_plain_text(
    results: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_named(results, *NASTY)
    save_plots(content_of(results), tmp_path / "plots")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        f"{plot}.{ending}" for plot in ("means", "retrieval", "similarity", "sweep-k") for ending in ("png", "svg")
    ]
    drawn = "".join(ElementTree.parse(tmp_path / "plots" / "retrieval.svg").getroot().itertext())
    for name in NASTY:
        shown = escaped(re.sub("[\n\r\x85\u2028\u2029]+", " ", name))
        assert (shown if len(shown) <= 60 else shown[:59] + "…") in drawn
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)] == []
    assert len(capsys.readouterr().err.splitlines()) <= 1


@pytest.mark.slow
def test_characters_without_a_font_are_named_in_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dejavu = [font for font in plots.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(plots.fontManager, "ttflist", dejavu)
    write_named(results, "费用 and cost")
    save_plots(content_of(results), tmp_path / "plots")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "lora-retriever: plots: no installed font has 用 (U+7528), 费 (U+8D39); boxes are drawn instead"
    )


@pytest.mark.slow
def test_characters_that_another_font_has_are_drawn_in_it(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """matplotlib's own font STIX has 𝔄 (U+1D504), and DejaVu Sans may lack it; no character may be missing."""
    write_named(results, "𝔄 \u2a0c \u29eb")
    save_plots(content_of(results), tmp_path / "plots")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_users_matplotlib_settings_make_no_latex_of_names(results: Path, tmp_path: Path) -> None:
    write_named(results, "$a_b$ and $\\frac$")
    with matplotlib.rc_context({"text.usetex": True, "text.parse_math": True}):
        save_plots(content_of(results), tmp_path / "plots")
    drawn = "".join(ElementTree.parse(tmp_path / "plots" / "retrieval.svg").getroot().itertext())
    assert "$a_b$ and $\\frac$" in drawn


@pytest.mark.slow
def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(results: Path, tmp_path: Path) -> None:
    for name in ("mixture", "mixture@k=1", "mixture@k=10"):
        (results / f"{name}.jsonl").rename(results / f"_{name}.jsonl")
    save_plots(content_of(results), tmp_path / "plots")
    drawn = list(ElementTree.parse(tmp_path / "plots" / "sweep-k.svg").getroot().itertext())
    assert "_mixture" in [text.strip() for text in drawn]


@pytest.mark.slow
def test_a_large_matrix_is_drawn_at_a_resolution_that_memory_can_hold(tmp_path: Path) -> None:
    columns = [Label(f"adapter {n}", "d") for n in range(700)]
    rows = [Label("task", "d")]
    figure = plots.heat_map(Matrix("m", rows, columns, [[0.5] * 700], []), "cosine")
    assert plots.resolution(figure) * max(figure.get_size_inches()) <= 10_000
    assert plots.resolution(plots.heat_map(Matrix("m", rows, columns[:48], [[0.5] * 48], []), "cosine")) == 200


@pytest.mark.slow
@pytest.mark.parametrize("meta", [{"versions": "1.0"}, {"versions": [1]}, {"configuration": {"adapters": 3}}])
def test_a_record_of_another_shape_is_shown_as_it_is(results: Path, meta: dict[str, Any]) -> None:
    (results / "mixture.meta.json").write_text(json.dumps(meta))
    assert "mixture" in render(content_of(results), "title")


@pytest.mark.slow
def test_half_a_character_is_written_as_an_escape(results: Path) -> None:
    lines = [line("base", id) for id in range(6)]
    write(results, "base", [lines[0] | {"predicted_answer": "half \ud83d"}, *lines[1:]])
    text = render(content_of(results), "title")
    assert r'"half \ud83d"' in text.encode("utf-8").decode("utf-8")


@pytest.mark.slow
def test_numbers_that_json_lacks_are_left_empty(results: Path) -> None:
    runs = read_runs(results)
    (mixture,) = [run for run in runs if run.name == "mixture"]
    mixture.rows[0] = mixture.rows[0].model_copy(update={"scores": (math.nan, math.inf)})
    data = Page(render(make_content(summarize(runs, Scoring("paper"))), "title")).data
    number = [run["name"] for run in data["runs"]].index("mixture")
    assert data["rows"]["used"][data["rows"]["runs"][number]["used"][0]][2] == [None, None]


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_runs_its_own_script_alone(results: Path) -> None:
    text = render(content_of(results), "title")
    assert set(re.findall(r"\w+://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    page = Page(text)
    for kind, source in (("style", "".join(page.texts["style"])), ("script", page.texts["script"][1])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


@pytest.mark.slow
def test_the_same_results_give_the_same_files(results: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        assert (
            main(["report", str(results), "--output", str(tmp_path / f"{name}.html"), "--plots", str(tmp_path / name)])
            == 0
        )
    assert (tmp_path / "once.html").read_bytes() == (tmp_path / "twice.html").read_bytes()
    for plot in (tmp_path / "once").iterdir():
        assert plot.read_bytes() == (tmp_path / "twice" / plot.name).read_bytes()


@pytest.mark.slow
def test_every_plot_is_a_png_and_an_svg(results: Path, tmp_path: Path) -> None:
    save_plots(content_of(results), tmp_path / "plots")
    written = list((tmp_path / "plots").iterdir())
    assert {path.name for path in written} == {
        f"{name}.{ending}" for name in ("means", "retrieval", "similarity", "sweep-k") for ending in ("png", "svg")
    }
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    labels = "".join(ElementTree.parse(tmp_path / "plots" / "retrieval.svg").getroot().itertext())
    assert all(name in labels for name in ("sky", "rain", "song", "extra", "weather", "music"))


@pytest.mark.slow
def test_report_writes_into_the_results_folder_and_the_folder_stays_readable(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results)]) == 0
    assert capsys.readouterr().out == f"{results / 'report.html'}\n"
    written = (results / "report.html").read_text(encoding="utf-8")
    assert main(["summarize", str(results), "--format", "html"]) == 0
    assert capsys.readouterr().out == written
    assert "A note." in Page(written).data["notes"]
    assert written.count('"A note."') == 1, "tables that share a note have it once"
    assert "c0ffee" in written


@pytest.mark.slow
def test_versus_adds_the_table_of_differences(results: Path) -> None:
    assert main(["report", str(results), "--versus", "base"]) == 0
    tables = Page((results / "report.html").read_text(encoding="utf-8")).data["tables"]
    assert [table["name"] for table in tables] == ["by domain", "by task", "against base"]
    assert tables[2]["signed"]
    (mean,) = [cells for label, cells in tables[2]["rows"] if label == "mean over tasks"]
    (means,) = [cells for label, cells in tables[0]["rows"] if label == "mean over tasks"]
    assert mean[0][0] == pytest.approx(means[1][0] - means[0][0], abs=0.1)  # the paper's means are of rounded scores


@pytest.mark.slow
def test_an_index_gives_the_adapters_similarity(results: Path, tmp_path: Path) -> None:
    AdapterIndex.from_embeddings(["sky", "rain"], [np.eye(2)[:1], np.eye(2)[1:]]).save(tmp_path / "index")
    assert main(["report", str(results), "--index", str(tmp_path / "index")]) == 0
    similarity = Page((results / "report.html").read_text(encoding="utf-8")).data["similarity"]
    assert similarity["values"] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--index", "nowhere"], "no readable index .*`lora-retriever index` makes one"),
        (["report", "--versus", "magic"], "no run 'magic' to compare with"),
        (["summarize", "--format", "html", "--scoring", "both"], "html shows one scoring"),
        (["summarize", "--format", "html", "--no-intervals"], "leave out .*--no-intervals"),
    ],
)
def test_what_cannot_be_done_is_said(
    results: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([arguments[0], str(results), *arguments[1:]]) == 2
    assert re.search(message, capsys.readouterr().err)
