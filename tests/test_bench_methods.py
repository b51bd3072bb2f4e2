"""The benchmark of methods, in small: its figures are of the methods asked for, the base's ratio is 1."""

from __future__ import annotations

import json
from pathlib import Path

import bench_methods
import pytest


def test_every_method_asked_for_has_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--methods", "mixture,arrow", "--rows", "3", "--new-tokens", "2", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["bench_methods.py", *arguments])
    bench_methods.main()
    figures = {figure["method"]: figure for figure in json.loads(out.read_text())}
    assert list(figures) == ["base", "mixture", "arrow"]
    assert figures["base"]["answering_ratio"] == 1
    assert figures["base"]["memory_above_base_mib"] == 0
    assert figures["mixture"]["reads"] == ["adapters", "encoder", "pool"]
    assert all(figure["answering_ratio"] > 0 for figure in figures.values())
