"""Files are written whole or not at all, and no other file is replaced; hashes are remembered."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nasty_names import NASTY_NAMES
from places import TINY

from lora_retriever import files
from lora_retriever.errors import UserError
from lora_retriever.files import (
    HASHES_FILE,
    cache_folder,
    hash_files,
    hash_path,
    new_folder,
    read_bytes,
    safe_name,
    sweep_unfinished,
    write_bytes,
    write_json,
    write_text,
    writing,
)

HALF = "half \ud83d"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_and_its_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "x.txt", "text\u2028")
    assert (tmp_path / "a" / "b" / "x.txt").read_text(encoding="utf-8") == "text\u2028"
    assert names_in(tmp_path / "a" / "b") == ["x.txt"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    monkeypatch.setattr(call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["x.txt"]


def test_a_new_folder_appears_when_it_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "adapters" / "dart"
    with new_folder(out) as unfinished:
        assert not unfinished.exists()
        unfinished.mkdir()
        (unfinished / "file").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["dart"]
    assert (out / "file").read_text() == "whole"


def test_a_folder_that_is_not_filled_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "adapters" / "dart"
    with pytest.raises(ZeroDivisionError), new_folder(out) as unfinished:
        unfinished.mkdir()
        (unfinished / "file").write_text("half")
        print(1 / 0)
    assert [*out.parent.iterdir()] == []


def test_a_folder_with_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "dart").mkdir()
    (tmp_path / "dart" / "file").write_text("old")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "dart") as unfinished:
        unfinished.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["dart"]
    assert (tmp_path / "dart" / "file").read_text() == "old"


def test_half_of_a_surrogate_pair_is_written_escaped(tmp_path: Path) -> None:
    content = {"text": HALF, HALF: ["\u2028", "\x1b", "\0", "é"]}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == content
    write_text(tmp_path / "x.txt", HALF)
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == r"half \ud83d"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "x.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o666])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    path.chmod(mode)
    write_text(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_a_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    os.chown(path, 12345, 23456)
    path.chmod(0o6644)
    write_text(path, "new")
    found = path.stat()
    assert (path.read_text(), found.st_uid, found.st_gid) == ("new", 12345, 23456)
    assert stat.S_IMODE(found.st_mode) == 0o6644


def test_a_link_stays_and_the_file_behind_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "x.txt").write_text("old")
    for name, target in [("link", "target/x.txt"), ("link to link", "link"), ("new", "target/new.txt")]:
        (tmp_path / name).symlink_to(target)
    write_text(tmp_path / "link to link", "new")
    write_text(tmp_path / "new", "made")
    assert (tmp_path / "target" / "x.txt").read_text() == "new"
    assert (tmp_path / "target" / "new.txt").read_text() == "made"
    assert all((tmp_path / name).is_symlink() for name in ("link", "link to link", "new"))
    assert names_in(tmp_path / "target") == ["new.txt", "x.txt"]


def test_a_device_stays_a_device() -> None:
    before = os.stat("/dev/null")
    write_text(Path("/dev/null"), "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_ino == before.st_ino
    with pytest.raises(UserError, match="/dev/full: cannot be written"), writing(Path("/dev/full")):
        write_text(Path("/dev/full"), "text")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "LINK"])
@pytest.mark.parametrize("to", ["file", "pipe"])
def test_standard_output_is_written_to_between_what_is_printed(tmp_path: Path, path: str, to: str) -> None:
    """A shell's `> file` must get all of the output, and in order."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from lora_retriever.files import write_text\n"
        "print('before'); write_text(Path(sys.argv[1]), 'between\\n'); print('after')"
    )
    command = [sys.executable, "-c", code, path.replace("LINK", str(tmp_path / "link"))]
    if to == "pipe":
        written = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    else:
        with (tmp_path / "out.txt").open("wb") as out:
            subprocess.run(command, check=True, stdout=out)
        written = (tmp_path / "out.txt").read_bytes()
        assert names_in(tmp_path) == ["link", "out.txt"]
    assert written == b"before\nbetween\nafter\n"


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    # The pipe has a writer, so that a reader that opens the pipe does not wait for ever.
    threading.Thread(target=pipe.write_text, args=("text",), daemon=True).start()
    for path, kind in ((pipe, "a pipe"), (link, "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"this is {kind}; name a file"):
            read_bytes(path, 4)
    (tmp_path / "file").write_bytes(b"content")
    assert read_bytes(tmp_path / "file", 4) == b"cont"
    assert read_bytes(tmp_path / "file") == b"content"


def test_a_pipe_is_written_to_and_one_that_nobody_reads_is_an_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"pipe: cannot be written \(no process reads from this pipe\)"), writing(pipe):
        write_text(pipe, "text")
    text, read = "text" * 100_000, []
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)

    def reader() -> None:
        with os.fdopen(descriptor, "rb") as file:
            read.append(file.read().decode())

    thread = threading.Thread(target=reader)
    held_open = os.open(pipe, os.O_WRONLY)  # without a writer, the reader would end at once
    thread.start()
    write_text(pipe, text)
    os.close(held_open)
    thread.join()
    assert read == [text]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_disk_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sda"
    path.write_text("all my files")
    monkeypatch.setattr(stat, "S_ISREG", lambda _: False)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    with pytest.raises(UserError, match=r"sda: cannot be written \(it is a disk\)"), writing(path):
        write_text(path, "text")
    assert path.read_text() == "all my files"


