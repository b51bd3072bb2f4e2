"""The world of the campaign: a small benchmark of the bundled miniature, and commands in forked processes.

This process imports everything once. Each start of a command is a fork of this process, so that a start takes a
fraction of a second. A stand-in for the base model answers by a hash of the prompt and the composition.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import lora_retriever
from lora_retriever.backends import Outcome
from lora_retriever.cli import main
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import PROFILES, Profile
from lora_retriever.generation.answer import Answer
from lora_retriever.generation.batches import Request, plan_batches, unfinished
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.running import evaluate as evaluating
from lora_retriever.running.run_file import RunFile

ROOT = Path(lora_retriever.__file__).resolve().parents[1]
TINY = ROOT / "data" / "tiny"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TIMEOUT = 120.0
"""Maximum time of one start of a command, in seconds."""
ODD_TEXTS = ("", "\u2028", "Müller 费用", "👍🏽", 'a "quoted" line\nand another', "half \ud83d", "\x1b[31m", "=1+1")
"""Texts among the stand-in's answers that files of lines could break at."""
METHODS = "base,selection,best_selection,mixture,fusion_ood"


class StandIn:
    """A backend without a model: an answer is a hash of everything that decides the answer."""

    def __init__(self, settings: GenerationSection, seconds: float = 0.0) -> None:
        """`seconds` is the time of a batch."""
        self._settings = settings
        self._seconds = seconds

    def answers(
        self, requests: Sequence[Request], mode: Any, done: Collection[int], gate: Any = None
    ) -> Iterator[Outcome]:
        """The outcomes, batch by batch."""
        for batch in unfinished(plan_batches(requests, self._settings), done):
            time.sleep(self._seconds)
            yield Outcome({request.id: answer_of(request, str(mode)) for request in batch})

    def generator(self) -> Any:
        """There is no model."""
        raise AssertionError("the stand-in has no model")

    def close(self) -> None:
        """Nothing to do."""


def answer_of(request: Request, mode: str) -> Answer:
    """The stand-in's answer. For one adapter, the mode does not count, as in the project's cache of answers."""
    weights = sorted(request.composition.weights.items())
    key = repr((request.prompt.token_ids, weights, mode if len(weights) > 1 else ""))
    digest = hashlib.sha256(key.encode()).hexdigest()
    return Answer(f"{digest[:12]} {ODD_TEXTS[int(digest, 16) % len(ODD_TEXTS)]}", 1 + int(digest[:2], 16) % 24)


@dataclass(frozen=True)
class World:
    """The benchmark's files, and a cache that holds its embeddings."""

    folder: Path
    methods: str = METHODS

    @property
    def profile(self) -> Path:
        """The profile's file."""
        return self.folder / "mine.yaml"

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        return self.folder / "cache"

    def run(self, results: Path, *arguments: str) -> list[str]:
        """The arguments of a run into a results folder."""
        return ["run", "--profile", str(self.profile), "--results", str(results), "--only", self.methods, *arguments]


