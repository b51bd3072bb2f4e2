"""A failure costs as little as possible: one row, one method, or, if nothing else is possible, the rest of the run."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from nasty_names import NASTY_NAMES
from places import TINY
from rich.console import Console
from tiny_runs import before_reading

from lora_retriever.cli import main
from lora_retriever.errors import RunsFailedError, UserError
from lora_retriever.experiment.profile import PROFILES, Profile, load_profile
from lora_retriever.files import sweep_unfinished
from lora_retriever.methods import context as context_module
from lora_retriever.methods import find_methods
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import check_names
from lora_retriever.running.sweep import Variant, expand

QUIET = Console(file=io.StringIO())

OWN_METHODS = """
from dataclasses import dataclass
from lora_retriever.methods import Composition, Method


@dataclass(frozen=True)
class Broken:
    how: str = ""

    def route(self, context):
        if self.how == "raises":
            raise ZeroDivisionError("division by zero\\nand a second line")
        if self.how == "gives nothing":
            return None
        if self.how == "gives names":
            return ["passive" for _ in context.rows]
        if self.how == "gives too few":
            return []
        if self.how == "exits":
            raise OSError(2, "No such file or directory", "/my/own/file")
        return [Composition() for _ in context.rows]


def composes_nothing(pairs):
    raise KeyError("pairs")


def method(name, **parts):
    return Method(name=name, summary="s", citation="c", **parts)


HOWS = ("raises", "gives nothing", "gives names", "gives too few", "exits")
METHODS = [method(how.replace(" ", "_"), router=Broken(how)) for how in HOWS]
"""


def own_profile(folder: Path, **changes: Any) -> Path:
    """A profile with a user's own methods, which are all broken, and then `base`."""
    content = yaml.safe_load((PROFILES / "tiny.yaml").read_text().replace("./tiny/", f"{TINY}/"))
    (folder / "broken_methods.py").write_text(OWN_METHODS)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, "methods": ["base", "broken_methods:METHODS"], **changes}))
    return path


