"""The paper's figures are the paper's, and no table claims an agreement that its intervals cannot show."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

from lora_retriever.analysis.published import (
    MEAN_EM,
    Published,
    PublishedFigure,
    normalized_scores,
    published_table,
    retrieval_figures,
)
from lora_retriever.analysis.published.reproduction import ReproducedFigure, Reproduction, reproduce, reproduction_table
from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import MEAN, NORMALIZED, Quantity
from lora_retriever.analysis.summary import summarize
from lora_retriever.cli import main
from lora_retriever.metrics import Scoring
from lora_retriever.tables import FORMATS, Cell, Table

MODELS = {"llama2-7b": "7b", "llama2-13b": "13b"}
PRINTED_RUNS = {
    "perfect_selection": "best_selection",
    "selection_iid": "selection",
    "fusion_iid": "fusion",
    "mixture_iid": "mixture",
}
PRINTED_DOMAINS = {
    "Struct to Text": "struct to text",
    "Translation": "translation",
    "COMMONSENSE": "commonsense",
    "SENTIMENT": "sentiment",
    "READING Comp.": "reading comp",
    "CLOSE-BOOK QA": "closed_book QA",
    "COREFERENCE": "coreference",
    "READ. COOMP. W/ COM": "read.comp.w:commonsense",
    "PARAPHRASE": "paraphrase",
    "NLI": "nli",
}
SCORES = {"em": ["em"], "bleu": ["bleu"], "rouge": ["rouge-1", "rouge-2", "rouge-l"]}


@pytest.fixture(scope="session")
def shared() -> Path:
    """Copies of the paper's tables, which the project reads but does not contain."""
    folder = ROOT.parent / "shared"
    if not (folder / "paper").is_dir():
        pytest.skip("the paper's tables (../shared/paper) are not here")
    return folder


@pytest.fixture(params=MODELS)
def paper(request: pytest.FixtureRequest) -> Published:
    return published_table(request.param)


def figures_copied(rows: list[dict[str, str]], place: Callable[[str], Quantity]) -> dict[str, dict[Quantity, float]]:
    """The figures of copied rows by our names for runs. The first field of a row has the name that the paper prints."""
    found: dict[str, dict[Quantity, float]] = {}
    for row in rows:
        label, *figures = row.items()
        for run, value in figures:
            found.setdefault(PRINTED_RUNS.get(run, run), {})[place(label[1])] = float(value)
    return found


def printed_score(label: str) -> tuple[str, str]:
    """`WebNLG Rouge-1` as the task's name and the name of the score, which may be empty."""
    name, score = re.fullmatch(r"(.*?) ?(Rouge[-−][12l]|BLEU|)", label).groups()  # type: ignore[union-attr]
    return name, score.lower().replace("−", "-")


