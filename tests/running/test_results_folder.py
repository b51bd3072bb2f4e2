"""A results folder has one writer at a time, on every kind of file system, and every error of the disk is a message."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_retriever.errors import UserError
from lora_retriever.files import DISK_ERRORS
from lora_retriever.running import results_folder
from lora_retriever.running.results_folder import (
    NO_LOCKS,
    FolderError,
    folder_error,
    locked,
    writing_into,
)
from lora_retriever.running.run_file import RunFile

WITHOUT_FLOCK = (
    "import errno, fcntl, os\n"
    "def flock(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n"
    "fcntl.flock = flock\n"
)


@contextmanager
def holder(folder: Path, prelude: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    code = (
        f"{prelude}import sys; from pathlib import Path; from lora_retriever.running.results_folder import locked\n"
        f"with locked(Path({str(folder)!r})): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait()


def without_flock(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.slow
def test_a_second_process_on_the_same_folder_is_told_so(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match=f"in use by process {process.pid};"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):  # the lock went with the process
            pass
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.slow
def test_without_flock_a_second_process_is_told_so_and_a_killed_one_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch)
    with holder(tmp_path, WITHOUT_FLOCK) as process:
        message = rf"in use by process {process.pid};.*has no locks .*rm {tmp_path}/\.lock\.owner"
        with pytest.raises(UserError, match=message), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path) as folder:
            folder.require_writable()
            assert (tmp_path / ".lock.owner").exists()
    assert not (tmp_path / ".lock.owner").exists()


@pytest.mark.slow
@pytest.mark.parametrize("written", ["", "{pid}", "{pid}\n", "{pid}\nmach", "{pid}\nmachine\n27455"])
def test_without_flock_a_lock_that_a_killed_process_left_unfinished_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    without_flock(monkeypatch)
    monkeypatch.setattr(results_folder, "UNFINISHED_SECONDS", 0.1)
    (tmp_path / ".lock.owner").write_text(written.format(pid=os.getpid()), newline="")
    with locked(tmp_path) as folder:
        folder.require_writable()
        assert (tmp_path / ".lock.owner").read_text().startswith(f"{os.getpid()}\n")


@pytest.mark.slow
def test_without_flock_a_lock_into_which_its_process_is_just_writing_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch)
    lock = tmp_path / ".lock.owner"
    lock.touch()
    threading.Timer(0.2, lock.write_text, [f"{os.getpid()}\n{socket.gethostname()}\n"]).start()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()};"), locked(tmp_path):
        pass


@pytest.mark.parametrize("code", NO_LOCKS)
def test_a_file_system_without_locks_is_no_file_system_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    without_flock(monkeypatch, code)
    with locked(tmp_path), pytest.raises(UserError, match="is in use"), locked(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_lock_is_neither_followed_nor_changed(tmp_path: Path, kind: str) -> None:
    target, lock = tmp_path / "thesis.tex", tmp_path / "results" / ".lock"
    lock.parent.mkdir()
    if kind != "dangling link":
        target.write_text("five years of work")
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(target)
    with pytest.raises(UserError, match=r"is not a lock that this command made.*Remove it: rm -r"), locked(lock.parent):
        pass
    assert target.exists() == (kind != "dangling link")
    assert kind == "dangling link" or target.read_text() == "five years of work"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "results", Path("/proc/nowhere"), tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="cannot be written"), locked(path):
            pass


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_can_only_be_read_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    opened = os.open

    def refusing(path: str | Path, *arguments: int) -> int:
        if Path(path).name == ".lock":
            raise OSError(code, os.strerror(code))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refusing)
    with locked(tmp_path) as folder, pytest.raises(UserError, match=rf"cannot be written \({os.strerror(code)}\)"):
        folder.require_writable()


@pytest.mark.parametrize("code", [*DISK_ERRORS, errno.EACCES, errno.EPERM])
def test_every_error_of_the_disk_is_one_message_that_says_what_is_safe(tmp_path: Path, code: int) -> None:
    message = str(folder_error(tmp_path, OSError(code, os.strerror(code))))
    assert str(tmp_path) in message
    assert os.strerror(code) in message
    assert "the rows written so far are safe" in message
    with pytest.raises(FolderError), writing_into(tmp_path):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("step", ["append", "finish", "record"])
def test_a_folder_that_was_moved_is_not_made_anew(tmp_path: Path, step: str) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    run = RunFile(folder, "fusion", {})
    run.begin({})
    run.append([{"id": 0, "predicted_answer": "a"}])
    folder.rename(tmp_path / "moved")
    steps = {
        "append": lambda: run.append([{"id": 1, "predicted_answer": "b"}]),
        "finish": lambda: run.finish([0], {}),
        "record": lambda: run.record(code={}),
    }
    with pytest.raises(FolderError, match="was removed or moved while the run was going on"):
        steps[step]()
    assert not folder.exists()
