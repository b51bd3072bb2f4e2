"""The script that divides the time of both loops finds equal answers, and parts whose sum is the whole time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_phases
import pytest


@pytest.mark.slow
def test_the_parts_of_both_sum_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench_phases.py", "--limit", "1", "--only", "selection", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    bench_phases.main()
    assert "19 of 19" in capsys.readouterr().out
    its = json.loads((tmp_path / "figures.json").read_text())["methods"]["selection"]
    for side in (its["ours"], its["original"]):
        parts = [side[part] for part in ("reading", "decoding", "rest")]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(side["total"], abs=0.01)
    assert its["ratio"] == pytest.approx(its["original"]["total"] / its["ours"]["total"], rel=0.1)
    assert its["bound"] == pytest.approx(its["original"]["total"] / its["ours"]["reading"], rel=0.1)


def test_the_bound_is_what_is_left_without_all_but_the_reading() -> None:
    ours, original = bench_phases.Phases(6.0, 2.0, 3.0), bench_phases.Phases(12.0, 5.0, 6.0)
    found = bench_phases.compared([(ours, original)])
    assert (found["ratio"], found["bound"], found["ours"]["rest"]) == (2.0, 6.0, 1.0)
