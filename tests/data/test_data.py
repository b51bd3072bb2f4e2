"""Benchmark and pool files: both forms are read, and a message names the file and the row of a mistake."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty_names import NASTY_NAMES

from lora_retriever.data.rows import Row, joined, limited, read_pool, read_rows
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
    rows = limited(read_rows(write(tmp_path / "rows.json", json.dumps(records))), 1)
    assert [(row.task, row.id) for row in rows] == [("a", 0), ("b", 2)]


@pytest.mark.slow
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
        (json.dumps([{**ROW, "inputs": " \n"}]), "row 1: field 'inputs': is blank"),
        (json.dumps([{**ROW, "task": "\t"}]), "row 1: field 'task': is blank"),
        (
            json.dumps([{**ROW, "targets": None}]),
            "row 1: field 'targets': expected a text, a number, or a list of them",
        ),
        (
            json.dumps([{**ROW, "targets": True}]),
            "row 1: field 'targets': expected a text, a number, or a list of them",
        ),
        (json.dumps([{**ROW, "targets": {}}]), "row 1: field 'targets': expected a text, a number, or a list of them"),
        (json.dumps([{**ROW, "targets": []}]), "row 1: field 'targets': is an empty list; write one text or several"),
        (json.dumps([{**ROW, "targets": ["a", ["b"]]}]), "row 1: field 'targets': target 2 of 2: expected a text"),
        (
            json.dumps([{**ROW, "targets": ["a", "\ud83d"]}]),
            "row 1: field 'targets': target 2 of 2: has half of a surr",
        ),
        (json.dumps([ROW, {**ROW, "inputs": "x" * 10_000_000}]), "row 2: field 'inputs': has 10,000,000 characters"),
        (json.dumps([ROW, {**ROW, "targets": "x" * 10_000_000}]), "row 2: field 'targets': has 10,000,000 characters"),
        (
            json.dumps([ROW, {**ROW, "metric": "f2"}]),
            "row 2: unknown metric 'f2' (known: bleu, choice, choice_norm, em, kas, rouge, starts_with, triples)",
        ),
    ],
)
def test_bad_rows_are_refused_by_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "rows.json", text)
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("field", ["inputs", "targets", "task", "domain", "metric"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cut \ud83d", r"has half of a surrogate pair, \ud83d, at character 5: an emoji or a rare letter was cut"),
        ("\udc00", r"has half of a surrogate pair, \udc00, at character 1"),
        ("a\0b", "has a NUL character, at character 2; remove it"),
    ],
)
def test_a_text_that_no_program_takes_is_refused_in_every_field(
    tmp_path: Path, field: str, text: str, message: str
) -> None:
    path = write(tmp_path / "rows.json", json.dumps([ROW, {**ROW, field: text}]))
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}: row 2: field '{field}': {message}")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model_name", {"model_name": "\ud83d"}),
        ("domain", {"domain": "\ud83d"}),
        ("sample.1.inputs", {"sample": [{"inputs": "a", "targets": "b"}, {"inputs": "\ud83d", "targets": "b"}]}),
        ("sample.0.targets", {"sample": [{"inputs": "a", "targets": "\ud83d"}]}),
    ],
)
def test_a_pool_with_half_of_a_surrogate_pair_is_refused_in_every_field(
    tmp_path: Path, field: str, change: dict[str, object]
) -> None:
    path = write(tmp_path / "pool.json", json.dumps([{**ENTRY, **change}]))
    with pytest.raises(UserError) as error:
        read_pool(path)
    assert str(error.value).startswith(f"{path}: row 1: field '{field}': has half of a surrogate pair")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("3", "3"),
        ("0.50", "0.50"),
        ("1e3", "1e3"),
        ('""', ""),
        ('["yes", "yeah"]', ("yes", "yeah")),
        ('["yes"]', ("yes",)),
        ('["four", 4, 4.0]', ("four", "4", "4.0")),
    ],
)
def test_targets_are_a_text_a_number_or_several_of_them(
    tmp_path: Path, targets: str, expected: str | tuple[str, ...]
) -> None:
    text = json.dumps(ROW).replace('"yes"', targets)
    (row,) = read_rows(write(tmp_path / "rows.json", text))
    assert row.targets == expected
    assert row.target == (expected if isinstance(expected, str) else expected[0])
    assert Row(**json.loads(json.dumps(row.model_dump()))) == row


def test_names_of_one_unicode_form_are_one_name(tmp_path: Path) -> None:
    names = {"task": "citta\u0300", "domain": "e\u0301", "metric": "./e\u0301.py"}
    (row,) = read_rows(write(tmp_path / "rows.json", json.dumps({**ROW, **names, "inputs": "e\u0301"})))
    assert (row.task, row.domain, row.metric) == ("citt\u00e0", "\u00e9", "./\u00e9.py")
    assert row.inputs == "e\u0301"  # the text of a prompt is the user's
    (entry,) = read_pool(write(tmp_path / "pool.json", json.dumps({**ENTRY, "model_name": "citta\u0300"})))
    assert entry.model_name == row.task


def test_further_fields_and_fields_that_are_not_used_are_named_once(tmp_path: Path) -> None:
    notes: list[str] = []
    rows = [{**ROW, "source": 1, "id": 7, "parts": ["a"]}, {**ROW, "source": 2, "target": ""}]
    path = write(tmp_path / "rows.json", json.dumps(rows))
    assert [(row.id, row.further) for row in read_rows(path, notes=notes)] == [
        (0, {"source": 1}),
        (1, {"source": 2, "target": ""}),
    ]
    assert notes == [
        f"{path}: further fields of rows, which only --by uses: source, target",
        f"{path}: fields of rows that are not used: parts",
    ]
    read_rows(write(path, json.dumps([ROW])), notes=notes)
    assert len(notes) == 2


def test_a_further_field_has_only_short_texts_numbers_and_truth_values(tmp_path: Path) -> None:
    kept = {"text": "seen", "number": 3, "fraction": 0.5, "truth": False, "lacking": None, "\u00e9": "\u00e9"}
    others = {
        "list": [1], "object": {"a": 1}, "long": "a" * 101, "digits": 10**100, "nul": "a\0", "null": None,
        "n" * 101: 1, "weights": 1.0, "predicted_answer": "a", "retrieved": "a",
    }  # fmt: skip
    first, second = {**ROW, **kept, **others, "mixed": 1}, {**ROW, "lacking": True, "mixed": ["a"], "further": "a"}
    one, two = read_rows(write(tmp_path / "rows.json", json.dumps([first, second])))
    assert one.further == {"text": "seen", "number": 3, "fraction": 0.5, "truth": False, "\u00e9": "\u00e9"}
    assert one.further["truth"] is False
    assert two.further == {"lacking": True, "further": "a"}
    assert json.dumps(one.further["fraction"]) == "0.5"
    assert "further" not in one.model_dump()


def test_several_targets_are_shown_as_one_text() -> None:
    assert joined("yes") == "yes"
    assert joined(("yes", "yeah")) == "yes | yeah"


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY_NAMES)
def test_any_name_is_read_or_refused_by_row_and_field(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "rows.json", json.dumps([{**ROW, "task": name, "domain": name}]))
    try:
        (row,) = read_rows(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: row 1: field 'task': ")
        assert not name.strip() or "\0" in name or not name.isprintable()
    else:
        assert row.task == row.domain == unicodedata.normalize("NFC", name)


VALUES = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats(),
    st.text(max_size=4) | st.sampled_from(["\ud83d", "", " ", "\0"]),
    st.lists(st.text(max_size=3) | st.integers() | st.none(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none()),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["rows", "pool"]))
def test_nothing_but_a_message_comes_of_any_values(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    objects: list[Any] = [json.loads(json.dumps(ROW if kind == "rows" else ENTRY)) for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from(objects))
        if kind == "pool" and data.draw(st.booleans()) and isinstance(target.get("sample"), list):
            target = data.draw(st.sampled_from([one for one in target["sample"] if isinstance(one, dict)] or [target]))
        target[data.draw(st.sampled_from([*target, "other"]))] = data.draw(VALUES)
    path = write(tmp_path / "file.json", json.dumps(objects))
    try:
        found = read_rows(path) if kind == "rows" else read_pool(path)
        json.dumps([one.model_dump() for one in found], ensure_ascii=False).encode("utf-8")
    except UserError as error:
        assert str(error).startswith(f"{path}: ")


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


@pytest.mark.slow
def test_the_official_files_are_read(official: Path) -> None:
    rows, pool = read_rows(official / "combined_test.json"), read_pool(official / "config2.json")
    assert len(rows) == 2395
    assert {row.task for row in rows} == {entry.model_name for entry in pool}
    assert len(read_pool(official / "config_new.json")) == 66
