"""Rows and pools come alike from CSV, Parquet, folders of datasets and the Hub, and no code of a data set runs."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest

from lora_retriever.data import sources
from lora_retriever.data.drawing import draw_pool
from lora_retriever.data.objects import read_objects
from lora_retriever.data.rows import PoolEntry, Row, Sample, read_pool, read_rows, read_samples
from lora_retriever.data.sources import DataSource, hash_source, read_source
from lora_retriever.errors import UserError
from lora_retriever.files import hash_path

CELLS = [
    {"inputs": 'say "a, b; c"\nand\td', "targets": "1.0", "task": "007"},
    {"inputs": "NA", "targets": "NA", "task": "true"},
    {"inputs": " x ", "targets": "", "task": "2026-01-01"},
]
COLUMNS = {"inputs": "question", "targets": "answer"}
DEFAULTS = {"metric": "em", "domain": "mine"}


def write_csv(path: Path, rows: Sequence[dict[str, str]], separator: str = ",", end: str = "\r\n") -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    return path


def refusal(source: DataSource | Path) -> str:
    """The one message with which rows are refused, without the path in front."""
    with pytest.raises(UserError) as error:
        read_rows(source)
    (line,) = str(error.value).splitlines()
    return line.removeprefix(f"{DataSource.of(source).path}: ")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_cell_of_csv_is_the_text_that_is_there(tmp_path: Path, separator: str, end: str, packed: bool) -> None:
    path = write_csv(tmp_path / "rows", CELLS, separator, end)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_objects(path) == CELLS


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert read_objects(write_csv(tmp_path / "a.csv", [{"a": "x" * 200_000, "b": ""}]))[0]["a"] == "x" * 200_000
    assert csv.field_size_limit() == before


def test_columns_and_defaults_make_rows(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "q", "answer": "1.0", "task": "t", "inputs": "not this"}])
    (row,) = read_rows(DataSource(path, columns=COLUMNS, defaults={**DEFAULTS, "task": "not this"}))
    assert row == Row(inputs="q", targets="1.0", task="t", domain="mine", metric="em", id=0)


def test_a_columns_name_is_found_in_either_unicode_form(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"re\u0301ponse": "a", "inputs": "q"}])
    (row,) = read_rows(DataSource(path, columns={"targets": "r\u00e9ponse"}, defaults={**DEFAULTS, "task": "t"}))
    assert (row.targets, row.further) == ("a", {})


REFUSED = {
    "an empty cell": ("question,answer,task\nq,a,t\n,a,t\n", "row 2: field 'inputs': is blank"),
    "too few cells": ("question,answer,task\nq,a,t\n\nq,a\n", "row 2, which ends in line 4: 2 cells, but the first"),
    "too many cells": ("question,answer,task\nq,a,b,t\n", "row 1, which ends in line 2: 4 cells, but the first"),
    "an open quote": ('question,answer,task\nq,"a,t\n', "line 2: not valid CSV (a quotation mark is opened and not c"),
    "another separator": ("question|answer|task\nq|a|t\n", "line 1: not valid JSON (Expecting value), and no table"),
    "text after a quote": ('question,answer,task\nq,"a"b,t\n', "line 2: not valid CSV"),
    "a column twice": ("question,answer,question\nq,a,q\n", "the column 'question' is there more than once"),
    "no rows": ("question,answer,task\n", "the file holds no rows"),
    "another column": (
        "quest,answer,task\nq,a,t\n",
        "no column 'question' for inputs; there are: 'quest', 'answer', 't",
    ),
    "no task": ("question,answer\nq,a\n", "row 1: field 'task': is missing (found: 'metric', 'domain', 'inputs', 't"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_table_is_refused_by_row_or_line(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    (tmp_path / "a.csv").write_text(content)
    assert refusal(DataSource(tmp_path / "a.csv", columns=COLUMNS, defaults=DEFAULTS)).startswith(message)


def tables(folder: Path, table: pyarrow.Table) -> list[Path]:
    """The table as Parquet, as an Arrow file and as an Arrow stream."""
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    with pyarrow.ipc.new_file(folder / "file.arrow", table.schema) as file:
        file.write_table(table)
    with pyarrow.ipc.new_stream(folder / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    return [folder / name for name in ("a.parquet", "file.arrow", "stream.arrow")]


def test_parquet_and_arrow_keep_types_and_lists(tmp_path: Path) -> None:
    rows = [{"inputs": "a", "targets": ["x", "y"], "n": 1}, {"inputs": "b", "targets": ["007"], "n": None}]
    for path in tables(tmp_path, pyarrow.Table.from_pylist(rows)):
        assert read_objects(path) == rows
        assert [sample.targets for sample in read_samples(path)] == [("x", "y"), ("007",)]


@pytest.mark.parametrize(
    ("kind", "third"), [(pyarrow.float64(), "1e+30"), (pyarrow.float32(), "1e+30"), (pyarrow.float16(), "0.333")]
)
def test_a_number_of_few_bits_is_the_text_that_was_written(tmp_path: Path, kind: pyarrow.DataType, third: str) -> None:
    numbers = [0.1, 3.7, float(third)]
    alone = pyarrow.array(np.array(numbers, kind.to_pandas_dtype()), kind)
    listed = pyarrow.ListArray.from_arrays([0, 1, 2, 3], alone)
    for targets in (alone, listed):
        for path in tables(tmp_path, pyarrow.table({"inputs": ["a", "b", "c"], "targets": targets})):
            texts = [sample.targets for sample in read_samples(path)]
            assert texts == [text if targets is alone else (text,) for text in ("0.1", "3.7", third)]


def test_parquet_with_nan_or_a_column_twice_is_refused(tmp_path: Path) -> None:
    for path in tables(tmp_path, pyarrow.table({"inputs": ["a", "b"], "targets": [1.0, float("nan")]})):
        assert refusal(path) == "row 2: column 'targets': nan is no finite number"
    for path in tables(tmp_path, pyarrow.table([["a"], ["b"]], ["inputs", "inputs"])):
        assert refusal(path) == "the column 'inputs' is there more than once; rename one"
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    assert refusal(tmp_path / "a.parquet").startswith("damaged (")


@pytest.mark.slow
def test_parquet_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"inputs": ["a" * 1000] * 3000}), tmp_path / "a.parquet")
    monkeypatch.setattr("lora_retriever.data.objects.MAX_FILE_BYTES", 1 << 21)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 14
    assert refusal(tmp_path / "a.parquet").startswith("larger than 2 MiB unpacked")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of `save_to_disk` with two splits, class labels, and rows that were shuffled before saving."""
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    content = {"question": [f"q{number}" for number in range(6)], "answer": [0, 1, 0, 1, 1, 0]}
    whole = datasets.Dataset.from_dict(content, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": whole, "test": whole.select([4, 2, 5])}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_folder_of_save_to_disk_gives_its_split_with_the_labels_names(saved: Path) -> None:
    source = DataSource(saved, "test", columns=COLUMNS, defaults={**DEFAULTS, "task": "t"})
    assert [(row.inputs, row.targets) for row in read_rows(source)] == [("q4", "yes"), ("q2", "no"), ("q5", "no")]
    assert len(read_source(DataSource(saved / "train"))) == 6
    assert hash_source(source) == hash_path(saved)
    assert refusal(saved).startswith("2 splits (test, train); name one")
    assert refusal(DataSource(saved, "dev")) == "no split 'dev'; there are: test, train"
    assert refusal(DataSource(saved / "test", "test")).startswith("this folder is one split")


def test_a_state_file_cannot_lead_out_of_its_folder(saved: Path) -> None:
    state = saved / "test" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../train/data-00000-of-00001.arrow"}]}))
    with pytest.raises(UserError, match="has a /"):
        read_rows(saved / "test")
    state.write_text('{"_data_files": []}')
    with pytest.raises(UserError, match="the folder holds no rows"):
        read_rows(saved / "test")
    state.write_text("{}")
    with pytest.raises(UserError, match="names no data files"):
        read_rows(saved / "test")


def data_files(folder: Path) -> Path:
    """A data set like those on the Hub, with a script that must not run."""
    folder.mkdir()
    write_csv(folder / "test.csv", CELLS[:2])
    write_csv(folder / "train.csv", CELLS[2:])
    (folder / "other.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    return folder


@pytest.mark.slow
def test_a_folder_of_data_files_is_divided_by_names_and_read_as_text(tmp_path: Path) -> None:
    folder = data_files(tmp_path / "mine")
    assert read_source(DataSource(folder, "test")) == CELLS[:2]
    assert read_source(DataSource(folder, "train")) == CELLS[2:]
    (folder / "mine.py").write_text((folder / "other.py").read_text())  # the name of a data set's own script
    with pytest.raises(UserError, match=r"no data set that can be read: .*scripts are no longer supported"):
        read_source(DataSource(folder, "test"))
    assert not (folder / "ran").exists()


@pytest.mark.slow
def test_the_hub_is_asked_for_the_revision_and_for_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data_files(tmp_path / "mine")
    asked = []

    def fetch(name: str, revision: str | None, wanted: Sequence[str], repo_type: str) -> Path:
        asked.append((name, revision, repo_type))
        assert not any(pattern.endswith((".py", ".pkl", ".bin", "*")) for pattern in wanted)
        return folder

    monkeypatch.setattr(sources, "fetch", fetch)
    source = DataSource(Path("hub:org/mine"), "test", revision="v1")
    assert read_source(source) == CELLS[:2]
    assert asked == [("org/mine", "v1", "dataset")]
    before = hash_source(source)
    write_csv(folder / "train.csv", CELLS)
    assert hash_source(source) == before, "the other split's file does not count"
    write_csv(folder / "test.csv", CELLS)
    assert hash_source(source) != before


def test_what_applies_to_other_places_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", CELLS)
    assert refusal(DataSource(path, "test")).startswith("a file has no splits")
    assert refusal(DataSource(path, revision="v1")).startswith("a revision is only for a data set on the Hub")
    assert refusal(DataSource(tmp_path / "nowhere")).startswith("cannot be read (")


def test_a_table_of_samples_is_a_pool(tmp_path: Path) -> None:
    lines = [("b", "1"), ("a", "2"), ("b", "3")]
    table = [{"inputs": text, "targets": text, "task": task, "domain": "d"} for task, text in lines]
    found = read_pool(write_csv(tmp_path / "pool.csv", table))
    assert [(entry.model_name, [sample.inputs for sample in entry.sample]) for entry in found] == [
        ("b", ["1", "3"]),
        ("a", ["2"]),
    ]
    table[2]["domain"] = "e"
    with pytest.raises(UserError, match="row 3: domain 'e', but earlier rows of task 'b' have 'd'"):
        read_pool(write_csv(tmp_path / "pool.csv", table))


def entry(name: str, inputs: Sequence[str]) -> PoolEntry:
    sample = tuple(Sample(inputs=text, targets=str(place)) for place, text in enumerate(inputs))
    return PoolEntry(model_name=name, domain="d", sample=sample)


def drawn(entries: list[PoolEntry], rows: list[str], count: int, seed: int, notes: list[str]) -> dict[str, list[str]]:
    asked = [Row(inputs=text, targets="", task="t", domain="d", metric="em", id=0) for text in rows]
    found = draw_pool(entries, asked, count, seed, "train.csv", notes)
    return {one.model_name: [sample.inputs for sample in one.sample] for one in found}


def test_a_draw_is_disjoint_from_the_rows_and_depends_on_seed_and_task_alone() -> None:
    texts = [f"text {number}" for number in range(50)]
    notes: list[str] = []
    first = drawn([entry("a", texts), entry("b", texts[:3])], ["text  7", "text 2"], 20, 0, notes)
    assert notes == [
        "train.csv: 3 samples are left out of the pool, because their inputs are also rows' inputs",
        "train.csv: fewer than 20 samples for b (2)",
    ]
    assert len(first["a"]) == 20
    assert first["a"] == [text for text in texts if text in first["a"]], "the order of the file"
    assert not {"text 7", "text 2"} & {*first["a"], *first["b"]}
    assert drawn([entry("a", texts)], ["text 7", "text 2"], 20, 0, [])["a"] == first["a"]
    assert drawn([entry("a", texts[::-1])], ["text 7", "text 2"], 20, 0, [])["a"] == first["a"][::-1]
    assert drawn([entry("a", texts)], ["text 7", "text 2"], 20, 1, [])["a"] != first["a"]


def test_a_draw_takes_an_input_once_and_refuses_a_task_without_samples() -> None:
    (found,) = draw_pool([entry("a", ["x", "x ", "y"])], [], 5, 0, "train.csv", [])
    assert [(sample.inputs, sample.targets) for sample in found.sample] == [("x", "0"), ("y", "2")]
    with pytest.raises(UserError, match=r"train.csv: task 'a': every input is also a row's input"):
        drawn([entry("a", ["x"])], ["x"], 5, 0, [])


def test_pandas_files_are_read(tmp_path: Path) -> None:
    pd.DataFrame(CELLS).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(CELLS).to_csv(tmp_path / "a.csv")  # with an index, whose column has no name
    assert read_objects(tmp_path / "a.parquet") == read_objects(tmp_path / "a.csv") == CELLS