@pytest.mark.slow
def test_a_user_s_broken_method_costs_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    arguments = ["run", "--profile", str(own_profile(tmp_path)), "--results", str(results), "--limit", "1", "--table"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "mean over tasks" in printed.out
    assert (results / "runs.csv").read_text().count("\n") == 2
    assert json.loads((results / "base.meta.json").read_text())["finished"]
    assert "Traceback" not in printed.err
    for line in (
        "2 runs could not be finished; the others are done:\n",
        "raises: ZeroDivisionError: division by zero\n",
        "exits: FileNotFoundError: [Errno 2] No such file or directory: '/my/own/file'\n",
        "3 runs could not be begun; the others are done:\n",
        "gives_nothing: method gives_nothing: its router gave NoneType, and not a list of Composition\n",
        "gives_names: method gives_names: row 0: its router gave str, and not a Composition\n",
        "gives_too_few: method gives_too_few: its router gave 0 compositions for 19 rows\n",
        f"tracebacks are in {results / 'errors.log'}\n",
    ):
        assert line in printed.err
    log = (results / "errors.log").read_text()
    assert log.count("Traceback (most recent call last)") == 2
    assert 'raise ZeroDivisionError("division by zero\\nand a second line")' in log


@pytest.mark.slow
def test_an_encoder_that_fails_costs_the_methods_that_retrieve(
    tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x64 and 32x7)")

    monkeypatch.setattr(context_module, "load_encoder", failing)
    with pytest.raises(RunsFailedError) as error:
        evaluate(tiny, ["mixture", "base", "selection"], tmp_path, 1, QUIET)
    message = str(error.value)
    assert message.startswith("2 runs could not be finished; the others are done:\n")
    assert message.count("RuntimeError: mat1 and mat2 shapes cannot be multiplied (3x64 and 32x7)") == 2
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["base.jsonl"]


@pytest.mark.slow
def test_rows_that_fail_of_one_bug_have_one_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(prompts: Sequence[Any]) -> None:
        raise IndexError("index out of range in self")

    before_reading(monkeypatch, fail)
    results = tmp_path / "results"
    assert main(["run", "--only", "base", "--limit", "1", "--results", str(results)]) == 1
    message = capsys.readouterr().err
    assert "19 rows failed; the others are done:\n" in message
    assert message.count("index out of range in self") == 19
    assert f"tracebacks are in {results / 'errors.log'}" in message
    assert "Traceback" not in message
    assert (results / "errors.log").read_text().count("IndexError: index out of range in self") == 1


@pytest.mark.slow
def test_a_log_that_cannot_be_written_is_not_named(tmp_path: Path, tiny: Profile) -> None:
    (tmp_path / "errors.log").symlink_to(tmp_path / "elsewhere")
    profile = load_profile(str(own_profile(tmp_path)))
    with pytest.raises(RunsFailedError) as error:
        evaluate(profile, None, tmp_path / "results", 1, QUIET)
    assert "errors.log" in str(error.value)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "errors.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunsFailedError) as error:
        evaluate(profile, None, tmp_path / "second", 1, QUIET)
    assert "errors.log" not in str(error.value)
    assert "ZeroDivisionError" in str(error.value)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_broken_device_ends_the_run_and_what_is_done_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = iter(range(100))

    def fail(prompts: Sequence[Any]) -> None:
        if next(batches):
            raise RuntimeError("CUDA error: device-side assert triggered")

    before_reading(monkeypatch, fail)
    arguments = ["run", "--only", "base,best_selection,mixture", "--limit", "1", "--results", str(tmp_path), "--table"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "mixture: the device failed (RuntimeError: CUDA error: device-side assert triggered)" in printed.err
    assert "Start the same command again" in printed.err
    assert "mean over tasks" in printed.out
    assert not (tmp_path / "best_selection.meta.json").exists()


@pytest.mark.long
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EROFS, errno.EFBIG, errno.EDQUOT, errno.ENOSPC])
def test_a_disk_that_fails_in_mid_run_is_one_message_and_the_run_goes_on_later(
    tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    synced, calls = os.fsync, iter(range(100))

    def failing(descriptor: int) -> None:
        if next(calls) >= 3:
            raise OSError(code, os.strerror(code))
        synced(descriptor)

    small = tiny.model_copy(update={"generation": tiny.generation.model_copy(update={"batch_size": 4})})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(RunsFailedError, match=r"base: .* the rows written so far are safe"):
            evaluate(small, ["base", "best_selection"], tmp_path / "r", 1, QUIET)
    assert not (tmp_path / "r" / "best_selection.meta.json").exists()
    evaluate(small, ["base"], tmp_path / "r", 1, QUIET)
    evaluate(small, ["base"], tmp_path / "undisturbed", 1, QUIET)
    files = [(tmp_path / name / "base.jsonl").read_bytes() for name in ("r", "undisturbed")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_folder_removed_in_mid_run_ends_the_run_with_a_message(
    tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, moved = tmp_path / "results", tmp_path / "moved"
    small = tiny.model_copy(update={"generation": tiny.generation.model_copy(update={"batch_size": 4})})

    def move(prompts: list[list[int]]) -> None:
        if results.exists() and (results / "base.jsonl.partial").exists():
            results.rename(moved)

    before_reading(monkeypatch, move)
    with pytest.raises(RunsFailedError, match=f"the results folder {results} was removed or moved while the run was"):
        evaluate(small, ["base", "best_selection"], results, 1, QUIET)
    assert not results.exists()
    evaluate(small, ["base"], moved, 1, QUIET)
    assert len((moved / "base.jsonl").read_text(encoding="utf-8").splitlines()) == 19


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_finished_folder_on_a_disk_that_takes_nothing_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    arguments = ["run", "--only", "base", "--limit", "1", "--results", str(tmp_path), "--table"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    opened = os.open

    def refusing(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refusing)
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == table
    assert f"runs.csv could not be written into {tmp_path} ({os.strerror(code)})" in printed.err
    assert main([*arguments, "--only", "best_selection"]) == 2
    assert f"cannot be written ({os.strerror(code)})" in capsys.readouterr().err


@pytest.mark.slow
def test_left_over_files_of_dead_processes_are_swept_at_the_next_start(tmp_path: Path, tiny: Profile) -> None:
    learned = tmp_path / "learned" / "probing-0"
    learned.mkdir(parents=True)
    kill = (
        "import os; from pathlib import Path; from lora_retriever import files; os.replace = lambda *_: os._exit(1)\n"
    )
    for path in (tmp_path / "base.meta.json", learned / "figures.json"):
        subprocess.run([sys.executable, "-c", f"{kill}files.write_text(Path({str(path)!r}), 'half')"], check=False)
        assert len(list(path.parent.glob(".*"))) == 1
    evaluate(tiny, ["base"], tmp_path, 1, QUIET)
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]
    assert not list(learned.iterdir())
    assert sweep_unfinished(tmp_path) == []


def variants_named(profile: Profile, *names: str) -> list[Variant]:
    (base,) = expand(profile, find_methods(["base"]), [])
    return [Variant(name, base.method, base.profile) for name in names]


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/b", "", ".", "..", ".hidden", "a\0b", "x" * 190, "half\ud83d"])
def test_a_run_s_name_never_leads_out_of_its_folder(tiny: Profile, name: str) -> None:
    with pytest.raises(UserError, match=r"(?i)run .*(rename|another name)"):
        check_names(variants_named(tiny, "base", name))


def test_run_names_that_some_file_systems_take_for_one_are_refused(tiny: Profile) -> None:
    for one, other in (("Mixture", "mixture"), ("caf\u00e9", "cafe\u0301")):
        with pytest.raises(UserError, match="differ only by case or Unicode form"):
            check_names(variants_named(tiny, one, other))
    check_names(variants_named(tiny, "mixture", "mixture", "mixtures"))


def test_nasty_names_of_runs_are_refused_or_stay_in_their_folder(tiny: Profile, tmp_path: Path) -> None:
    for name in NASTY_NAMES:
        try:
            check_names(variants_named(tiny, name))
        except UserError:
            continue
        path = tmp_path / f"{name}.jsonl"
        path.write_text("")
        assert path.resolve().parent == tmp_path.resolve()
