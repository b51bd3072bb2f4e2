"""The script that sets the loop beside whole batches counts passes, and finds equal answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_loop
import pytest


@pytest.mark.long
def test_the_loop_reads_less_and_answers_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench_loop.py", "--limit", "2", "--only", "best_selection", "--shares"]
    arguments += ["--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    bench_loop.main()
    assert "38 of 38" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    both, shares = figures["counts"]["best_selection"], figures["shares"]["best_selection"]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert both["loop"]["read_tokens"] < both["batches"]["read_tokens"]
    assert both["loop"]["steps"] <= both["batches"]["steps"]
    assert all(counts["rows_a_step"] > 1 for counts in both.values())
