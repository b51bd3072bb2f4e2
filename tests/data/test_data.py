"""Benchmark and pool files: both forms are read, and what is wrong is named by file and row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.errors import UserError

ROW = {"inputs": "is this good ?", "targets": "yes", "task": "mood", "domain": "sentiment", "metric": "em"}
ENTRY = {"model_name": "mood", "domain": "sentiment", "sample": [{"inputs": "a", "targets": "b"}]}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_json_list_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    records = [{**ROW, "inputs": f"input {i}"} for i in range(3)]
    as_list = read_rows(write(tmp_path / "list.json", json.dumps(records, indent=1)))
    as_lines = read_rows(write(tmp_path / "lines.jsonl", "\n".join(map(json.dumps, records)) + "\n\n"))
    assert as_list == as_lines
    assert [row.id for row in as_list] == [0, 1, 2]


def test_a_limit_keeps_the_first_rows_of_every_task_under_their_old_ids(tmp_path: Path) -> None:
    records = [{**ROW, "task": task} for task in "aabba"]
    rows = read_rows(write(tmp_path / "rows.json", json.dumps(records)), limit_per_task=1)
    assert [(row.task, row.id) for row in rows] == [("a", 0), ("b", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("[]", "the file holds no rows"),
        ('[\n{"a": 1},\n{"a": }\n]', "line 3: not valid JSON"),
        ("\n".join([json.dumps(ROW)] * 6 + ['{"inputs": "x", ']), "line 7: not valid JSON"),
        (json.dumps([ROW, 5]), "row 2: expected an object, found int"),
        (json.dumps([ROW, {k: v for k, v in ROW.items() if k != "task"}]), "row 2: field 'task': is missing"),
        (json.dumps([{**ROW, "inputs": ""}]), "row 1: field 'inputs'"),
        (json.dumps([{**ROW, "targets": 3}]), "row 1: field 'targets'"),
        (json.dumps([ROW, {**ROW, "metric": "f2"}]), "row 2: unknown metric 'f2' (known: em, bleu, rouge)"),
    ],
)
def test_bad_rows_are_refused_by_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "rows.json", text)
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read"):
        read_rows(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([ENTRY, ENTRY], "adapter 'mood' is there more than once"),
        ([{**ENTRY, "sample": []}], "row 1: field 'sample'"),
        ([{**ENTRY, "sample": [{"inputs": "a"}]}], "row 1: field 'sample.0.targets': is missing"),
    ],
)
def test_bad_pools_are_refused(tmp_path: Path, entries: list[object], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_pool(write(tmp_path / "pool.json", json.dumps(entries)))
    assert message in str(error.value)


def test_the_official_files_are_read(official: Path) -> None:
    rows, pool = read_rows(official / "combined_test.json"), read_pool(official / "config2.json")
    assert len(rows) == 2395
    assert {row.task for row in rows} == {entry.model_name for entry in pool}
    assert len(read_pool(official / "config_new.json")) == 66
