"""Comparisons of two runs: the difference and its p-value against plain loops, and the text of the tables."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_retriever.analysis.comparison import Comparison, Difference, compare, comparison_table
from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import MEAN, Quantity, score_run
from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.metrics import Scoring
from lora_retriever.metrics.base import compute
from lora_retriever.metrics.standard import BLEU
from lora_retriever.tables import terminal

RIGHT = {"better": "1111101111 1111", "worse": "1010000100 1101"}
"""Right (1) or wrong, row by row, of two tasks of one domain."""


def write_run(folder: Path, name: str, right: str, leave_out: Sequence[int] = ()) -> None:
    """A run of tasks `a`, `b`, …, one group of digits each."""
    lines = []
    for task, digits in zip("abcde", right.split(), strict=False):
        for digit in digits:
            row = {"inputs": f"row {len(lines)}", "targets": "yes", "task": task, "domain": "all", "metric": "em"}
            lines.append({"id": len(lines), **row, "predicted_answer": "yes" if digit == "1" else "no"})
    kept = [json.dumps(line) for line in lines if line["id"] not in leave_out]
    (folder / f"{name}.jsonl").write_text("\n".join(kept))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, right in RIGHT.items():
        write_run(tmp_path, name, right)
    return tmp_path


def compared(folder: Path, versus: str, level: str = "domain", scoring: str = "paper") -> list[Comparison]:
    chosen = Scoring(scoring)  # type: ignore[arg-type]
    return compare([score_run(run, chosen) for run in read_runs(folder)], versus, level)


@pytest.mark.slow
def test_the_difference_and_its_p_value_by_a_plain_loop(results: Path) -> None:
    """All 2¹⁴ ways to swap the rows of the two runs, counted: a domain is the mean of its two tasks' means."""
    better, worse = ([int(digit) for digit in RIGHT[name].replace(" ", "")] for name in ("better", "worse"))

    def difference(sides: Sequence[int]) -> float:
        gained = [(b - w) * (1 - 2 * side) for b, w, side in zip(better, worse, sides, strict=True)]
        return 100 * (sum(gained[:10]) / 10 + sum(gained[10:]) / 4) / 2

    observed = difference([0] * 14)
    as_far = sum(difference(sides) >= observed - 1e-9 for sides in itertools.product((0, 1), repeat=14))
    (comparison,) = compared(results, "worse")
    found = comparison.differences[Quantity("domain", "all", "em")]
    assert found.value == pytest.approx(observed)
    assert found.p == pytest.approx(2 * as_far / 2**14, abs=0.005)  # drawn 9,999 times, not counted
    assert found.low < found.value < found.high
    assert comparison.differences[MEAN].value == pytest.approx(observed)


