"""The benchmark of methods, in small: figures for the methods that are asked for, and the ratio 1 for the base."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_methods
import pytest

from lora_retriever.errors import UserError
from lora_retriever.methods.parts import probing
from lora_retriever.running.results_folder import locked


@pytest.mark.slow
def test_every_method_asked_for_has_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up clock sets the seconds of every method and round: a ratio compares seconds of one round."""
    seconds = {"base": [2.0, 20.0, 4.0], "mixture": [3.0, 40.0, 4.0], "arrow": [10.0, 50.0, 8.0]}
    mib = {"base": 5.0, "mixture": 7.0, "arrow": 5.5}
    answer, clock, left = bench_methods.answered, [0.0], {name: iter(values) for name, values in seconds.items()}

    def timed(generator: Any, prompts: Any, routed: Any, *rest: Any) -> None:
        answer(generator, prompts, routed, *rest)
        clock[0] += next(left[routed.method.name])

    def peak(act: Any, device: Any) -> float:
        generator, prompts, routed, *rest = act.args
        answer(generator, prompts, routed, *rest)
        return mib[routed.method.name] * 2**20

    monkeypatch.setattr(bench_methods, "answered", timed)
    monkeypatch.setattr(bench_methods, "peak_bytes", peak)
    monkeypatch.setattr(bench_methods, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    out = tmp_path / "figures.json"
    arguments = ["--methods", "mixture,arrow", "--rows", "3", "--new-tokens", "2", "--rounds", "3", "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["bench_methods.py", *arguments])
    bench_methods.main()
    figures = {figure["method"]: figure for figure in json.loads(out.read_text())}
    assert list(figures) == ["base", "mixture", "arrow"]
    assert [figure["answering_ratio"] for figure in figures.values()] == [1, 1.5, 2.5]
    assert [figure["answering_seconds_per_row"] for figure in figures.values()] == [4 / 3, 4 / 3, 10 / 3]
    assert [figure["memory_above_base_mib"] for figure in figures.values()] == [0, 2, 0.5]
    assert figures["mixture"]["reads"] == ["adapters", "pool"]


@pytest.mark.long
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