def test_every_figure_is_the_papers(paper: Published, shared: Path) -> None:
    tasks = {printed: task for task in paper.tasks.values() for printed in task.printed}

    def task_of(label: str) -> Quantity:
        name, score = printed_score(label)
        return Quantity("task", tasks[name].name, score or tasks[name].metric)

    def domain_of(label: str) -> Quantity:
        name, score = printed_score(label)
        return Quantity("domain", PRINTED_DOMAINS[name], score or "em")

    size = MODELS[paper.model]
    with (shared / "paper" / f"paper_table_full_{size}.csv").open(encoding="utf-8") as file:
        by_task = figures_copied(list(csv.DictReader(file)), task_of)
    with (shared / "paper" / "paper_table1.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("model") == size]
    by_domain = figures_copied(rows, domain_of)
    assert paper.printed == {run: by_domain[run] | by_task[run] for run in by_task}


def test_the_other_figures_are_those_of_the_reference(shared: Path) -> None:
    text = (shared / "reference.md").read_text(encoding="utf-8")
    rows = re.findall(r"paper: ([^|(*]+?)\*{0,2} ?(?:\([^|]*)?\|[^|]*\|(.+)\|", text)
    assert retrieval_figures() == {
        encoder: tuple(float(share.strip(" *")) for share in shares.split("|")) for encoder, shares in rows
    }
    ours = ", ".join(f"{row.method} {row.iid} / {row.ood}" for row in normalized_scores("llama2-7b"))
    assert ours in text
    assert normalized_scores("llama2-13b") == []


def test_every_official_task_is_there_with_each_of_its_scores(paper: Published, official: Path) -> None:
    rows = json.loads((official / "combined_test.json").read_text(encoding="utf-8"))
    assert {(task.name, task.domain, task.metric) for task in paper.tasks.values()} == {
        (row["task"], row["domain"], row["metric"]) for row in rows
    }
    assert all(task.rows == sum(row["task"] == task.name for row in rows) for task in paper.tasks.values())
    expected = {
        *(Quantity("task", row["task"], score) for row in rows for score in SCORES[row["metric"]]),
        *(Quantity("domain", row["domain"], score) for row in rows for score in SCORES[row["metric"]]),
    }
    assert all(set(figures) == expected for figures in paper.printed.values())


def test_exact_match_figures_are_shares_of_the_tasks_rows(paper: Published) -> None:
    for figures in paper.printed.values():
        for task in paper.tasks.values():
            if task.metric == "em":
                figure = figures[Quantity("task", task.name, "em")]
                right = round(figure * task.rows / 100)
                assert figure == round(100 * right / task.rows, 1), task.name


def test_table_1_holds_the_means_of_tables_4_and_5(paper: Published) -> None:
    """Tables 4 and 5 contradict no figure of table 1, apart from rounding."""
    for run, figures in paper.printed.items():
        for quantity, figure in figures.items():
            if quantity.level == "domain":
                members = [task.name for task in paper.tasks.values() if task.domain == quantity.group]
                mean = np.mean([figures[Quantity("task", name, quantity.score)] for name in members])
                assert figure == pytest.approx(mean, abs=0.05 + 1e-9), (run, quantity)


@pytest.mark.parametrize(
    ("run", "mean"),
    [
        ("best_selection", 67.25),
        ("selection", 61.67),
        ("selection_ood", 52.62),
        ("fusion", 50.77),
        ("fusion_ood", 49.55),
        ("mixture", 61.52),
        ("mixture_ood", 56.74),
    ],
)
def test_the_derived_means_are_the_known_ones(run: str, mean: float) -> None:
    paper = published_table("llama2-7b")
    figure = paper.figures(run, paper.tasks)[MEAN_EM]
    assert figure.derived
    assert figure.value == pytest.approx(mean, abs=0.005)


def test_figures_on_some_tasks_are_means_over_these() -> None:
    paper = published_table("llama2-7b")
    figures = paper.figures("selection", ["copa", "piqa", "dart"])
    assert figures[Quantity("domain", "commonsense", "em")] == PublishedFigure((74.0 + 46.0) / 2, derived=True)
    assert figures[MEAN_EM].value == (74.0 + 46.0) / 2
    assert figures[MEAN].value == pytest.approx((74.0 + 46.0 + 67.9) / 3)
    assert figures[NORMALIZED].value == pytest.approx(100 * (74.0 / 86.0 + 46.0 / 46.0 + 67.9 / 71.7) / 3)
    assert Quantity("domain", "nli", "em") not in figures
    whole = paper.figures("selection", paper.tasks)
    assert whole[Quantity("domain", "commonsense", "em")] == PublishedFigure(55.5)


@pytest.mark.parametrize(
    ("figure", "interval", "verdict"),
    [
        (60.0, (55.0, 59.9), "differs"),
        (60.0, (50.0, 59.98), "cannot tell"),  # 60.0 may be 59.96, rounded
        (60.0, (58.0, 62.0), "agrees"),
        (60.0, (57.9, 61.9), "cannot tell"),  # the paper's figure is inside, but the interval is too wide
        (60.0, (40.0, 80.0), "cannot tell"),
        (60.0, (60.2, 61.0), "differs"),  # near, but separable: not called agreement
        (10.0, (9.0, 11.0), "agrees"),
        (10.0, (8.5, 11.0), "cannot tell"),  # low scores have less tolerance: a tenth
        (0.0, (0.0, 7.1), "cannot tell"),
        (60.0, (60.0, 60.0), "cannot tell"),  # one row: a score without variation is no evidence
        (60.0, (99.99, 100.0), "cannot tell"),
        (60.0, None, "cannot tell"),
    ],
)
def test_agreement_needs_a_narrow_interval(figure: float, interval: tuple[float, float] | None, verdict: str) -> None:
    ours = sum(interval) / 2 if interval else figure
    assert ReproducedFigure(PublishedFigure(figure), ours, interval, comparable=True).verdict == verdict


def test_scores_of_other_tasks_have_no_difference() -> None:
    figure = ReproducedFigure(PublishedFigure(60.0), 60.0, (59.0, 61.0), comparable=False)
    assert (figure.difference, figure.difference_interval, figure.verdict) == (None, None, None)


def reproduction_of(folder: Path, model: str = "llama2-7b") -> Reproduction:
    return reproduce(summarize(read_runs(folder), Scoring()), published_table(model))


@pytest.fixture(scope="module")
def official_reproduction(official_answers: Path) -> Reproduction:
    return reproduction_of(official_answers)


@pytest.mark.slow
def test_the_official_answers_stand_beside_the_papers(official: Path, official_reproduction: Reproduction) -> None:
    (run,) = official_reproduction.runs
    assert run.name == "selection"
    expected = json.loads((official / "expected_paper_scores.json").read_text())["selection.json"]["tasks"]
    tasks = official_reproduction.paper.tasks.values()
    paper = official_reproduction.paper.printed["selection"]
    for task in tasks:
        figure = run.figures[Quantity("task", task.name, task.main_score)]
        theirs = paper[Quantity("task", task.name, task.main_score)]
        assert figure.difference == pytest.approx(expected[task.name][task.main_score] - theirs)
    exact = [expected[task.name]["em"] for task in tasks if task.metric == "em"]
    mean = run.figures[MEAN_EM]
    assert mean.difference == pytest.approx(np.mean(exact) - 61.67, abs=0.01)
    assert mean.interval is not None
    assert mean.interval[0] < np.mean(exact) < mean.interval[1]
    assert run.figures[Quantity("domain", "read.comp.w:commonsense", "em")].verdict == "differs"
    assert run.figures[Quantity("domain", "coreference", "em")].verdict == "cannot tell"  # ±10 points


@pytest.mark.slow
def test_the_table_has_the_layout_of_table_1(official_reproduction: Reproduction) -> None:
    table = reproduction_table(official_reproduction)
    assert table.groups == (("selection", 3),)
    assert table.columns == ["ours", "paper", "difference"]
    labels = [label for label, _ in table.rows]
    assert labels[:5] == [
        "struct to text rouge-1",
        "struct to text rouge-2",
        "struct to text rouge-l",
        "translation bleu",
        "commonsense em",
    ]
    assert labels[-4:] == ["nli em", "mean over EM tasks", "mean over tasks", "normalized"]
    cells = dict(table.rows)
    assert cells["commonsense em"][1] == Cell(55.5)
    derived = cells["mean over EM tasks"][1]
    assert isinstance(derived, Cell)
    assert derived.mark == "†"
    assert len(reproduction_table(official_reproduction, by_task=True).rows) == 56 + 3
    notes = "\n".join(table.notes)
    assert "selection: no record (NAME.meta.json) says which models answered" in notes
    assert "Not in the paper, so not here: base." in notes
    assert "not among these runs: best_selection, selection_ood, fusion" in notes
    assert "LoRAuter 101.2 / 88.4" in notes
    assert "Ours: none, there is no run best_selection." in notes


@pytest.mark.slow
def test_bare_scores_keep_their_marks(official_reproduction: Reproduction) -> None:
    bare = dict(reproduction_table(official_reproduction, intervals=False).rows)["nli em"]
    full = dict(reproduction_table(official_reproduction).rows)["nli em"]
    assert all(isinstance(cell, Cell) and cell.low is None for cell in bare)
    assert [cell.mark for cell in bare if isinstance(cell, Cell)] == [
        cell.mark for cell in full if isinstance(cell, Cell)
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_the_groups(official_reproduction: Reproduction, format: str) -> None:
    text = FORMATS[format](reproduction_table(official_reproduction))
    if format == "table":
        _, head, columns = text.splitlines()[:3]
        assert head.split() == ["selection"]
        assert columns.split() == ["ours", "paper", "difference"]
    elif format == "latex":
        assert r" & \multicolumn{3}{c}{selection} \\" in text
        assert r"\cmidrule(lr){2-4}" in text
        assert r"\textsuperscript{$\neq$}" in text
        body = text.split(r"\end{tabular}")[0]
        assert not set("≠≈†±") & set(body)
    else:
        assert all(name in text.splitlines()[0] for name in ("selection ours", "selection paper"))


def test_groups_stand_over_their_own_columns() -> None:
    rows: list[tuple[str, list[Cell | str | None]]] = [
        ("score", [Cell(1.0), Cell(-2.0, -3.0, 1.0, " ?", difference=True), Cell(3.0, 2.0, 4.0)])
    ]
    table = Table(["ours", "difference", "ours"], rows, groups=(("first_run", 2), ("second", 1)))
    head = next(csv.reader(io.StringIO(FORMATS["csv"](table))))
    assert head[1:] == [
        "first_run ours", "first_run difference", "first_run difference low", "first_run difference high",
        "second ours", "second ours low", "second ours high",
    ]  # fmt: skip
    assert "-2.0 [-3.0, +1.0] ?" in FORMATS["table"](table)
    assert r" & \multicolumn{2}{c}{first\_run} & \multicolumn{1}{c}{second} \\" in FORMATS["latex"](table)
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in FORMATS["latex"](table)


def answered(task: str, domain: str, answer: str) -> dict[str, Any]:
    return {"inputs": "?", "targets": "yes", "task": task, "domain": domain, "metric": "em", "predicted_answer": answer}


def write_run(folder: Path, name: str, rows: list[dict[str, Any]], profile: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"id": id, **row}) for id, row in enumerate(rows)))
    (folder / f"{name}.meta.json").write_text(json.dumps({"profile": profile}))


