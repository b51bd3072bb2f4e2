"""Disks that fail: at every file operation of every command that writes, and small file systems that are really full.

The promises: one message and exit status 2 (or 0 where the command does not need the file); no half-written file; and
the next start on a sound disk ends with the files of an undisturbed command.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from campaign.figures import Log
from campaign.kills import Kills, Scenario, comparable, differences, scenarios
from campaign.operations import Operations, failing
from campaign.signals import broken_output
from campaign.world import emptied, files_of, start

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES)
SIZES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sizes of small file systems, in KiB."""


class Disks:
    """The trials of failing disks in one world."""

    def __init__(self, kills: Kills, log: Log) -> None:
        self.kills = kills
        self.world = kills.world
        self.scratch = kills.scratch
        self.log = log

    def at_operations(self, count: int | None = None, names: Sequence[str] = ()) -> None:
        """Every operation of every scenario fails, reads included: alone, and together with all later operations.

        The errors take turns, so that every operation fails with two errors.

        Args:
            count: maximum number of trials, spread evenly over all. None: all.
            names: scenarios. Empty: all.
        """
        planned = []
        for scenario in scenarios():
            if names and scenario.name not in names:
                continue
            for number, operation in enumerate(self.kills.operations(scenario, reads=True)):
                for lasting in (False, True):
                    planned.append((scenario, number, operation, CODES[(number + lasting) % len(CODES)], lasting))
        if count is not None and count < len(planned):
            planned = [planned[place * len(planned) // count] for place in range(count)]
        print(f"{len(planned)} failing operations", flush=True)
        expected: dict[str, dict[str, Any]] = {}
        for scenario, number, operation, code, lasting in planned:
            since = "from" if lasting else "at"
            key = f"{scenario.name}: {errno.errorcode[code]} {since} operation {number} ({operation})"
            if key in self.log.trials:
                continue
            if scenario.name not in expected:
                self.kills.undisturbed(scenario, self.scratch / "failed")
                expected[scenario.name] = comparable(self.scratch / "failed")
            self._fail_at(key, scenario, number, code, lasting, expected[scenario.name])

    def small_file_systems(self, most: int | None = None) -> None:
        """Run on file systems that are too small for the run, and that grow afterwards. Needs the permission to mount
        file systems.

        `most`: maximum number of file systems. None: all sizes.
        """
        if os.geteuid() != 0:
            print("small file systems are left out: only root may mount")
            return
        folder, expected = self.scratch / "small", files_of(self.kills.plain)
        for size in SIZES[: None if most is None else -(-most // 4)]:
            key = f"file system of {size} KiB"
            if key in self.log.trials:
                continue
            emptied(folder)
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True, check=False
            )
            if mounted.returncode:
                print(f"small file systems are left out: {mounted.stderr.decode().strip()}")
                return
            try:
                results = folder / "results"
                started = start(self.world, self.world.run(results), self.scratch / "out")
                status, text = started.wait(), started.text()
                problems = broken_output(text)
                if status not in (0, 2) or (status == 2 and "disk is full" not in text and "No space" not in text):
                    problems.append(f"exit status {status}: {text[-300:]}")
                subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
                again = start(self.world, self.world.run(results), self.scratch / "out")
                if again.wait():
                    problems.append(f"the next start ended with {again.status}: {again.text()[-300:]}")
                problems += differences(files_of(results), expected)
                self.log.add(key, "small file system", problems, full=status == 2)
            finally:
                subprocess.run(["umount", str(folder)], check=True)

    def _fail_at(
        self, key: str, scenario: Scenario, number: int, code: int, lasting: bool, expected: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        folder = self.kills.prepared(scenario, self.scratch / "failed")

        def watch() -> None:
            scenario.patch()
            Operations([folder, self.world.folder], number, failing(code), reads=True, lasting=lasting).install()

        arguments = scenario.arguments(self.world, folder)
        started = start(self.world, arguments, self.scratch / "out", watch)
        status, text = started.wait(), started.text()
        problems = broken_output(text)
        if status not in (0, 2):
            problems.append(f"exit status {status}: {text[-300:]}")
        messages = [line for line in text.splitlines() if line.startswith("lora-retriever: ")]
        messages = [line for line in messages if "embedding cache" not in line]
        if status == 2 and len(messages) != 1:
            problems.append(f"{len(messages)} messages: {text[-500:]}")
        problems += self.kills.unacknowledged(started, folder)
        problems += self.kills.goes_on(scenario, folder, expected)
        kind = f"{errno.errorcode[code]}{', lasting' if lasting else ''}"
        seconds = round(time.monotonic() - began, 2)
        self.log.add(key, kind, problems, refused=status == 2, seconds=seconds)
