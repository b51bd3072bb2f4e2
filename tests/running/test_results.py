"""A run's file survives whatever stops it, and never mixes configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_retriever.errors import UserError
from lora_retriever.running.run_file import RunFile, differences, locked

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
    assert f"rm {tmp_path / 'fusion'}.jsonl* {tmp_path / 'fusion'}.meta.json" in message


def test_answers_of_unknown_making_are_refused(tmp_path: Path) -> None:
    (tmp_path / "fusion.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"has no fusion\.meta\.json beside it"):
        RunFile(tmp_path, "fusion", CONFIGURATION)


def test_differences_are_found_at_any_depth() -> None:
    assert differences({"a": {"b": {"c": 1}}, "d": 2}, {"a": {"b": {"c": 5}}, "d": 2}) == ["a.b.c: 1 → 5"]
    assert differences({"a": 1}, {"a": 1}) == []


def test_a_second_process_on_the_same_folder_is_told_so(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lora_retriever.running.run_file import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path):  # the lock went with the process
            pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file" / "results"):
        pass