def test_a_difference_of_corpus_scores_swaps_rows_before_it_scores(tmp_path: Path) -> None:
    """Corpus BLEU is no mean over rows: every swap is scored anew, here by sacrebleu's own scorer."""
    targets = ["the old town lies by the sea", "a quiet harbor sleeps in the sun today", "he buys fish at the market"]
    answers = {
        "x": ["the old town lies by the sea", "a quiet harbor sleeps in the rain", "he buys bread at the market"],
        "y": ["the town by the sea", "a harbor sleeps in the sun today", "she buys fish at the market"],
    }
    for name, texts in answers.items():
        rows = [
            {"id": place, "inputs": "?", "targets": target, "task": "t", "domain": "d", "metric": "bleu",
             "predicted_answer": text}
            for place, (target, text) in enumerate(zip(targets, texts, strict=True))
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def difference(sides: Sequence[int]) -> float:
        pairs = [(y, x) if side else (x, y) for x, y, side in zip(answers["x"], answers["y"], sides, strict=True)]
        left, right = (
            compute(BLEU, predictions=[pair[side] for pair in pairs], references=targets)["bleu"] for side in (0, 1)
        )
        return left - right

    swaps = [difference(sides) for sides in itertools.product((0, 1), repeat=3)]
    observed = difference([0, 0, 0])
    p = min(
        1, 2 * min(np.mean([swap >= observed - 1e-9 for swap in swaps]), np.mean([s <= observed + 1e-9 for s in swaps]))
    )
    (comparison,) = compared(tmp_path, "y", scoring="standard")
    found = comparison.differences[Quantity("domain", "d", "bleu")]
    assert found.value == pytest.approx(observed)
    assert found.p == pytest.approx(p)


@pytest.mark.slow
def test_p_values_are_corrected_for_their_number_and_the_inseparable_marked(results: Path) -> None:
    write_run(results, "same", RIGHT["worse"])
    write_run(results, "luckier", "1010000101 1101")
    comparisons = {comparison.name: comparison for comparison in compared(results, "worse")}
    assert list(comparisons) == ["better", "luckier", "same"]
    differences = [d for comparison in comparisons.values() for d in comparison.differences.values()]
    smallest = min(differences, key=lambda difference: difference.p)
    assert smallest.corrected == pytest.approx(min(1, smallest.p * len(differences)))
    same = comparisons["same"].differences[MEAN]
    assert (same.value, same.p, same.separable) == (0, 1, False)
    assert same.low == -same.high < 0  # equal answers to these rows do not prove that the runs are equal
    text = terminal(comparison_table(list(comparisons.values()), "paper"))
    assert "p 1.000 ~" in text
    assert "corrected for 6 comparisons (Holm)" in text


@pytest.mark.slow
def test_the_interval_is_the_bootstraps_and_is_widened_for_tasks_of_equal_differences_only(tmp_path: Path) -> None:
    """Each draw takes 39 of 40 rows, here 20,000 times by numpy. 20 equal rows have the exact bound of 0 of 20."""
    digits = "1101" * 10, "1001" * 10
    gained = np.array([int(ours) - int(theirs) for ours, theirs in zip(*digits, strict=True)])
    drawn = gained[np.random.default_rng(7).integers(0, 40, (20_000, 39))].mean(axis=1)
    low, high = 100 * np.quantile(drawn, [0.025, 0.975])
    for name, right in zip(("ours", "theirs"), digits, strict=True):
        write_run(tmp_path, name, right)
    found = compared(tmp_path, "theirs", "mean")[0].differences[MEAN]
    assert (found.low, found.high) == pytest.approx((low, high), abs=2.6)  # a row is 2.5 points
    for name, right in zip(("ours", "theirs"), digits, strict=True):
        write_run(tmp_path, name, right + " " + "1" * 20)
    found = compared(tmp_path, "theirs", "mean")[0].differences[MEAN]
    hidden = 100 * (1 - 0.025 ** (1 / 20)) / 2
    assert found.value == 12.5
    assert found.low == pytest.approx(12.5 - np.hypot(12.5 - low / 2, hidden), abs=1)
    assert found.high == pytest.approx(12.5 + np.hypot(high / 2 - 12.5, hidden), abs=1)


@pytest.mark.slow
def test_an_interval_of_scores_above_100_contains_its_difference(tmp_path: Path) -> None:
    """Plans of 8 or 10 steps where 2 are right are 300 % or 400 % too long, and plans of 2 steps are 0 %."""
    for name, lengths in {"short": [2] * 40, "long": [8, 10] * 20}.items():
        lines = []
        for id, steps in enumerate(lengths):
            plan = " | ".join([*(f"STEP {n}: Go left." for n in range(1, steps + 1)), "END"])
            row = {"inputs": f"goal {id}", "targets": "STEP 1: Go left. | STEP 2: Go left. | END"}
            fields = {"task": "plans", "domain": "all", "metric": "kas", "predicted_answer": plan}
            lines.append(json.dumps({"id": id, **row, **fields}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    gained = np.array([300, 400] * 20)
    drawn = gained[np.random.default_rng(7).integers(0, 40, (20_000, 39))].mean(axis=1)
    (comparison,) = compared(tmp_path, "short", scoring="standard")
    found = comparison.differences[Quantity("domain", "all", "length-error")]
    assert found.value == pytest.approx(350)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=3)


def test_a_task_of_one_row_says_little(tmp_path: Path) -> None:
    """If 1 of 1 rows is right, the share of right rows is at least 2.5 % (the exact binomial bound)."""
    write_run(tmp_path, "right", "1")
    write_run(tmp_path, "wrong", "0")
    (comparison,) = compared(tmp_path, "wrong", "mean")
    found = comparison.differences[MEAN]
    assert (found.value, found.low, found.high, found.p) == (100, pytest.approx(2.5), 100, 1)
    assert comparison.over_tasks is None


def test_tasks_as_a_sample_are_drawn_by_their_differences(tmp_path: Path) -> None:
    """Each of five tasks differs by 50 points, so every draw of tasks differs by 50 points."""
    write_run(tmp_path, "ours", "11 11 11 11 11")
    write_run(tmp_path, "theirs", "10 01 10 10 01")
    (comparison,) = compared(tmp_path, "theirs", "mean")
    assert comparison.over_tasks == (50, 50)


@pytest.mark.slow
def test_so_many_permutations_are_drawn_that_holms_correction_leaves_small_p_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are at least 100 draws for each compared number: here a task, a domain and the mean.

    No draw is as extreme.
    """
    monkeypatch.setattr("lora_retriever.analysis.comparison.PERMUTATIONS", 50)
    write_run(tmp_path, "right", "1" * 40)
    write_run(tmp_path, "wrong", "0" * 40)
    for level, permutations in (("mean", 100), ("task", 200)):
        (comparison,) = compared(tmp_path, "wrong", level)
        assert {difference.p for difference in comparison.differences.values()} == {2 / (permutations + 1)}


TABLE = """
                                            one                           two
 ─────────────────────────────────────────────────────────────────────────────
  nli em            +12.3 [+8.0, +15.5] p <.001   +0.0 [-3.0, +3.0] p 1.000 ~
  qa f1                                       –   +2.0 [+1.0, +3.0] p 0.050 ~

  mean over tasks     -0.5 [-2.3, +1.2] p 0.001     +1.5 [+0.5, +2.5] p 0.020

run `three` is left out
Points above (+) or below (−) base, paper scoring, on the same rows; \
[95 % bootstrap interval of the difference], p of the paired permutation test.
~ not separable: p, corrected for 5 comparisons (Holm), is 0.05 or more.
Mean over tasks if the tasks are a sample, too: one [-4.0, +3.0], two [+1.0, +2.0].
one lacks 4 rows that base has; they are left out here: 3, 5-7.
base lacks 1 rows that two has; they are left out here: 95.
"""


def test_a_table_shows_each_difference_with_its_interval_and_p_value() -> None:
    nli, qa = Quantity("domain", "nli", "em"), Quantity("domain", "qa", "f1")
    one = {nli: Difference(12.34, 8.0, 15.5, 0.0002, 0.0008), MEAN: Difference(-0.5, -2.3, 1.2, 0.001, 0.002)}
    two = {
        nli: Difference(0.0, -3.0, 3.0, 1.0, 1.0),
        MEAN: Difference(1.5, 0.5, 2.5, 0.02, 0.04),
        qa: Difference(2.0, 1.0, 3.0, 0.05, 0.05),
    }
    comparisons = [
        Comparison("one", "base", 90, (), (3, 5, 6, 7), one, (-4.0, 3.0)),
        Comparison("two", "base", 95, (95,), (), two, (1.0, 2.0)),
    ]
    text = terminal(comparison_table(comparisons, "paper", ["run `three` is left out"]))
    assert text.strip() == TABLE.strip()


@pytest.mark.slow
def test_a_clear_difference_is_separable_among_many_comparisons(tmp_path: Path) -> None:
    write_run(tmp_path, "all", "1" * 50)
    for number in range(20):
        write_run(tmp_path, f"none{number}", "0" * 50)
    comparisons = compared(tmp_path, "all", level="task")
    assert all(d.separable and d.value == -100 for c in comparisons for d in c.differences.values())


@pytest.mark.slow
def test_missing_rows_are_named_not_dropped_in_silence(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(results, "better", RIGHT["better"], leave_out=[2, 3, 4, 9])
    (comparison,) = compared(results, "worse")
    assert comparison.rows == 10
    assert comparison.differences[Quantity("domain", "all", "em")].value == pytest.approx((5 / 6 - 2 / 6) * 50 + 12.5)
    assert main(["summarize", str(results), "--versus", "worse"]) == 0
    assert "better lacks 4 rows that worse has; they are left out here: 2-4, 9." in capsys.readouterr().out
    assert main(["summarize", str(results)]) == 0
    assert "better lacks 4 rows that other runs have: 2-4, 9." in capsys.readouterr().out
    assert main(["summarize", str(results), "--versus", "worse", "--format", "json"]) == 0
    written: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert written["runs"]["better"]["missing_rows"] == {"better": [2, 3, 4, 9], "worse": []}


def test_what_cannot_be_compared_is_refused(results: Path) -> None:
    with pytest.raises(UserError, match=r"no run 'best' to compare with \(there are: better, worse\)"):
        compared(results, "best")
    write_run(results, "better", RIGHT["better"], leave_out=range(13))
    write_run(results, "worse", RIGHT["worse"], leave_out=[13])
    with pytest.raises(UserError, match="share no row"):
        compared(results, "worse")
    (results / "better.jsonl").unlink()
    with pytest.raises(UserError, match="worse is the only run"):
        compared(results, "worse")


def test_rows_of_different_benchmarks_are_never_compared(results: Path) -> None:
    other = (results / "better.jsonl").read_text().replace("row 3", "another row")
    (results / "better.jsonl").write_text(other)
    with pytest.raises(UserError, match=r"row 3 has other inputs in worse \('row 3'\) than in better"):
        read_runs(results)


@pytest.mark.long
def test_base_and_selection_of_the_official_answers_are_separable_in_every_domain(official_answers: Path) -> None:
    (comparison,) = compared(official_answers, "base")
    assert len({quantity.group for quantity in comparison.differences if quantity.level == "domain"}) == 10
    assert all(difference.separable and difference.low > 0 for difference in comparison.differences.values())
