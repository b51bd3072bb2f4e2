"""Signals at random moments, closed pipes, and two processes in one folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random

from campaign.figures import Log
from campaign.kills import differences
from campaign.world import SIGNALS, Start, World, emptied, files_of, start

SLOW = 0.01
"""Time of a batch of the stand-in, in seconds. The time is long enough for a signal to come during a batch."""
PIPED = ("run", "run --table", "summarize", "summarize --format json", "methods", "audit", "doctor")
READ_BYTES = (0, 1, 100)
"""Numbers of bytes after which a reader closes the pipe."""


class Signals:
    """The trials of signals in one world."""

    def __init__(self, world: World, scratch: Path, log: Log) -> None:
        self.world = world
        self.scratch = scratch
        self.log = log
        self.plain = scratch / "undisturbed"
        self.seconds = self._run(emptied(self.plain)).seconds
        self.expected = files_of(self.plain)

    def random(self, count: int, seed: int = 0) -> None:
        """Send each signal at random moments, `count` in all; every third one is sent twice."""
        for number in range(count):
            key = f"signal {seed}.{number}"
            if key in self.log.trials:
                continue
            moments, sent = Random(key), SIGNALS[number % len(SIGNALS)]
            folder = emptied(self.scratch / "stopped")
            started = start(self.world, self.world.run(folder), self.scratch / "out", seconds_a_batch=SLOW)
            _wait(started, moments.random() * self.seconds * 1.1)
            twice = number // len(SIGNALS) % 3 == 0
            if twice and started.poll() is None:
                os.kill(started.process, sent)
                _wait(started, 0.02 * moments.random())
            status = started.kill(sent)
            text = started.text()
            problems = []
            # -sent: the signal came before the command had begun, or while the command was stopping
            if status not in (0, 128 + sent, -sent):
                problems.append(f"exit status {status}: {text[-300:]}")
            if status == 128 + sent and "stopped" not in text:
                problems.append(f"no message: {text[-300:]}")
            problems += broken_output(text) + self._goes_on(folder)
            self.log.add(key, signal.Signals(sent).name + (", twice" if twice else ""), problems, in_time=status != 0)

    def pipes(self) -> None:
        """Commands whose reader closes the pipe early, and commands whose standard output is a full disk."""
        for command in PIPED:
            for count in (*READ_BYTES, None):
                key = f"{command} | " + ("/dev/full" if count is None else f"head -c {count}")
                if key in self.log.trials:
                    continue
                folder = emptied(self.scratch / "piped")
                arguments = self._arguments(command, folder)
                if count is None:
                    full = os.open("/dev/full", os.O_WRONLY)
                    started = start(self.world, arguments, self.scratch / "out", stdout=full)
                    os.close(full)
                    allowed = (0, 2)  # 0: nothing was printed
                else:
                    reader, writer = os.pipe()
                    started = start(self.world, arguments, self.scratch / "out", stdout=writer)
                    os.close(writer)
                    if count:
                        os.read(reader, count)
                    os.close(reader)
                    allowed = (0, 0)
                status = started.wait()
                problems = broken_output(started.text())
                if status not in allowed:
                    problems.append(f"exit status {status}: {started.text()[-300:]}")
                if command.startswith("run"):
                    problems += differences(files_of(folder), self.expected)
                self.log.add(key, "full output" if count is None else "closed pipe", problems)

    def two_processes(self, count: int, seed: int = 0) -> None:
        """Two processes begin a run in one folder. One process answers all rows, and the other process gets a message
        that says so."""
        for number in range(count):
            key = f"two processes {seed}.{number}"
            if key in self.log.trials:
                continue
            moments = Random(key)
            folder = emptied(self.scratch / "shared")
            first = start(self.world, self.world.run(folder), self.scratch / "first", seconds_a_batch=SLOW)
            time.sleep(moments.random() * self.seconds)
            second = start(self.world, self.world.run(folder), self.scratch / "second", seconds_a_batch=SLOW)
            statuses = sorted((first.wait(), second.wait()))
            told = [started for started in (first, second) if started.status == 2]
            problems = broken_output(first.text() + second.text())
            if statuses not in ([0, 2], [0, 0]):
                problems.append(f"exit statuses {statuses}: {first.text()[-300:]} {second.text()[-300:]}")
            problems += [started.text()[-300:] for started in told if "is in use by process" not in started.text()]
            problems += differences(files_of(folder), self.expected)
            self.log.add(key, "two processes", problems, refused=len(told))

    def readers(self, count: int, seed: int = 0) -> None:
        """A folder is summarized while a run writes into it."""
        for number in range(count):
            key = f"reader {seed}.{number}"
            if key in self.log.trials:
                continue
            folder = emptied(self.scratch / "read")
            writer = start(self.world, self.world.run(folder), self.scratch / "writer", seconds_a_batch=SLOW)
            _wait(writer, Random(key).random() * self.seconds)
            reader = start(self.world, ["summarize", str(folder)], self.scratch / "out")
            status = reader.wait()
            problems = broken_output(reader.text())
            if status not in (0, 2) or (status == 2 and "lora-retriever: " not in reader.text()):
                problems.append(f"exit status {status}: {reader.text()[-300:]}")
            if writer.wait():
                problems.append(f"the run ended with {writer.status}: {writer.text()[-300:]}")
            problems += differences(files_of(folder), self.expected)
            self.log.add(key, "reader beside a writer", problems, shown=status == 0)

    def _run(self, folder: Path) -> Start:
        started = start(self.world, self.world.run(folder), self.scratch / "out", seconds_a_batch=SLOW)
        if started.wait():
            raise RuntimeError(f"the run fails undisturbed: {started.text()}")
        return started

    def _goes_on(self, folder: Path) -> list[str]:
        started = start(self.world, self.world.run(folder), self.scratch / "out")
        if started.wait():
            return [f"the next start ended with {started.status}: {started.text()[-300:]}"]
        return differences(files_of(folder), self.expected)

    def _arguments(self, command: str, folder: Path) -> list[str]:
        name, *options = command.split()
        if name == "run":
            return self.world.run(folder, *options)
        if name == "summarize":
            return [name, str(self.plain), *options]
        if name == "audit":
            return [name, str(self.world.folder / "rows.json"), "--pool", str(self.world.folder / "pool.json")]
        return [name, "--profile", str(self.world.profile)]


def broken_output(text: str) -> list[str]:
    """Signs of an unexpected error."""
    signs = ("Traceback", "unexpected error", "Exception ignored", "Fatal Python error")
    return [f"output has {sign!r}: {text[-500:]}" for sign in signs if sign in text]


def _wait(started: Start, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and started.poll() is None:
        time.sleep(0.0005)