def test_a_file_in_a_folder_that_takes_no_new_files_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a longer old text")

    def busy(*_: object) -> None:  # the error of a file that a container mounts
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("os.replace", busy)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["x.txt"]


def as_nobody(test: Callable[[], None]) -> int:
    """The exit status of a process that runs `test` as a user without rights."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            test()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_file_that_may_not_be_written_is_not_replaced() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, whose parents are closed to other users
        folder = Path(name)
        folder.chmod(0o777)
        path = folder / "x.txt"
        path.write_text("old")
        path.chmod(0o444)

        def write() -> None:
            write_text(folder / "other.txt", "new")
            with pytest.raises(UserError, match=r"x\.txt: cannot be written \(Permission denied\)"), writing(path):
                write_text(path, "new")

        assert as_nobody(write) == 0
        assert path.read_text() == "old"
        assert names_in(folder) == ["other.txt", "x.txt"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("FOLDER", "Is a directory"),
        ("FILE/x.txt", "Not a directory"),
        ("CIRCLE", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("a\0b", "not a path: embedded null byte"),
        ("\ud83d", "not a path: "),
        ("/proc/nowhere", "No such file"),
        ("/dev/fd/987", "Bad file descriptor"),
    ],
)
def test_every_failure_is_one_message(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").write_text("")
    (tmp_path / "CIRCLE").symlink_to("CIRCLE")
    target = tmp_path / path
    with pytest.raises(UserError) as error, writing(target):
        write_bytes(target, b"text")
    assert str(error.value).startswith(f"{target}: cannot be written ({reason}")
    assert names_in(tmp_path) == ["CIRCLE", "FILE", "FOLDER"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in NASTY_NAMES if "/" not in name and "\0" not in name and name != HALF]
)
def test_files_of_any_name_are_written(tmp_path: Path, name: str) -> None:
    if len(os.fsencode(name)) > 255:
        name = name[:255]
    write_text(tmp_path / name, "text")
    write_text(tmp_path / name, "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "new")]


def test_threads_that_write_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    texts = [str(number) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "x.txt", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x.txt").read_text() in texts
    assert names_in(tmp_path) == ["x.txt"]


def test_a_reader_that_has_read_enough_is_not_an_error() -> None:
    with pytest.raises(BrokenPipeError), writing(Path("/dev/stdout")):
        raise BrokenPipeError


@pytest.mark.slow
def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from lora_retriever.files import write_text\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_text(Path(sys.argv[1]), 'text')"
    )
    others = ["mixture.jsonl", ".mixture.jsonl.4711", ".lock", ".unfinished", ".x.unfinished", "x.unfinished"]
    for name in others:
        (tmp_path / name).write_text("mine")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "mixture.meta.json")])
    (left_over,) = set(names_in(tmp_path)) - set(others)
    machine, process, _, number = left_over.split(".")[-2].split("-")
    running = f".mixture.jsonl.{machine}-{os.getppid()}-0123abcd-0.unfinished"  # the process is alive
    restarted = f".mixture.jsonl.{machine}-{os.getpid()}-0123abcd-0.unfinished"  # in a container, numbers repeat
    foreign = f".mixture.jsonl.{'0' * 8}-{process}-0123abcd-{number}.unfinished"  # another machine
    old = f".old.jsonl.{'0' * 8}-{process}-0123abcd-{number}.unfinished"
    for name in (running, restarted, foreign, old):
        (tmp_path / name).write_text("unfinished")
    os.utime(tmp_path / old, (time.time() - 2 * files.FOREIGN_SECONDS,) * 2)
    (tmp_path / f"{old[:-12]}7.unfinished").symlink_to("mixture.jsonl")
    swept = sweep_unfinished(tmp_path)
    assert sorted(path.name for path in swept) == sorted([left_over, restarted, old])
    assert set(names_in(tmp_path)) == {*others, running, foreign, f"{old[:-12]}7.unfinished"}
    assert sweep_unfinished(tmp_path / "nowhere") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_written_again_removes_what_a_killed_process_left_of_it_and_nothing_else(
    tmp_path: Path, kind: str
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from lora_retriever.files import new_folder, write_text\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = Path.rename = die\n"
        "if sys.argv[2] == 'file': write_text(Path(sys.argv[1]), 'text')\n"
        "with new_folder(Path(sys.argv[1])) as folder: folder.mkdir(); (folder / 'x').touch()"
    )
    for name in ("out", "out.json"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name), kind])
    assert len(names_in(tmp_path)) == 2
    if kind == "file":
        write_text(tmp_path / "out", "text")
    else:
        with new_folder(tmp_path / "out") as folder:
            folder.mkdir()
    other, written = names_in(tmp_path)
    assert written == "out"
    assert other.startswith(".out.json.")


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "/", "/etc/passwd", "a/../..", "a//b", "a/", "~", "~root", "a\0", HALF]
)
@pytest.mark.parametrize("may_have_folders", [False, True])
def test_a_name_that_leaves_its_folder_is_refused(name: str, may_have_folders: bool) -> None:
    with pytest.raises(UserError) as error:
        safe_name(name, "run", may_have_folders)
    assert str(error.value).startswith(f"run {name!a}: the name is part of a path, and ")
    assert str(error.value).isascii()


def test_a_name_may_have_anything_else() -> None:
    for name in ["mixture@k=4,scorer=cosine", "...", ".x", "città qa", "-rf", "a\\b", "x" * 255]:
        assert safe_name(name, "run") == name
    assert safe_name("qa/squad", "adapter", may_have_folders=True) == "qa/squad"
    with pytest.raises(UserError, match=r"has a /"):
        safe_name("qa/squad", "run")
    with pytest.raises(UserError, match=r"more than 255 bytes"):
        safe_name("é" * 128, "run")


def dense_hash(folder: Path) -> str:
    """The hash of a folder, computed as in commit 5361c51."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def settled(path: Path) -> Path:
    """Set the times of a path's files far back, so that the files count as unchanged for a long time."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(file, (1e9, 1e9))
    return path


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock an hour ahead, so that hashes of files that were just made are remembered."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's folder."""
    path = tmp_path / "adapter"
    (path / "inner").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "inner/vocab.txt"):
        (path / name).write_text(name)
    return path


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "sha256", NoReading)


