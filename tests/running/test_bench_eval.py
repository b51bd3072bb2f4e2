"""The benchmarks of whole evaluations and of large pools measure what they say: both sides answer alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_eval
import bench_pool
import check_batches
import pytest

from lora_retriever.experiment.profile import Profile
from lora_retriever.running.run_file import read_lines


@pytest.mark.slow
def test_the_original_s_loop_answers_as_ours_does(paper_runs: Path, tiny: Profile) -> None:
    names = ["base", "fusion", "mixture_ood"]
    measured = bench_eval.run_original(tiny, 1, names)
    for name in names:
        ours = {id: line["predicted_answer"] for id, line in read_lines(paper_runs, name).items()}
        assert measured.answers[name] == ours
    assert set(measured.seconds) == set(names)
    assert measured.total > sum(measured.seconds.values())


def test_the_figures_of_an_evaluation_are_of_the_same_round() -> None:
    def measured(total: float, text: str) -> bench_eval.Measured:
        return bench_eval.Measured(total, {"base": total / 2}, {"base": {0: "a", 1: text}}, {"base": 0})

    found = bench_eval.compared([measured(1, "b"), measured(4, "b")], [measured(5, "c"), measured(8, "c")], ["base"])
    assert found["all"]["ratio"] == (5 + 2) / 2
    assert found["all"]["ours_rows_per_second"] == round(2 / 2.5, 2)
    assert (found["all"]["equal_answers"], found["all"]["rows"]) == (1, 2)


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
