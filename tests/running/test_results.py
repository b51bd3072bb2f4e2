"""A run's file survives every kind of stop, and never mixes configurations."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from lora_retriever.errors import UserError
from lora_retriever.running.results_folder import FolderError
from lora_retriever.running.run_file import RunFile, differences

CONFIGURATION: dict[str, Any] = {"k": 3, "generation": {"batch_size": 8}}


def line(id: int) -> dict[str, Any]:
    return {"id": id, "predicted_answer": f"answer {id} ünïcode\u2028 and a line separator"}


def ids_in(path: Path) -> list[int]:
    return [json.loads(text)["id"] for text in path.read_text(encoding="utf-8").split("\n") if text]


def test_a_finished_run_is_in_the_rows_order_and_under_its_name(tmp_path: Path) -> None:
    run = RunFile(tmp_path, "fusion", CONFIGURATION)
    run.begin({})
    run.append([line(2), line(0)])
    assert not run.path.exists()
    run.append([line(1)])
    run.finish([0, 1, 2], {"finished": True})
    assert ids_in(run.path) == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fusion.jsonl", "fusion.meta.json"]
    assert json.loads(run.meta_path.read_text())["configuration"] == CONFIGURATION


@pytest.mark.parametrize("tail", ['{"id": 1, "predicted_ans', "\x00\x00", '{"id"', "\ufffd"])
def test_a_half_written_last_line_is_mended(tmp_path: Path, tail: str) -> None:
    run = RunFile(tmp_path, "fusion", CONFIGURATION)
    run.begin({})
    run.append([line(0)])
    with run.partial.open("a", encoding="utf-8") as file:
        file.write(tail)
    again = RunFile(tmp_path, "fusion", CONFIGURATION)
    assert again.missing([0, 1, 2]) == [1, 2]
    again.begin({})
    again.append([line(1), line(2)])
    again.finish([0, 1, 2], {})
    assert ids_in(again.path) == [0, 1, 2]


def test_a_finished_file_that_lost_rows_is_taken_up_again(tmp_path: Path) -> None:
    run = RunFile(tmp_path, "fusion", CONFIGURATION)
    run.begin({})
    run.append([line(0), line(1)])
    run.finish([0, 1], {})
    whole = run.path.read_bytes()
    run.path.write_bytes(whole[:-5])
    again = RunFile(tmp_path, "fusion", CONFIGURATION)
    assert again.missing([0, 1]) == [1]
    again.begin({})
    again.append([line(1)])
    again.finish([0, 1], {})
    assert again.path.read_bytes() == whole


def test_another_configuration_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    RunFile(tmp_path, "fusion", CONFIGURATION).begin({})
    with pytest.raises(UserError) as error:
        RunFile(tmp_path, "fusion", {"k": 5, "generation": {"batch_size": 8}, "dtype": "float16"})
    message = str(error.value)
    assert "dtype: absent → float16" in message
    assert "k: 3 → 5" in message
    assert "batch_size" not in message
    files = [str(tmp_path / f"fusion{end}") for end in (".jsonl", ".jsonl.partial", ".meta.json")]
    assert f"rm -f {' '.join(files)}" in message


def test_the_advice_to_remove_files_is_one_shell_command_whatever_the_folder_s_name(tmp_path: Path) -> None:
    folder = tmp_path / "my results; touch $HOME * 'x'"
    run = RunFile(folder, "fusion", CONFIGURATION)
    folder.mkdir()
    run.begin({})
    run.append([line(0)])
    with pytest.raises(UserError) as error:
        RunFile(folder, "fusion", {"k": 5})
    command = str(error.value).partition("start this run anew: ")[2]
    kept = folder / "fusion_ood.jsonl"
    kept.write_text("")
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    assert list(folder.iterdir()) == [kept]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["fusion.meta.json", "fusion.jsonl", "fusion.jsonl.partial"])
def test_a_file_of_a_run_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    RunFile(tmp_path, "fusion", CONFIGURATION).begin({})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    # The pipe has a writer, so that a reader that opens the pipe does not wait for ever.
    threading.Thread(target=(tmp_path / name).write_text, args=("{}",), daemon=True).start()
    with pytest.raises(UserError, match=r"fusion\.\S+: cannot be read \(this is a pipe; name a file\)"):
        RunFile(tmp_path, "fusion", CONFIGURATION)


def test_the_message_of_another_configuration_repeats_no_endless_name(tmp_path: Path) -> None:
    RunFile(tmp_path, "fusion", {**CONFIGURATION, "k" * 5000: "v" * 5000}).begin({})
    with pytest.raises(UserError, match=r"another configuration: k+…: v+… → absent") as error:
        RunFile(tmp_path, "fusion", CONFIGURATION)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("content", ["null", "[]", "5", "{", "[" * 100_000, '{"configuration": 3}', "\x00", ""])
def test_a_record_that_is_none_is_refused_in_one_message(tmp_path: Path, content: str) -> None:
    run = RunFile(tmp_path, "fusion", CONFIGURATION)
    run.begin({})
    run.meta_path.write_text(content)
    with pytest.raises(UserError, match=r"fusion\.meta\.json: is no record of a run .*start this run anew: rm -f"):
        RunFile(tmp_path, "fusion", CONFIGURATION)


def test_the_record_of_another_run_is_refused(tmp_path: Path) -> None:
    """The file may be a copy, or the file system may not distinguish Fusion and fusion."""
    run = RunFile(tmp_path, "Fusion", CONFIGURATION)
    run.begin({})
    run.meta_path.rename(tmp_path / "fusion.meta.json")
    with pytest.raises(UserError, match="is the record of the run 'Fusion', not of 'fusion'"):
        RunFile(tmp_path, "fusion", CONFIGURATION)


def finished_run(folder: Path, *lines: dict[str, Any]) -> RunFile:
    run = RunFile(folder, "fusion", CONFIGURATION)
    run.begin({})
    run.append(lines)
    run.finish([line["id"] for line in lines], {"finished": True})
    return RunFile(folder, "fusion", CONFIGURATION)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ("\ufeff", "", []),
        ("", "<<<<<<< garbage\n", []),
        ("", "{}\n", []),
        ("", json.dumps(line(1), ensure_ascii=False) + "\n", []),
        ("", json.dumps({**line(1), "predicted_answer": "forged"}) + "\n", [1]),
    ],
    ids=["byte order mark", "garbage", "no row", "a row twice", "two answers of a row"],
)
def test_a_finished_file_that_was_edited_is_mended(tmp_path: Path, before: str, after: str, lost: list[int]) -> None:
    """Rows that are in order stay. If a row has two different answers, the row is answered again."""
    run = finished_run(tmp_path, line(0), line(1))
    whole = run.path.read_bytes()
    assert run.is_finished([0, 1])
    run.path.write_text(before + run.path.read_text(encoding="utf-8") + after, encoding="utf-8")
    edited = RunFile(tmp_path, "fusion", CONFIGURATION)
    assert not edited.is_finished([0, 1])
    assert edited.missing([0, 1]) == lost
    edited.begin({})
    if lost:
        edited.append([line(1)])
    edited.finish([0, 1], {"finished": True})
    assert edited.path.read_bytes() == whole
    assert RunFile(tmp_path, "fusion", CONFIGURATION).is_finished([0, 1])


@pytest.mark.parametrize(
    "change",
    [{"weights": [float("nan")]}, {"weights": None}, {"adapters": [3], "weights": [1]}, {"adapters": ["a"]}],
)
def test_a_line_that_no_table_could_read_is_no_answer(tmp_path: Path, change: dict[str, Any]) -> None:
    run = finished_run(tmp_path, line(0), {**line(1), **change})
    assert run.missing([0, 1]) == [1]
    assert not run.is_finished([0, 1])


def test_a_line_that_answers_another_row_is_no_answer(tmp_path: Path) -> None:
    rows = {0: {"id": 0, "inputs": "caf\u00e9\n"}, 1: {"id": 1, "inputs": "tea"}}
    run = finished_run(tmp_path, {**line(0), "inputs": "cafe\u0301\r\n"}, {**line(1), "inputs": "coffee"})
    run.check_rows(rows)
    assert run.missing([0, 1]) == [1]
    assert not run.is_finished([0])


def test_half_a_surrogate_pair_in_a_row_is_written_and_read_again(tmp_path: Path) -> None:
    run = finished_run(tmp_path, {**line(0), "targets": "half \ud83d of a pair"}, line(1))
    assert run.lines[0]["targets"] == "half \ud83d of a pair"
    assert run.is_finished([0, 1])


def test_files_set_aside_are_kept_whole_and_the_run_begins_anew(tmp_path: Path) -> None:
    run = finished_run(tmp_path, line(0))
    content = [run.path.read_bytes(), run.meta_path.read_bytes()]
    for _ in range(2):
        run = finished_run(tmp_path, line(0))
        run.set_aside()
        assert RunFile(tmp_path, "fusion", CONFIGURATION).lines == {}
    folders = sorted((tmp_path / "earlier").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert [(folder / name).read_bytes() for name in ("fusion.jsonl", "fusion.meta.json")] == content


@pytest.mark.parametrize("step", ["replace", "unlink"])
def test_setting_aside_that_was_interrupted_leaves_rows_and_record_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run = finished_run(tmp_path, line(0))
    content = [run.path.read_bytes(), run.meta_path.read_bytes()]

    def failing(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(FolderError):
        if step == "replace":
            original = os.replace
            moved = lambda source, target: (failing if Path(source) == run.path else original)(source, target)  # noqa: E731
            patch.setattr(os, "replace", moved)
        else:
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: None if missing_ok else failing())
        run.set_aside()
    again = RunFile(tmp_path, "fusion", CONFIGURATION)
    assert bool(again.lines) == (step == "replace")
    if again.lines:
        again.set_aside()
    (folder,) = (tmp_path / "earlier").iterdir()
    assert [(folder / name).read_bytes() for name in ("fusion.jsonl", "fusion.meta.json")] == content
    assert len(list(folder.iterdir())) == 2


def test_answers_of_unknown_making_are_refused(tmp_path: Path) -> None:
    (tmp_path / "fusion.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"has no fusion\.meta\.json beside it"):
        RunFile(tmp_path, "fusion", CONFIGURATION)


def test_differences_are_found_at_any_depth() -> None:
    assert differences({"a": {"b": {"c": 1}}, "d": 2}, {"a": {"b": {"c": 5}}, "d": 2}) == ["a.b.c: 1 → 5"]
    assert differences({"a": 1}, {"a": 1}) == []