class NoReading:
    """A hash that takes the few bytes of a file's state, and refuses the content of a file."""

    real = hashlib.sha256

    def __init__(self, data: bytes = b"") -> None:
        self._digest = self.real(data)

    def update(self, data: bytes) -> None:
        assert data.startswith(b"("), "a file was read"
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@pytest.mark.slow
def test_hashes_are_those_of_before(folder: Path, tiny_folders: list[Path]) -> None:
    for path in (folder, *tiny_folders):
        assert hash_path(path) == dense_hash(path)
    for file in folder.glob("*.json"):
        assert hash_path(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def tiny_folders() -> list[Path]:
    return [TINY / "base", TINY / "encoder", *sorted((TINY / "adapters").iterdir())]


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "README", "LICENSE.txt", "notes.md", ".gitattributes", "plot.png", "trainer_state.json",
        "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "train.log",
        "runs/Nov29/events.out.tfevents.1", "checkpoint-500/adapter_model.safetensors", ".cache/huggingface/x.json",
        "inner/README.md", "inner/__pycache__/x.pyc",
    ],
)  # fmt: skip
def test_what_computes_nothing_is_not_in_a_hash(folder: Path, name: str) -> None:
    before = hash_path(folder), hash_files(folder)
    write_text(folder / name, "text")
    assert (hash_path(folder), hash_files(folder)) == before


@pytest.mark.parametrize(
    "name", ["vocab.txt", "x.json", "pytorch_model.bin", "modeling.py", "checkpoints/x.json", "tokenizer.model", "run"]
)
def test_everything_else_is_in_a_hash(folder: Path, name: str) -> None:
    before = hash_path(folder), hash_files(folder)
    write_text(folder / name, "text")
    assert hash_path(folder) != before[0]
    assert hash_files(folder) == before[1] | {name: hashlib.sha256(b"text").hexdigest()}


