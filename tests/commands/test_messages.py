"""`-v`, `-q` and `--log-file`: which messages of a command go to the terminal, and which to the log file."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from lora_retriever.cli import main
from lora_retriever.commands import methods as command
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich
from lora_retriever.progress import progress_bar


def speaking(args: argparse.Namespace, console: Console) -> int:
    """A command that writes a message of every kind."""
    console.print(for_rich("a note [of] ours"))
    with progress_bar(console, "step", 2, text="0/2") as bar:
        bar.move_to(2, "2/2")
    logging.getLogger("some_library").info("a library\x1b[2J speaks")
    warnings.warn("a library warns", stacklevel=1)
    print("the result")
    return 0


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run", speaking)


IN_THE_LOG = (
    "arguments: ['methods'",
    "step: begins 0/2",
    "step: done, 2/2",
    "speaks",
    "UserWarning: a library warns",
    "status 0",
)


@pytest.mark.slow
def test_a_librarys_warnings_stay_off_the_terminal_and_ours_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    program = """
import logging, sys, warnings
from lora_retriever.cli import main
from lora_retriever.commands import methods
from peft_composition import AdapterWarning

def run(args, console):
    warnings.warn("a library warns")
    logging.getLogger("some_library").warning("a library logs")
    warnings.warn("adapter 'x': it [adds] nothing", AdapterWarning)
    return 0

methods.run = run
sys.exit(main(["methods", *sys.argv[1:]]))
"""

    def said(*arguments: str) -> str:
        return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True).stderr

    assert said() == "adapter 'x': it [adds] nothing\n"
    verbose = said("-v")
    assert all(text in verbose for text in ("a library warns", "a library logs", "it [adds] nothing"))


@pytest.mark.usefixtures("say")
@pytest.mark.filterwarnings("ignore:a library warns")
def test_a_command_says_its_notes_and_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out, err = capsys.readouterr()
    assert out == "the result\n"
    assert "a note [of] ours" in err
    assert not any(text in err for text in IN_THE_LOG)


@pytest.mark.usefixtures("say")
def test_quiet_leaves_the_result_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert main(["methods", "-q", "--log-file", str(log)]) == 0
    assert capsys.readouterr() == ("the result\n", "")
    text = log.read_text()
    for part in (*IN_THE_LOG, "a note [of] ours"):
        assert text.count(part) == 1, part
    assert "\x1b" not in text
    assert "the result" not in text
    assert main(["methods", "--log-file", str(log)]) == 0
    assert log.read_text().startswith(text), "a log is appended to"


@pytest.mark.usefixtures("say")
def test_verbose_shows_the_log_and_every_note_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods", "-v"]) == 0
    out, err = capsys.readouterr()
    assert out == "the result\n"
    for part in (*IN_THE_LOG, "a note [of] ours"):
        assert err.count(part) == 1, part
    assert "\x1b[2J" not in err


def test_an_error_is_one_line_and_its_cause_is_in_the_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(args: argparse.Namespace, console: Console) -> int:
        raise UserError("no such row") from ValueError("the cause")

    monkeypatch.setattr(command, "run", fails)
    log = tmp_path / "log"
    assert main(["methods", "-q", "--log-file", str(log)]) == 2
    assert capsys.readouterr().err == "lora-retriever: no such row\n"
    text = log.read_text()
    assert "no such row (exit status 2)" in text
    assert "Traceback" in text and "ValueError: the cause" in text
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods", "-v"]) == 2
    err = capsys.readouterr().err
    assert "ValueError: the cause" in err and err.count("lora-retriever: no such row") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("say")
@pytest.mark.filterwarnings("ignore:a library warns")
def test_a_log_ends_with_its_command(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, [*root.handlers]
    assert main(["methods", "-v", "--log-file", str(tmp_path / "log")]) == 0
    assert (root.level, [*root.handlers]) == before
    size = (tmp_path / "log").stat().st_size
    assert main(["methods"]) == 0
    assert (tmp_path / "log").stat().st_size == size


def test_an_unusable_log_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["methods", "--log-file", str(tmp_path)]) == 2
    assert f"--log-file {tmp_path}: cannot be written (Is a directory)" in capsys.readouterr().err


@pytest.mark.usefixtures("say")
@pytest.mark.filterwarnings("ignore:a library warns")
def test_a_full_disk_behind_the_log_ends_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "-q", "--log-file", "/dev/full"]) == 0
    assert capsys.readouterr() == ("the result\n", "")