def test_part_of_a_domain_is_compared_with_the_same_tasks(tmp_path: Path) -> None:
    rows = [answered("copa", "commonsense", answer) for answer in ("yes", "no", "yes", "yes")]
    write_run(tmp_path, "mixture", rows, "llama2-7b")
    reproduction = reproduction_of(tmp_path)
    figure = reproduction.runs[0].figures[Quantity("domain", "commonsense", "em")]
    assert figure.paper == PublishedFigure(80.0, derived=True)  # copa's
    assert figure.difference == pytest.approx(75.0 - 80.0)
    notes = reproduction_table(reproduction).notes
    assert notes[0].startswith("mixture: 1 of the paper's 48 tasks, and 4 of their 50 rows.")


def test_tasks_of_ones_own_are_compared_with_nothing(tmp_path: Path) -> None:
    rows = [answered(task, "commonsense", "yes") for task in ("copa", "room_choice")] * 3
    write_run(tmp_path, "mixture", rows, "tiny")
    reproduction = reproduction_of(tmp_path)
    figures = reproduction.runs[0].figures
    domain = figures[Quantity("domain", "commonsense", "em")]
    assert (domain.ours, domain.paper, domain.difference) == (100.0, PublishedFigure(61.5), None)
    assert figures[MEAN].difference is None
    assert figures[Quantity("task", "copa", "em")].difference == pytest.approx(20.0)
    notes = reproduction_table(reproduction).notes
    assert notes[0].startswith("mixture: from the profile tiny, not llama2-7b.")
    assert notes[1].startswith("mixture: 1 of the tasks not the paper's: room_choice.")


