"""How a command ends: signals, closed pipes, full disks, missing packages, errors that nobody foresaw."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Forked
from places import ROOT

from lora_retriever import cli
from lora_retriever.backends.local import LocalBackend
from lora_retriever.backends.signals import keeping_handlers, stopping_on_signals
from lora_retriever.cli import main
from lora_retriever.commands import methods as methods_command
from lora_retriever.errors import StoppedError
from lora_retriever.generation.loop import Event, Loop


def slow_answers() -> None:
    """Let every step of the engine take 0.05 seconds, and the backend say that it is closed."""
    step, close = Loop.step, LocalBackend.close

    def slow(self: Loop) -> list[Event]:
        time.sleep(0.05)
        return step(self)

    def closing(self: LocalBackend) -> None:
        print("closed", flush=True)
        close(self)

    Loop.step, LocalBackend.close = slow, closing  # type: ignore[method-assign]


def start_slow_run(folder: Path, before: Callable[[], object] = lambda: None) -> Forked:
    """A run that takes half a minute, once its first rows are on disk."""
    arguments = ["run", "--only", "best_selection", "--results", str(folder / "results")]
    process = Forked(arguments, folder, lambda: (slow_answers(), before()))
    process.wait_for(folder / "results" / "best_selection.jsonl.partial")
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "lora-retriever: stopped; what is done so far is on disk"),
        (signal.SIGTERM, 143, "lora-retriever: stopped by SIGTERM; what is done so far is on disk"),
        (signal.SIGHUP, 129, "lora-retriever: stopped by SIGHUP; what is done so far is on disk"),
    ],
)
def test_a_signal_closes_the_backend_and_says_that_the_run_goes_on(
    tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    with start_slow_run(tmp_path) as process:
        process.send_signal(number)
        assert process.wait() == status, process.errors
    assert said in process.errors
    assert "Traceback" not in process.errors
    assert process.output == "closed\n"
    lines = (tmp_path / "results" / "best_selection.jsonl.partial").read_bytes().count(b"\n")
    assert 0 < lines < 570
    assert [path.name for path in (tmp_path / "results").glob(".*")] == [".lock"]


@pytest.mark.long
def test_a_run_under_nohup_ignores_sighup(tmp_path: Path) -> None:
    with start_slow_run(tmp_path, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143


@pytest.mark.slow
def test_a_run_whose_terminal_output_is_closed_goes_on_to_its_end(tmp_path: Path) -> None:
    """`lora-retriever run 2>&1 | head -1` must not stop the run: the run goes on to its end."""
    arguments = ["run", "--only", "best_selection", "--limit", "1", "--results", str(tmp_path)]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with Forked(arguments, tmp_path, stdout=writing, stderr=writing) as process:
            assert process.wait() == 0
    finally:
        os.close(writing)
    assert (tmp_path / "best_selection.jsonl").read_bytes().count(b"\n") == 19


@pytest.mark.slow
def test_a_reader_that_has_read_enough_is_no_error() -> None:
    code = "import sys\nfrom lora_retriever.commands import methods\n"
    code += "methods.to_text = lambda *_: 'line\\n' * 100_000\n"
    code += "from lora_retriever.cli import main\nsys.exit(main(['methods']))"
    command = f"{sys.executable} -c {shlex.quote(code)} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["line", "0"]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lora_retriever", "methods"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "lora-retriever: standard output cannot be written (No space left on device)\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_error_stops_nothing(tmp_path: Path) -> None:
    arguments = ["run", "--only", "best_selection", "--limit", "1", "--results", str(tmp_path)]
    with Path("/dev/full").open("w") as full, Forked(arguments, tmp_path, stderr=full.fileno()) as process:
        assert process.wait() == 0
    assert (tmp_path / "best_selection.jsonl").exists()


def test_an_error_that_nobody_foresaw_is_one_line_and_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*_: object) -> int:
        raise ZeroDivisionError("division by \x1b[31mzero\nand more")

    monkeypatch.setattr(methods_command, "run", failing)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert main(["methods"]) == 2
    (log,) = tmp_path.iterdir()
    assert capsys.readouterr().err == (
        "lora-retriever: unexpected error: ZeroDivisionError: division by \\x1b[31mzero; the traceback is in "
        f"{log}, please report it\n"
    )
    assert "Traceback (most recent call last)" in log.read_text()
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert main(["methods"]) == 2
    assert "unexpected error: ZeroDivisionError" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'nevergrad'", name="nevergrad")

    monkeypatch.setattr(methods_command, "run", failing)
    assert main(["methods"]) == 2
    message = capsys.readouterr().err
    assert "the Python package 'nevergrad' is not installed" in message
    assert "make .venv/installed" in message
    assert message.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-m", "lora_retriever", "methods"], ["summarize_results.py"]])
def test_without_the_packages_each_command_says_what_to_do(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )  # -S: a Python without installed packages
    if command[0].endswith(".py") and (ROOT / ".venv" / "bin" / "python").exists():
        assert "Traceback" not in done.stderr  # the script went on in .venv
        return
    assert done.returncode == 2
    assert "is not installed" in done.stderr
    assert "make .venv/installed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_script_goes_on_with_the_project_s_environment(tmp_path: Path) -> None:
    """`python summarize_results.py` in a plain shell after `make eval`."""
    (tmp_path / "summarize_results.py").write_bytes((ROOT / "summarize_results.py").read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$0 $*"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "summarize_results.py"), "results", "--by-task"],
        capture_output=True,
        text=True,
        cwd=tmp_path.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.stdout == f"{python} {tmp_path / 'summarize_results.py'} results --by-task\n"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["./lora-retriever", "link", "eval_all.sh"])
def test_the_launcher_works_from_anywhere(tmp_path: Path, way: str) -> None:
    command = [str(ROOT / "lora-retriever"), "--version"]
    if way == "link":
        (tmp_path / "l r").symlink_to(ROOT / "lora-retriever")
        command = [str(tmp_path / "l r"), "--version"]
    if way == "eval_all.sh":
        command = ["bash", str(ROOT / "eval_all.sh"), "--keep-answers", "--help"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("usage: lora-retriever run" if way == "eval_all.sh" else "lora-retriever ") in done.stdout


def test_signals_of_another_handler_come_back_and_ours_stay() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before
        with keeping_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ray.init does the same
        assert signal.getsignal(signal.SIGTERM) == ours
        with pytest.raises(StoppedError) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # a second SIGTERM does not interrupt the closing of backends
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # but a Ctrl-C interrupts the closing
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_that_a_library_made_another_error_of_still_stops() -> None:
    with pytest.raises(StoppedError) as stopped, stopping_on_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise ValueError("could not determine the shape") from interrupt
    assert stopped.value.signal == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_within_a_destructor_still_stops(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Python ignores an error that a destructor raises, and prints "Exception ignored"."""

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(number)

    former = sys.unraisablehook
    with pytest.raises(StoppedError) as stopped, stopping_on_signals():
        Interrupted()
        time.sleep(30)
    assert stopped.value.signal == number
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is former


@pytest.mark.slow
@pytest.mark.parametrize("place", ["replace_unwritable", "_flushed"])
def test_ctrl_c_before_and_after_the_command_gives_no_traceback(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, place, interrupted)
    assert main(["methods", "--profile", "tiny"]) == 130


def test_a_disk_that_fails_anywhere_is_one_line_that_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/results/base.jsonl")

    monkeypatch.setattr(methods_command, "run", fails)
    assert main(["methods"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("lora-retriever: /results/base.jsonl: the file server has lost the file (")
    assert message.count("\n") == 1


def test_ctrl_c_while_arguments_are_read_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_retriever.cli.build_parser", interrupted)
    assert main(["methods"]) == 130
    assert capsys.readouterr().err.startswith("lora-retriever: stopped;")