def make_world(
    folder: Path, tasks: int = 5, rows_a_task: int = 4, batch_size: int = 4, methods: str = METHODS
) -> World:
    """Write the benchmark: the first rows of some tasks of the miniature, and the adapters of these tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = json.loads((TINY / "pool.json").read_text(encoding="utf-8"))[:tasks]
    rows = json.loads((TINY / "test.json").read_text(encoding="utf-8"))
    chosen = [row for entry in pool for row in [r for r in rows if r["task"] == entry["model_name"]][:rows_a_task]]
    (folder / "rows.json").write_text(json.dumps(chosen), encoding="utf-8")
    (folder / "pool.json").write_text(json.dumps(pool), encoding="utf-8")
    content = yaml.safe_load((PROFILES / "tiny.yaml").read_text(encoding="utf-8"))
    content["base"]["location"] = str(TINY / "base")
    content["encoder"]["location"] = str(TINY / "encoder")
    content["adapters"]["location"] = str(TINY / "adapters" / "{adapter}")
    content["data"] = {"rows": "rows.json", "pool": "pool.json"}
    content["generation"]["batch_size"] = batch_size
    (folder / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return World(folder, methods)


@dataclass
class Start:
    """One start of a command, in a process of its own.

    Attributes:
        process: the process' id.
        output: the file of its standard output and error together.
        acknowledged: the file into which the process writes the name of a run and a row's id as soon as the row counts
            as written.
    """

    process: int
    output: Path
    acknowledged: Path
    status: int | None = None
    seconds: float = 0.0
    memory: int = 0
    """The most memory that the process had, in bytes; known at its end."""
    _began: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """The exit status, or minus the number of the signal that ended the process. None: the process goes on."""
        if self.status is None:
            process, status, usage = os.wait4(self.process, os.WNOHANG)
            if process:
                self.memory = usage.ru_maxrss << 10
                self.status = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self._began
        return self.status

    def wait(self, seconds: float = TIMEOUT) -> int:
        """Wait for the end.

        Raises:
            TimeoutError: the process did not end in time, and was killed.
        """
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                output = self.text()[-500:]
                raise TimeoutError(f"process {self.process} did not end within {seconds} s; output: {output}")
            time.sleep(0.002)
        assert self.status is not None
        return self.status

    def kill(self, number: int) -> int:
        """Send a signal and wait for the end."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.process, number)
        return self.wait()

    def text(self) -> str:
        """The output so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def rows(self) -> list[tuple[str, int]]:
        """The acknowledged rows."""
        lines = self.acknowledged.read_text(encoding="utf-8").split("\n")[:-1]  # a line without a line end was cut off
        return [(name, int(id)) for name, _, id in (line.rpartition(" ") for line in lines)]


def start(
    world: World,
    arguments: Sequence[str],
    scratch: Path,
    prepare: Callable[[], None] = lambda: None,
    stand_in: bool = True,
    seconds_a_batch: float = 0.0,
    stdout: int | None = None,
) -> Start:
    """Start a command in a fork of this process.

    Args:
        scratch: a folder for what the process prints.
        prepare: called in the new process, before the command.
        stand_in: whether the stand-in answers in place of the base model.
        stdout: an open file to become standard output.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    output, acknowledged = scratch / "output", scratch / "acknowledged"
    for path in (output, acknowledged):
        path.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal waits until the command begins
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return Start(process, output, acknowledged)
    status = 70
    try:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _redirect(output, stdout)
        os.environ["LORA_RETRIEVER_CACHE"] = str(world.cache)
        _acknowledge(acknowledged)
        if stand_in:
            _use_stand_in(seconds_a_batch)
        prepare()
        status = _begun(list(arguments))
    except SystemExit as exit:  # argparse's own
        status = exit.code if isinstance(exit.code, int) else 2
    except BaseException:  # a user would see this error as a traceback
        with suppress(BaseException):
            traceback.print_exc()
        status = 70
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _begun(arguments: list[str]) -> int:
    """Begin the command, with the signals that have come meanwhile. Ctrl-C before its first line has no message."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return main(arguments)


def warm_up(world: World, scratch: Path) -> None:
    """Fill the world's cache, and import all modules of a run into this process."""
    for arguments in (world.run(scratch / "results"), ["report", str(scratch / "results")]):
        started = start(world, arguments, scratch / "out")
        if started.wait():
            raise RuntimeError(f"{arguments[0]} fails undisturbed: {started.text()}")
    shutil.rmtree(scratch / "results")
    loaded, environment = evaluating.load_backend, dict(os.environ)
    os.environ["LORA_RETRIEVER_CACHE"] = str(world.cache)
    try:
        _use_stand_in(0.0)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main(world.run(scratch / "results"))
            main(["report", str(scratch / "results")])
    finally:
        evaluating.load_backend = loaded
        os.environ.clear()
        os.environ.update(environment)


def files_of(folder: Path) -> dict[str, Any]:
    """The files of a folder by name; records and `runs.csv` without times; without the lock."""
    content: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name == ".lock":
            continue
        content[name] = path.read_bytes()
        if name.endswith(".meta.json"):
            record = json.loads(content[name])
            content[name] = {key: value for key, value in record.items() if key != "timings"}
        elif name == "runs.csv":
            rows = csv.DictReader(io.StringIO(content[name].decode()))
            content[name] = {row["run"]: {key: row[key] for key in row if key != "seconds"} for row in rows}
    return content


def emptied(folder: Path) -> Path:
    """The folder, made anew and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _redirect(output: Path, stdout: int | None) -> None:
    """Standard output and error of a forked process into a file; none of the streams that this process had is kept."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor if stdout is None else stdout, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115


def _acknowledge(path: Path) -> None:
    """Note every row as soon as the row counts as written."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    append = RunFile.append

    def noted(run: RunFile, lines: Sequence[dict[str, Any]]) -> None:
        append(run, lines)
        os.write(descriptor, "".join(f"{run.name} {line['id']}\n" for line in lines).encode())

    RunFile.append = noted  # type: ignore[method-assign, assignment]


def _use_stand_in(seconds: float) -> None:
    def load(profile: Profile, benchmark: Benchmark) -> StandIn:
        return StandIn(profile.generation, seconds)

    evaluating.load_backend = load