@pytest.mark.slow
def test_with_an_oracle_normalized_scores_stand_beside_published_ones(tmp_path: Path) -> None:
    rows = [answered("copa", "commonsense", "yes")] * 4
    write_run(tmp_path, "best_selection", rows, "llama2-7b")
    write_run(tmp_path, "fusion_ood", [*rows[:2], answered("copa", "commonsense", "no"), rows[0]], "llama2-7b")
    reproduction = reproduction_of(tmp_path)
    assert [run.name for run in reproduction.runs] == ["best_selection", "fusion_ood"]  # the paper's order
    figure = reproduction.runs[1].figures[NORMALIZED]
    assert figure.ours == 75.0
    assert figure.paper.value == pytest.approx(100 * 70.0 / 86.0)
    assert NORMALIZED not in reproduction.runs[0].figures  # 100 by definition, on both sides
    assert any("Ours: fusion – / 75.0 ±" in note for note in reproduction_table(reproduction).notes)


@pytest.mark.slow
def test_the_command_gives_the_figures_in_json(official_answers: Path, tmp_path: Path) -> None:
    file = tmp_path / "beside.json"
    folder = str(official_answers)
    assert main(["summarize", folder, "--paper", "llama2-13b", "--format", "json", "--output", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["paper"] == "llama2-13b"
    run = content["runs"]["selection"]
    assert (run["rows"], run["paper_rows"], run["profile"]) == (2395, 2395, None)
    figures = {(figure["level"], figure["group"], figure["score"]): figure for figure in run["figures"]}
    nli = figures["domain", "nli", "em"]
    assert nli["paper"] == 78.9
    assert nli["difference"] == pytest.approx(nli["ours"] - 78.9)
    assert nli["verdict"] == "differs"
    assert figures["mean", "", "em"]["derived"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paper", "llama3"], "the paper has no figures for 'llama3' (it has: llama2-7b, llama2-13b)"),
        (["--paper", "llama2-7b", "--scoring", "standard"], "only --scoring paper compares with them"),
        (["--paper", "llama2-7b", "--scoring", "both"], "only --scoring paper compares with them"),
        (["--paper", "llama2-7b", "--versus", "base"], "--paper and --versus are two comparisons"),
        (["--paper", "llama2-7b"], "none of these runs (base) is in the paper, which has best_selection, selection"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_run(tmp_path, "base", [answered("copa", "commonsense", "yes")], "llama2-7b")
    assert main(["summarize", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_retrieval_prints_table_2_below_its_own_figures_on_the_official_rows_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows have the names and numbers of the official rows, and made-up inputs."""
    tasks = published_table("llama2-7b").tasks.values()
    pool = [
        {
            "model_name": task.name,
            "domain": task.domain,
            "sample": [{"inputs": f"{task.name} {n}", "targets": ""} for n in (1, 2)],
        }
        for task in tasks
    ]
    rows = [
        {"inputs": f"{task.name} {n}", "targets": "", "task": task.name, "domain": task.domain, "metric": task.metric}
        for task in tasks
        for n in range(task.rows)
    ]
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    printed = {}
    for name, some in (("official", rows), ("one less", rows[1:])):
        (tmp_path / "rows.json").write_text(json.dumps(some))
        files = ["--pool", str(tmp_path / "pool.json"), "--inputs", str(tmp_path / "rows.json")]
        assert main(["retrieval", *files, "--scorer", "lexical"]) == 0
        printed[name] = [line.split() for line in capsys.readouterr().out.splitlines()]
    lines = printed["official"]
    first = [line[0] if line else "" for line in lines]
    assert first.index("lexical") < first.index("paper:")
    assert ["paper:", "LoraRetriever", "40", "%", "63.2", "89.1", "95.5", "99.0"] in [line[:8] for line in lines]
    assert " ".join(lines[-1]) == "paper: table 2 of LoraRetriever (arXiv 2402.09997v1), on the official rows."
    assert not any(line[:1] == ["paper:"] for line in printed["one less"])