def test_hashes_of_files_are_by_their_names(folder: Path) -> None:
    assert hash_files(folder) == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("adapter_config.json", "adapter_model.safetensors", "inner/vocab.txt")
    }
    assert list(hash_files(folder / "adapter_config.json")) == ["adapter_config.json"]


def test_a_hash_is_remembered_until_a_file_changes(folder: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_path(folder), hash_path(folder / "adapter_config.json")
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        assert (hash_path(folder), hash_path(folder / "adapter_config.json")) == first
    (folder / "adapter_config.json").write_text("adapter_config.JSON")  # the length has not changed
    assert hash_path(folder) == dense_hash(folder) != first[0]
    assert hash_path(folder / "adapter_config.json") != first[1]
    (folder / "adapter_model.safetensors").rename(folder / "renamed.safetensors")
    assert hash_path(folder) == dense_hash(folder)
    (folder / "new.json").write_text("")
    assert hash_path(folder) == dense_hash(folder)
    (folder / "new.json").unlink()
    assert hash_path(folder) == dense_hash(folder)


def test_a_change_that_keeps_size_and_time_is_seen(folder: Path, later: None) -> None:
    file = settled(folder / "adapter_config.json")
    before = hash_path(file)
    with file.open("r+b") as opened:
        opened.write(b"X")
    settled(file)
    assert hash_path(file) != before


def test_a_file_that_changed_just_now_is_not_remembered(folder: Path) -> None:
    hash_path(folder)
    assert not (cache_folder() / HASHES_FILE).exists()


@pytest.mark.parametrize("content", [b"\xff\0garbage\n", b'["a", "b"]\n[1, 2, 3]\nnull\n5\n"abc"\n', b"[" * 100_000])
def test_a_damaged_file_of_hashes_is_passed_over(folder: Path, later: None, content: bytes) -> None:
    cache_folder().mkdir(exist_ok=True)
    (cache_folder() / HASHES_FILE).write_bytes(content + b"\n")
    assert hash_path(folder) == hash_path(folder) == dense_hash(folder)
    lines = (cache_folder() / HASHES_FILE).read_bytes().removeprefix(content + b"\n").decode().splitlines()
    assert [json.loads(line)[2] for line in lines] == [dense_hash(folder)]  # the next hash is kept


def test_a_long_file_of_hashes_is_begun_anew(folder: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_HASHES_BYTES", 1000)
    cache_folder().mkdir(exist_ok=True)
    (cache_folder() / HASHES_FILE).write_text("x" * 2000)
    assert hash_path(folder) == dense_hash(folder)
    assert (cache_folder() / HASHES_FILE).stat().st_size < 1000


@pytest.mark.parametrize("cache", ["/proc/nowhere", "/dev/null/x", "FILE"])
def test_without_a_cache_hashes_are_made_each_time(
    folder: Path, later: None, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    (folder.parent / "FILE").write_text("")
    monkeypatch.setenv("LORA_RETRIEVER_CACHE", str(folder.parent / cache))
    assert hash_path(folder) == hash_path(folder) == dense_hash(folder)


def test_a_user_without_a_home_has_no_cache(folder: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_RETRIEVER_CACHE")

    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert hash_path(folder) == dense_hash(folder)
    with pytest.raises(OSError):
        cache_folder().mkdir(parents=True)


@pytest.mark.slow
def test_processes_that_remember_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lora_retriever.files import hash_path\n"
        "now = time.time; time.time = lambda: now() + 3600\n"
        "[hash_path(path) for path in sorted(Path(sys.argv[1]).iterdir())]"
    )
    for number in range(4):
        for file in range(30):
            write_text(tmp_path / str(number) / f"{file}.json", f"{number} {file}")
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / str(number))]) for number in range(4)]
    assert [process.wait(timeout=60) for process in running] == [0] * 4
    lines = [json.loads(line) for line in (cache_folder() / HASHES_FILE).read_text().splitlines()]
    assert len({path for path, _, _ in lines}) == len(lines) == 120


@pytest.mark.parametrize("path", ["nowhere", "a\0b", "\ud83d", "PIPE", "x" * 5000, "/dev/zero"])
def test_what_cannot_be_hashed_is_one_message(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "PIPE")
    for make in (hash_path, hash_files):
        with pytest.raises(UserError) as error:
            make(tmp_path / path)
        assert str(error.value).startswith(f"{tmp_path / path}: cannot be read (")
