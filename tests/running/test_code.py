"""Answers of other code never count as answers of this code: every run records its code, and every start compares."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from rich.console import Console
from tiny_runs import before_reading

import lora_retriever
from lora_retriever.backends import BACKENDS
from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods import code as method_code
from lora_retriever.methods import find_methods, registered
from lora_retriever.running import code as running_code
from lora_retriever.running.code import BACKEND_FILES, answering_hashes, code_hashes
from lora_retriever.running.evaluate import evaluate

QUIET = Console(file=io.StringIO())
PACKAGE = Path(lora_retriever.__file__).parent


def record_of(results: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((results / f"{name}.meta.json").read_text())
    return record


def edit_code(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    """Let some source files have other hashes, as after an edit."""
    original = method_code.hash_of

    def edited(path: Path) -> str:
        return "edited" if path.as_posix().endswith(files) else original(path)

    monkeypatch.setattr(method_code, "hash_of", edited)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each batch that the model reads."""
    sizes: list[int] = []
    before_reading(monkeypatch, lambda prompts: sizes.append(len(prompts)))
    return sizes


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, tiny: Profile) -> Path:
    """Two finished runs, answered by the present code."""
    results = tmp_path_factory.mktemp("answered")
    evaluate(tiny, ["base", "selection"], results, 1, QUIET)
    return results


@pytest.fixture
def results(answered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(answered, tmp_path / "results"))


# Which files count


def test_the_code_of_a_method_is_its_own_file_its_parts_and_what_all_methods_share() -> None:
    common = {
        "lora_retriever/generation/passes.py",
        "lora_retriever/generation/prompt.py",
        "lora_retriever/data/rows.py",
        "lora_retriever/methods/base.py",
        "lora_retriever/methods/context.py",
        "lora_retriever/running/plan.py",
        "lora_retriever/running/answering.py",
        "lora_retriever/backends/local.py",
        "peft_composition/pairs.py",
    }
    retrieval = {"lora_retriever/retrieval/index.py", "lora_retriever/retrieval/scorers/means.py"}
    own = {
        "base": {"paper"},
        "mixture": {"parts/top_k"},
        "arrow": {"arrow", "parts/everything", "parts/weighing", "parts/spectral"},
        "moe_soft": {"moe", "parts/experts", "parts/gate_training", "parts/weighing"},
        "lorahub": {"lorahub", "parts/lorahub_weights"},
    }
    for name, parts in own.items():
        files = code_hashes(registered()[name]).keys()
        assert common <= files, common - files
        assert (retrieval <= files) == (name == "mixture")
        methods = {file.removeprefix("lora_retriever/methods/") for file in files if "/methods/" in file}
        assert {f"{part}.py" for part in parts} <= methods
        assert not methods & {"simple.py", "smear.py", "calibrated.py"}
        assert not any(file.split("/")[1] in ("report", "analysis", "commands", "metrics") for file in files)


def test_hashes_are_those_of_the_files_bytes() -> None:
    import hashlib

    for name, digest in code_hashes(registered()["mixture"]).items():
        folder = PACKAGE.parent if name.startswith("lora_retriever/") else ROOT / "peft"
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_every_backend_s_files_are_known() -> None:
    assert BACKEND_FILES.keys() == BACKENDS.keys()
    for backend, files in BACKEND_FILES.items():
        assert f"{BACKENDS[backend].module.rpartition('.')[2]}.py" in files
        assert all((PACKAGE / "backends" / file).is_file() for file in files)
        assert f"lora_retriever/backends/{files[0]}" in answering_hashes(backend)


