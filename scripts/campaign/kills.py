"""Kills: at random moments, and before every file operation of every command that writes.

The promises after a kill and the next start: every row that counted as written is there unchanged, the finished files
equal the files of an undisturbed command to the byte (apart from times), and no other file is left.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from campaign.figures import Log
from campaign.operations import Act, Operations, die, tear_and_die
from campaign.world import TINY, Start, World, emptied, files_of, start
from lora_retriever.running.run_file import read_lines

MOST_KILLS = 12
"""Maximum number of kills of one folder's run before it may end."""


@dataclass(frozen=True)
class Scenario:
    """A command, and the content of its folder at the start.

    Attributes:
        arguments: the command's arguments, for the folder that it writes into.
        prepare: fills the folder before the command; gets the folder of an undisturbed plain run.
        patch: called in the command's process before the command.
        is_refused_when_done: whether the command refuses to run again after it has finished.
    """

    name: str
    arguments: Callable[[World, Path], list[str]]
    prepare: Callable[[Path, Path], None] = lambda folder, done: None
    patch: Callable[[], None] = lambda: None
    is_refused_when_done: bool = False


def scenarios() -> list[Scenario]:
    """Every command that writes files."""
    return [
        Scenario("run", lambda world, folder: world.run(folder, "--table")),
        Scenario("run goes on", lambda world, folder: world.run(folder), _begun),
        Scenario("run of a finished folder", lambda world, folder: world.run(folder), _copied),
        Scenario("run --answer-anew", lambda world, folder: world.run(folder, "--answer-anew"), _of_other_code),
        Scenario("run --keep-answers", lambda world, folder: world.run(folder, "--keep-answers"), _of_other_code),
        Scenario("run without flock", lambda world, folder: world.run(folder), patch=no_flock),
        Scenario("report", lambda world, folder: ["report", str(folder)], _copied),
        Scenario(
            "summarize --output",
            lambda world, folder: ["summarize", str(folder), "--format", "json", "--output", str(folder / "s.json")],
            _copied_and_summarized,
        ),
        Scenario("index", lambda world, folder: _index(world, folder)),
        Scenario("index over an index", lambda world, folder: _index(world, folder), _old_index),
        Scenario("compose", lambda world, folder: _compose(folder), is_refused_when_done=True),
        Scenario(
            "audit --json",
            lambda world, folder: [
                *("audit", str(world.folder / "rows.json"), "--pool", str(world.folder / "pool.json")),
                *("--json", str(folder / "audit.json")),
            ],
        ),
    ]


