"""The benchmarks of whole evaluations and of large pools are fair: both implementations give equal answers."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import bench_eval
import bench_pool
import check_batches
import pytest
from eval_loops import OriginalLoop, UpstreamLoop

from lora_retriever.experiment.profile import Profile
from lora_retriever.running.run_file import read_lines


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (OriginalLoop, ["base", "fusion", "mixture_ood"]),
        (partial(UpstreamLoop, batch=8), ["base", "selection_ood", "best_selection"]),
    ],
    ids=["original", "upstream"],
)
def test_other_loops_answer_as_ours_does(paper_runs: Path, tiny: Profile, make: Any, names: list[str]) -> None:
    measured = bench_eval.run_loop(make, tiny, 1, names)
    for name in names:
        ours = {id: line["predicted_answer"] for id, line in read_lines(paper_runs, name).items()}
        assert measured.answers[name] == ours
    assert set(measured.seconds) == set(names)
    assert measured.total > sum(measured.seconds.values())


def test_upstream_peft_is_asked_only_for_rows_of_one_adapter(tiny: Profile) -> None:
    beside = bench_eval.implementations("tiny", 1, ["base", "fusion", "selection"], None)
    assert list(beside) == ["the original", "upstream PEFT, batches of 8", "upstream PEFT, batches of 32"]
    assert beside["upstream PEFT, batches of 32"].args[3] == ["base", "selection"]  # type: ignore[attr-defined]
    assert list(bench_eval.implementations("tiny", 1, ["fusion"], "python")) == ["the original", "vLLM"]


def test_the_figures_of_an_evaluation_are_of_the_same_round() -> None:
    def measured(total: float, text: str) -> bench_eval.Measured:
        return bench_eval.Measured(total, {"base": total / 2}, {"base": {0: "a", 1: text}}, {"base": 0})

    found = bench_eval.compared([measured(1, "b"), measured(4, "b")], [measured(5, "c"), measured(8, "c")])
    assert found["all"]["ratio"] == (5 + 2) / 2
    assert found["all"]["ours_rows_per_second"] == round(2 / 2.5, 2)
    assert (found["all"]["equal_answers"], found["all"]["rows"]) == (1, 2)


def test_a_total_is_compared_only_with_a_total_of_the_same_configurations() -> None:
    ours = bench_eval.Measured(9, {"base": 2, "fusion": 4}, {"base": {0: "a"}, "fusion": {0: "b"}}, {"base": 0})
    its = bench_eval.Measured(5, {"base": 4}, {"base": {0: "a"}}, {"base": 0})
    found = bench_eval.compared([ours], [its])
    assert "all" not in found
    assert found["configurations"]["base"]["ratio"] == 2
    assert [line for line, _ in bench_eval.table(found, "another", "tiny").rows] == ["base"]


@pytest.mark.slow
def test_a_pool_with_room_for_some_gives_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--adapters 12 --room 8 --batches 2 --batch 2 --length 6 --new-tokens 3 --hidden 64 --layers 1 --threads 1"
    monkeypatch.setattr(sys, "argv", ["bench_pool.py", *sizes.split(), "--json", str(tmp_path / "found.json")])
    bench_pool.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["equal_rows"] == found["rows"] == 8
    assert found["read_per_batch"] > 0
    assert "room for 8" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_are_compared_between_batches_of_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rows", "6", "--sizes", "1", "3", "--dtype", "float32", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["check_batches.py", *arguments])
    check_batches.main()
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert (found["dtype"], found["rows"], found["differing"]) == ("float32", 6, 0)
    assert found["median_gap"] > 0
    assert "differ" in capsys.readouterr().out