def test_a_user_s_own_method_counts_with_the_modules_beside_it(tmp_path: Path) -> None:
    (tmp_path / "owncode_a.py").write_text(
        "from dataclasses import dataclass\nfrom lora_retriever.methods import Composition, Method\n"
        "from owncode_package.deep import choose\n\n"
        "@dataclass(frozen=True)\nclass Mine:\n    def route(self, context):\n"
        "        return [Composition(choose()) for _ in context.rows]\n\n"
        "METHOD = Method(name='mine', summary='s', citation='c', router=Mine())\n"
    )
    package = tmp_path / "owncode_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("from . import deeper\n\ndef choose():\n    return deeper.CHOICE\n")
    (package / "deeper.py").write_text("CHOICE = {}\n")
    (tmp_path / "unrelated.py").write_text("")
    (method,) = find_methods(["owncode_a:METHOD"], folder=tmp_path)
    files = code_hashes(method)
    assert {"owncode_a.py", "owncode_package/deep.py", "owncode_package/deeper.py"} <= files.keys()
    assert "unrelated.py" not in files
    (package / "deeper.py").write_text("CHOICE = {'passive': 1.0}\n")
    assert method_code.changes(files, code_hashes(method)) == ["owncode_package/deeper.py"]


@pytest.mark.slow
def test_code_is_found_without_torch() -> None:
    code = (
        "import sys\nfrom lora_retriever.methods.code import hashes_of, GENERATION, part_hashes\n"
        "assert len(hashes_of(GENERATION)) > 20\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Records


@pytest.mark.slow
def test_a_record_has_the_code_and_the_commit(answered: Path) -> None:
    for name in ("base", "selection"):
        code = record_of(answered, name)["code"]
        assert code["files"] == code_hashes(registered()[name])
        assert "kept" not in code
        if (ROOT / ".git").exists() and shutil.which("git"):
            head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
            assert code["commit"] == head.stdout.strip()
            assert isinstance(code["dirty"], bool)


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_no_commit_is_recorded(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    running_code.checkout_state.cache_clear()
    monkeypatch.setattr(running_code.subprocess, "run", failing)
    assert running_code.checkout_state() == {}
    running_code.checkout_state.cache_clear()


# Changed code


@pytest.mark.slow
def test_runs_of_equal_code_are_up_to_date(results: Path, tiny: Profile, counted: list[int]) -> None:
    evaluate(tiny, ["base", "selection"], results, 1, QUIET)
    assert counted == []


@pytest.mark.slow
def test_runs_of_other_code_are_refused_and_the_files_that_changed_are_named(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    edit_code(monkeypatch, "generation/passes.py", "retrieval/encoding.py")
    arguments = ["run", "--limit", "1", "--results", str(results), "--only", "base,selection,fusion"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"2 runs in {results} were answered by other code than this" in message
    assert "base: changed since: lora_retriever/generation/passes.py\n" in message
    both = "lora_retriever/generation/passes.py, lora_retriever/retrieval/encoding.py"
    assert f"selection: changed since: {both}\n" in message
    assert "--answer-anew" in message
    assert "--keep-answers" in message
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


@pytest.mark.slow
def test_code_that_does_not_concern_a_method_does_not_concern_its_runs(
    results: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    edit_code(monkeypatch, "parts/weighing.py", "methods/arrow.py", "report/use.py", "retrieval/index.py")
    evaluate(tiny, ["base"], results, 1, QUIET)
    assert counted == []
    with pytest.raises(UserError, match=r"^1 runs in .*\nselection: changed since"):
        evaluate(tiny, ["base", "selection"], results, 1, QUIET)


def without_code(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "code"}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [without_code, lambda record: {**record, "code": "?"}], ids=["none", "damaged"])
def test_a_run_that_does_not_say_which_code_made_it_counts_as_made_by_other_code(
    results: Path, tiny: Profile, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    (results / "base.meta.json").write_text(json.dumps(spoil(record_of(results, "base"))))
    with pytest.raises(UserError, match=r"base: their records do not say which code made them"):
        evaluate(tiny, ["base", "selection"], results, 1, QUIET)


@pytest.mark.slow
def test_kept_answers_are_recorded_and_stay_until_the_code_changes_again(
    results: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    answers = (results / "base.jsonl").read_bytes()
    first = record_of(results, "base")
    with monkeypatch.context() as patch:
        edit_code(patch, "generation/passes.py")
        evaluate(tiny, ["base"], results, 1, QUIET, on_changed_code="keep")
        second = record_of(results, "base")
        evaluate(tiny, ["base"], results, 1, QUIET)
    assert counted == []
    assert (results / "base.jsonl").read_bytes() == answers
    assert without_code(second) == without_code(first)
    assert second["code"]["files"]["lora_retriever/generation/passes.py"] == "edited"
    (kept,) = second["code"]["kept"]
    assert kept["files"] == first["code"]["files"]
    assert kept["rows"] == len(answers.splitlines())
    with pytest.raises(UserError, match=r"base: changed since: lora_retriever/generation/passes\.py"):
        evaluate(tiny, ["base"], results, 1, QUIET)  # the first code again, but the record has the second


@pytest.mark.slow
def test_a_run_answered_anew_equals_its_earlier_self_and_nothing_is_lost(
    results: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "base.meta.json").write_text(json.dumps(without_code(record_of(results, "base"))))
    before = {path.name: path.read_bytes() for path in results.glob("*.json*")}
    evaluate(tiny, ["base", "selection"], results, 1, QUIET, on_changed_code="anew")
    (earlier,) = (results / "earlier").iterdir()
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == {
        name: before[name] for name in ("base.jsonl", "base.meta.json")
    }
    assert {path.name: path.read_bytes() for path in results.glob("*.jsonl")} == {
        name: before[name] for name in ("base.jsonl", "selection.jsonl")
    }
    assert record_of(results, "base")["code"]["files"] == code_hashes(registered()["base"])
    evaluate(tiny, ["base", "selection"], results, 1, QUIET)


@pytest.mark.slow
def test_a_partial_run_does_not_go_on_with_other_code_unless_that_is_asked_for(
    results: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    lines = (results / "base.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (results / "base.jsonl.partial").write_text("".join(lines[:3]), encoding="utf-8")
    (results / "base.jsonl").unlink()
    edit_code(monkeypatch, "peft_composition/pairs.py")
    with pytest.raises(UserError, match=r"base: changed since: peft_composition/pairs\.py"):
        evaluate(tiny, ["base"], results, 1, QUIET)
    assert counted == []
    evaluate(tiny, ["base"], results, 1, QUIET, on_changed_code="keep")
    assert (results / "base.jsonl").read_text(encoding="utf-8") == "".join(lines)
    assert record_of(results, "base")["code"]["kept"][0]["rows"] == 3
    assert record_of(results, "base")["finished"]


@pytest.mark.long
def test_answers_are_taken_from_another_run_only_if_equal_code_made_them(
    results: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reused() -> int:
        evaluate(tiny, ["best_selection"], results, 1, QUIET)
        count: int = record_of(results, "best_selection")["timings"]["reused"]
        for path in results.glob("best_selection*"):
            path.unlink()
        return count

    assert reused() > 0
    with monkeypatch.context() as patch:
        edit_code(patch, "methods/paper.py", "parts/top_k.py")  # these files choose adapters, and make no answer
        assert reused() > 0
    with monkeypatch.context() as patch:
        edit_code(patch, "generation/passes.py")
        assert reused() == 0
        evaluate(tiny, ["selection"], results, 1, QUIET, on_changed_code="keep")
        assert reused() == 0  # kept answers still count as answers of other code
    (results / "selection.meta.json").write_text(json.dumps(without_code(record_of(results, "selection"))))
    assert reused() == 0


def test_the_two_options_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["run", "--keep-answers", "--answer-anew"])
    assert exit.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.slow
def test_what_other_code_learned_is_learned_anew(
    tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"lorahub": {"adapters": 2, "samples": 1, "steps": 1}}
    small = tiny.model_copy(update={"options": options})
    evaluate(small, ["lorahub"], tmp_path, 1, QUIET)
    edit_code(monkeypatch, "parts/lorahub_weights.py")
    evaluate(small, ["lorahub"], tmp_path, 1, QUIET, on_changed_code="keep")
    assert len(list((tmp_path / "learned").iterdir())) == 1
    evaluate(small, ["lorahub_ood"], tmp_path, 1, QUIET)
    assert len(list((tmp_path / "learned").iterdir())) == 2
