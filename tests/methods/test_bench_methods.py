"""The benchmark of methods, in small: its figures are of the methods asked for, the base's ratio is 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_methods
import pytest

from lora_retriever.errors import UserError
from lora_retriever.methods.parts import probing
from lora_retriever.running.results_folder import locked


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_method_pays_for_its_own_probing_unless_results_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, probed = probing.read, []

    def watched(generator: Any, gate: Any, prompts: Any, names: Any) -> Any:
        probed.extend(prompts)
        return read(generator, gate, prompts, names)

    monkeypatch.setattr(probing, "read", watched)
    arguments = ["--methods", "logo,nearest_weights", "--rows", "2", "--new-tokens", "1", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["bench_methods.py", *arguments])
    bench_methods.main()
    assert len(probed) == 2 * 2
    probed.clear()
    monkeypatch.setattr("sys.argv", ["bench_methods.py", *arguments, "--results", str(tmp_path)])
    bench_methods.main()
    assert len(probed) == 2
    bench_methods.main()
    assert len(probed) == 2, "what lies in the folder is found"
    with locked(tmp_path), pytest.raises(UserError, match="is in use by process"):
        bench_methods.main()
