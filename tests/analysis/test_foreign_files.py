"""Files of other programs in a results folder do not stop a table; a note names the files that are left out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import TINY

from lora_retriever.analysis.runs import open_results
from lora_retriever.cli import main
from lora_retriever.errors import UserError


def answered(name: str) -> list[dict[str, Any]]:
    rows = json.loads((TINY / "test.json").read_text())[:40]
    return [{"id": id, **row, "predicted_answer": name} for id, row in enumerate(rows)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with two runs."""
    for name in ("base", "mixture"):
        lines = "".join(json.dumps(line) + "\n" for line in answered(name))
        (tmp_path / f"{name}.jsonl").write_text(lines)
        (tmp_path / f"{name}.meta.json").write_text('{"note": "a note"}')
    return tmp_path


def rows_of_a_benchmark(folder: Path) -> None:
    shutil.copy(TINY / "test.json", folder / "rows.json")


def file_of_another_encoding(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jsonl")).write_text("[]")


FOREIGN: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "macOS's file beside a file": (lambda f: (f / "._base.jsonl").write_bytes(b"\x00\x05\x16\x07" * 40), None),
    "macOS's file beside a record": (lambda f: (f / "._base.meta.json").write_bytes(b"\x00\x05\x16\x07"), None),
    "an editor's file": (lambda f: (f / ".base.jsonl.swp").write_bytes(b"b0VIM"), None),
    "a hidden partial file": (lambda f: (f / "._x.jsonl.partial").write_bytes(b"\x00"), None),
    "a text": (lambda f: (f / "notes.txt").write_text("hello"), None),
    "an object": (lambda f: (f / "package.json").write_text("{}"), None),
    "rows": (rows_of_a_benchmark, "rows.json (.*field 'predicted_answer' is missing"),
    "lines that are no rows": (lambda f: (f / "log.jsonl").write_text('{"loss": 1}\n'), "log.jsonl (.*is missing"),
    "no JSON": (lambda f: (f / "x.jsonl").write_text("hello\n"), "x.jsonl (.*line 1: not valid JSON"),
    "a link to nothing": (lambda f: (f / "x.jsonl").symlink_to(f / "nowhere"), "x.jsonl (it is a link to nothing)"),
    "a folder": (lambda f: (f / "x.jsonl").mkdir(), "x.jsonl (it is a folder)"),
    "a pipe": (lambda f: os.mkfifo(f / "x.jsonl"), "x.jsonl (it is no regular file)"),
    "a name that is not UTF-8": (file_of_another_encoding, "caf\\udce9.jsonl (its name is not UTF-8)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOREIGN)
def test_the_table_is_made_without_foreign_files_and_says_so(
    results: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    put, reason = FOREIGN[kind]
    put(results)
    runs, notes = open_results(results)
    assert [run.name for run in runs] == ["base", "mixture"]
    if reason is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith("No run, and not shown: ")
        assert all(part in note for part in reason.encode("ascii").decode("unicode_escape").split(".*"))
    assert main(["summarize", str(results)]) == 0
    table = capsys.readouterr().out
    assert ("No run, and not shown" in table) == (reason is not None)


@pytest.mark.parametrize("content", ["null", "[]", "3", "{", '"text"', "[" * 100_000, "\xff"])
def test_a_damaged_record_is_named(results: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (results / "base.meta.json").write_text(content, encoding="latin-1")
    assert main(["summarize", str(results)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert f"{results / 'base.meta.json'}: " in message
    assert "or move the file away" in message


def test_a_damaged_run_is_named_with_a_way_out(results: Path) -> None:
    with (results / "base.jsonl").open("a") as file:
        file.write("garbage\n")
    with pytest.raises(UserError, match=r"base\.jsonl: line 41.*Give the command of this run again, which mends"):
        open_results(results)


def test_a_byte_order_mark_changes_nothing(results: Path) -> None:
    before = open_results(results)
    for path in results.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_results(results) == before


def test_a_folder_of_foreign_files_alone_says_why_there_is_no_run(tmp_path: Path) -> None:
    rows_of_a_benchmark(tmp_path)
    with pytest.raises(UserError, match=r"holds no finished run: rows\.json \(.*'predicted_answer' is missing"):
        open_results(tmp_path)