class Kills:
    """The trials of kills in one world."""

    def __init__(self, world: World, scratch: Path, log: Log) -> None:
        self.world = world
        self.scratch = scratch
        self.log = log
        self.plain = scratch / "undisturbed"
        self.seconds = self.undisturbed(scenarios()[0], self.plain).seconds

    def random(self, count: int, seed: int = 0) -> None:
        """Kill runs at random moments until there were `count` kills. The kills of earlier starts count."""
        folder, expected = self.scratch / "random", files_of(self.plain)
        number = 0
        while sum(trial.facts.get("kills", 0) for trial in self.log.trials.values() if trial.kind == "random") < count:
            key = f"random {seed}.{number}"
            number += 1
            if key in self.log.trials:
                continue
            moments = Random(f"{seed} {number}")
            problems: list[str] = []
            emptied(folder)
            began, kills, most = time.monotonic(), 0, moments.randint(1, MOST_KILLS)
            while kills < most:
                started = start(self.world, self.world.run(folder), self.scratch / "out")
                moment = moments.random() * self.seconds
                while time.monotonic() - started._began < moment and started.poll() is None:
                    time.sleep(0.0005)
                status = started.kill(signal.SIGKILL)
                problems += self.unacknowledged(started, folder)
                if status != -signal.SIGKILL:
                    if kills == 0:  # the time of a run depends on other work on the machine
                        self.seconds = started.seconds
                    break
                kills += 1
            problems += self.goes_on(scenarios()[0], folder, expected)
            self.log.add(key, "random", problems, kills=kills, seconds=round(time.monotonic() - began, 2))

    def at_operations(self, count: int | None = None, names: Sequence[str] = ()) -> None:
        """Kill every scenario before each of its file operations, and once more in the middle of each write.

        Args:
            count: maximum number of kills, spread evenly over all. None: all.
            names: scenarios. Empty: all.
        """
        planned = []
        for scenario in scenarios():
            if names and scenario.name not in names:
                continue
            operations = self.operations(scenario)
            for number, operation in enumerate(operations):
                planned.append((scenario, number, operation, die))
                if operation.startswith(("write", "pwrite")):
                    planned.append((scenario, number, operation, tear_and_die))
        if count is not None and count < len(planned):
            planned = [planned[place * len(planned) // count] for place in range(count)]
        print(f"{len(planned)} kills before operations", flush=True)
        expected: dict[str, dict[str, Any]] = {}
        for scenario, number, operation, act in planned:
            key = f"{scenario.name}: {act.__name__} at operation {number} ({operation})"
            if key in self.log.trials:
                continue
            if scenario.name not in expected:
                self.undisturbed(scenario, self.scratch / "killed")  # a report names its folder
                expected[scenario.name] = comparable(self.scratch / "killed")
            self._kill_at(key, scenario, number, act, expected[scenario.name])

    def operations(self, scenario: Scenario, reads: bool = False) -> list[str]:
        """The file operations of an undisturbed command. With `reads`, operations that only read files count, too."""
        folder = self.prepared(scenario, self.scratch / "counted")
        noted = self.scratch / "operations"

        def watch() -> None:
            scenario.patch()
            read = [self.world.folder] if reads else [self.world.cache]
            operations = Operations([folder, *read], None, die, reads)
            operations.install()
            exit_now = os._exit

            def write_and_exit(status: int) -> None:
                noted.write_text("\n".join(operations.seen), encoding="utf-8")
                exit_now(status)

            os._exit = write_and_exit  # type: ignore[assignment]

        started = start(self.world, scenario.arguments(self.world, folder), self.scratch / "out", watch)
        if started.wait():
            raise RuntimeError(f"{scenario.name} fails undisturbed: {started.text()}")
        return noted.read_text(encoding="utf-8").split("\n")

    def _kill_at(self, key: str, scenario: Scenario, number: int, act: Act, expected: dict[str, Any]) -> None:
        began = time.monotonic()
        folder = self.prepared(scenario, self.scratch / "killed")
        before = files_of(folder)

        def watch() -> None:
            scenario.patch()
            Operations([folder, self.world.cache], number, act).install()

        arguments = scenario.arguments(self.world, folder)
        started = start(self.world, arguments, self.scratch / "out", watch)
        status = started.wait()
        problems = [] if status == -signal.SIGKILL else [f"was not killed: {status}: {started.text()[-300:]}"]
        problems += self.unacknowledged(started, folder)
        problems += [f"{name} is half-written" for name in _half_written(folder, before, expected)]
        problems += self.goes_on(scenario, folder, expected)
        self.log.add(key, scenario.name, problems, kills=1, seconds=round(time.monotonic() - began, 2))

    def prepared(self, scenario: Scenario, folder: Path) -> Path:
        """Empty a folder and fill it as the scenario begins."""
        emptied(folder)
        scenario.prepare(folder, self.plain)
        return folder

    def undisturbed(self, scenario: Scenario, folder: Path) -> Start:
        """Run a scenario to its end."""
        self.prepared(scenario, folder)
        started = start(self.world, scenario.arguments(self.world, folder), self.scratch / "out", scenario.patch)
        if started.wait():
            raise RuntimeError(f"{scenario.name} fails undisturbed: {started.text()}")
        return started

    def unacknowledged(self, started: Start, folder: Path) -> list[str]:
        """Rows that counted as written, and that are missing or differ from the rows of an undisturbed run."""
        problems = []
        for name in {name for name, _ in started.rows()}:
            there, right = read_lines(folder, name), read_lines(self.plain, name)
            for run, id in started.rows():
                if run == name and there.get(id) != right[id]:
                    problems.append(f"{name}: row {id} is {'lost' if id not in there else 'changed'}")
        return problems

    def goes_on(self, scenario: Scenario, folder: Path, expected: dict[str, Any]) -> list[str]:
        """The problems after the next start."""
        if scenario.is_refused_when_done and not differences(comparable(folder), expected):
            return []
        started = start(self.world, scenario.arguments(self.world, folder), self.scratch / "out", scenario.patch)
        status = started.wait()
        if status:
            return [f"the next start ended with {status}: {started.text()[-500:]}"]
        return differences(comparable(folder), expected)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Files that are missing, left over or other than expected."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is left over" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name] != found[name]:
            fields = ""
            if isinstance(expected[name], dict):
                keys = sorted(expected[name].keys() | found[name].keys())
                fields = f" in {[key for key in keys if expected[name].get(key) != found[name].get(key)]}"
            problems.append(f"{name} differs{fields}")
    return problems


def no_flock() -> None:
    """A file system without `flock`."""

    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    fcntl.flock = flock


def comparable(folder: Path) -> dict[str, Any]:
    """The files of a folder. Paths below `earlier` leave out the time."""
    content: dict[str, Any] = {}
    for name, file in files_of(folder).items():
        plain = re.sub(r"^earlier/[^/]+/", "earlier/", name)
        content[plain if plain not in content else name] = file
    return content


def _half_written(folder: Path, before: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Files that are neither unchanged nor complete. Partial files and records change during a run."""
    found = files_of(folder)
    changing = (".partial", ".meta.json", ".unfinished")
    return [
        name
        for name, file in found.items()
        if not name.endswith(changing)
        and not name.startswith((".", "earlier/"))
        and file not in (before.get(name), expected.get(name))
        and name != "runs.csv"  # written for finished runs
    ]


def _copied(folder: Path, done: Path) -> None:
    shutil.copytree(done, folder, dirs_exist_ok=True)


def _begun(folder: Path, done: Path) -> None:
    """A finished run, a run with a torn line, and a run whose finished file lacks rows."""
    names = [path.stem for path in sorted(done.glob("*.jsonl"))]
    for name in names[:3]:
        for end in (".jsonl", ".meta.json"):
            shutil.copy(done / f"{name}{end}", folder)
    record = json.loads((folder / f"{names[1]}.meta.json").read_text(encoding="utf-8"))
    (folder / f"{names[1]}.meta.json").write_text(json.dumps({**record, "finished": False}), encoding="utf-8")
    content = (folder / f"{names[1]}.jsonl").read_bytes()
    (folder / f"{names[1]}.jsonl").unlink()
    (folder / f"{names[1]}.jsonl.partial").write_bytes(content[: len(content) // 2])
    lines = (folder / f"{names[2]}.jsonl").read_bytes().split(b"\n")
    (folder / f"{names[2]}.jsonl").write_bytes(b"\n".join(lines[3:]))


def _of_other_code(folder: Path, done: Path) -> None:
    _copied(folder, done)
    for path in folder.glob("*.meta.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        files = record["code"]["files"]
        record["code"]["files"] = {**files, next(iter(files)): "0" * 64}
        path.write_text(json.dumps(record), encoding="utf-8")


def _copied_and_summarized(folder: Path, done: Path) -> None:
    _copied(folder, done)
    (folder / "s.json").write_text('{"old": true}\n', encoding="utf-8")


def _index(world: World, folder: Path) -> list[str]:
    pool = str(world.folder / "pool.json")
    return ["index", "--pool", pool, "--encoder", str(TINY / "encoder"), "--scorer", "cosine", "--out", str(folder)]


def _old_index(folder: Path, done: Path) -> None:
    (folder / "index.safetensors").write_bytes(b"an older index")


def _compose(folder: Path) -> list[str]:
    adapters = sorted((TINY / "adapters").iterdir())[:2]
    named = [part for adapter in adapters for part in ("--adapter", f"{adapter}=0.5")]
    return ["compose", "--base", str(TINY / "base"), *named, "--out", str(folder / "both")]
