"""Many results folders as one data frame."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import lora_retriever
from lora_retriever import load_results
from lora_retriever.analysis.frames import write_runs_file


def write_run(folder: Path, name: str, right: int, configuration: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    row = {"inputs": "?", "targets": "yes", "task": "rte", "domain": "nli", "metric": "em"}
    lines = [{"id": n, **row, "predicted_answer": "yes" if n < right else "no"} for n in range(4)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    meta = {"profile": "mine", "configuration_hash": name, "configuration": configuration, "timings": {"seconds": 2.5}}
    (folder / f"{name}.meta.json").write_text(json.dumps(meta))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    write_run(tmp_path / "one", "mixture@k=2", 3, {"k": 2, "scorer": "cosine"})
    write_run(tmp_path / "one", "base", 0, {})
    write_run(tmp_path / "two", "mixture@k=10", 4, {"k": 10, "scorer": "cosine"})
    write_run(tmp_path / "two", "mixture@k=9", 1, {"k": 9, "scorer": "cosine"})
    return [tmp_path / "one", tmp_path / "two"]


@pytest.mark.slow
def test_many_folders_are_one_frame_with_a_line_a_run(folders: list[Path]) -> None:
    frame = load_results(*folders)
    assert frame["folder"].tolist() == [str(folders[0])] * 2 + [str(folders[1])] * 2
    assert frame["run"].tolist() == ["base", "mixture@k=2", "mixture@k=9", "mixture@k=10"]  # 9 before 10
    assert frame["method"].tolist() == ["base", "mixture", "mixture", "mixture"]
    assert frame.loc[1:, "k"].tolist() == [2, 9, 10]
    assert frame["mean"].tolist() == frame["nli em"].tolist() == [0, 75, 25, 100]
    assert (frame["mean_low"] <= frame["mean"]).all() and (frame["mean"] <= frame["mean_high"]).all()
    assert frame["configuration_hash"].tolist() == frame["run"].tolist()
    assert set(load_results(folders[0], scoring="standard").columns) - set(frame.columns) == {"nli accuracy"}


@pytest.mark.slow
def test_the_record_in_a_folder_says_the_same(folders: list[Path]) -> None:
    written = pd.read_csv(write_runs_file(folders[1]))
    expected = load_results(folders[1]).drop(columns="folder")
    assert written.columns.tolist() == expected.columns.tolist()
    assert written[["run", "k", "mean", "rows"]].to_dict() == expected[["run", "k", "mean", "rows"]].to_dict()


def test_the_package_has_no_other_hidden_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_result'"):
        _ = lora_retriever.load_result
