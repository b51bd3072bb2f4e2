"""Bad inputs of every kind, a part of the campaign's table: one message, the right exit status, and nothing left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from campaign.bad_inputs import all_cases, spread
from campaign.inputs import Case, files_in, make_benchmark, problems_of_files, problems_of_output
from places import ROOT

from lora_retriever.cli import main

IN_PROCESS = 30
"""Number of cases of the table that these tests try. `make campaign` tries all."""
WITHOUT_MODELS = ("rows", "pool", "profile", "adapter", "results", "index", "embeddings", "arguments")
"""Kinds whose bad inputs are found before a model is loaded."""
CASES = spread([case for case in all_cases() if case.kind in WITHOUT_MODELS], IN_PROCESS)


def status_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as exit:  # argparse's own
        return exit.code if isinstance(exit.code, int) else 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key[:80])
def test_a_bad_input_is_one_message_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: Case
) -> None:
    make_benchmark(tmp_path, case.copies)
    case.spoil(tmp_path)
    before = files_in(tmp_path)
    status = status_of(case.arguments(tmp_path))
    out, err = capfd.readouterr()
    assert problems_of_output(case, status, out + err) + problems_of_files(case, tmp_path, before) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", spread([case for case in CASES if case.kind == "rows"], 1), ids=lambda case: case.name)
def test_a_bad_input_ends_a_process_of_its_own_alike(tmp_path: Path, case: Case) -> None:
    make_benchmark(tmp_path, case.copies)
    case.spoil(tmp_path)
    before = files_in(tmp_path)
    command = [sys.executable, "-m", "lora_retriever", *case.arguments(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    found = problems_of_output(case, done.returncode, done.stdout + done.stderr)
    assert found + problems_of_files(case, tmp_path, before) == []


def test_the_table_has_cases_of_every_kind() -> None:
    kinds = [case.kind for case in all_cases()]
    assert len(kinds) >= 250
    assert all(kinds.count(kind) >= 25 for kind in {*WITHOUT_MODELS, "base", "encoder"})


@pytest.mark.slow
def test_the_benchmark_that_is_spoilt_works(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_benchmark(tmp_path)
    arguments = Case("none", "unspoilt", lambda folder: None, ()).arguments(tmp_path)
    assert main(arguments) == 0
    assert (tmp_path / "results" / "best_selection.jsonl").read_text().count("\n") == 8


def test_what_a_case_forbids_is_seen(tmp_path: Path) -> None:
    """The checks that this file's tests use find every kind of problem."""
    case = Case("rows", "a case", lambda folder: None, ("rows.json", "empty|blank"))
    good = "lora-retriever: rows.json: is empty\n"
    assert problems_of_output(case, 2, good) == []
    for status, text in (
        (0, good), (1, good), (2, good + good), (2, "lora-retriever: rows.json: is bad\n"), (2, "Traceback\n" + good),
        (2, good + "x" * 10_000), (2, "lora-retriever: unexpected error: rows.json is empty\n"), (2, good + "\x1b[2J"),
    ):  # fmt: skip
        assert problems_of_output(case, status, text)
    before = files_in(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "base.jsonl").write_text("")
    assert problems_of_files(case, tmp_path, before) == ["results/base.jsonl was left behind"]
