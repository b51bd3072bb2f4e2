"""Try the promises of the project: `python scripts/run_campaign.py EXPERIMENT [--count N] [--seconds S] [--out FOLDER]`

    kills       SIGKILL at random moments
    operations  SIGKILL before every file operation, and in the middle of every write
    signals     SIGTERM, SIGINT and SIGHUP at random moments, closed pipes, two processes in one folder
    disks       every file operation fails: a full disk, EIO, ESTALE, EROFS, EACCES
    inputs      bad inputs of every kind
    fuzz        mutated rows, pools, profiles, adapters, results files and indices
    part        a small part of kills, operations, signals and disks, for continuous integration
    all         all but `part`, one after the other

Every trial is a line of `OUT/EXPERIMENT.jsonl`. The same command goes on where it was stopped; trials that broke a
promise are tried again. The exit status is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign.figures import Log
    from campaign.world import World

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PART = {"kills": 3, "operations": 3, "signals": 1, "disks": 3}
"""Number of trials of each experiment of `part`."""
PART_SCENARIOS = ("run goes on",)
"""The scenarios of `part`."""


def main() -> int:
    """Run experiments, and print their figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "fuzz", "part", "all"])
    parser.add_argument("--count", type=int, help="number of trials (default: the full campaign's)")
    parser.add_argument("--seconds", type=float, default=3600, help="time of fuzzing, in seconds (default: 3600)")
    parser.add_argument("--out", type=Path, default=Path("results") / "campaign", help="(default: results/campaign)")
    args = parser.parse_args()
    broken = False
    for experiment in [*EXPERIMENTS, "fuzz"] if args.experiment == "all" else [args.experiment]:
        with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
            broken = run_experiment(experiment, args.out, Path(scratch), args.count, args.seconds) or broken
    return 1 if broken else 0


def run_experiment(experiment: str, out: Path, scratch: Path, count: int | None = None, seconds: float = 0.0) -> bool:
    """Run one experiment, or a part of several. Returns whether a promise was broken.

    Args:
        out: folder of the trials and figures.
        scratch: an empty folder for everything else.
        count: number of trials. None: the full campaign's.
        seconds: time of fuzzing.
    """
    from campaign.figures import Log

    if experiment == "fuzz":
        from campaign.fuzzing import fuzz

        log = Log(out, "fuzz")
        fuzz(scratch, log, seconds)
        return _shown(log)
    is_part = experiment == "part"
    world = _world(scratch, is_small=is_part or experiment in ("operations", "disks"))
    broken = False
    for name, trials in (PART if is_part else {experiment: count}).items():
        log = Log(out, name)
        EXPERIMENTS[name](world, scratch, log, trials, PART_SCENARIOS if is_part else ())
        broken = _shown(log) or broken
    return broken


def _shown(log: Log) -> bool:
    """Write and print the figures. Returns whether a promise was broken."""
    figures = log.save()
    print(json.dumps({log.experiment: figures}, indent=1, ensure_ascii=False))
    return bool(figures["problems"])


def _world(scratch: Path, is_small: bool) -> World:
    """The world of all trials. A run in a small world has few file operations: two batches."""
    from campaign.world import make_world, warm_up

    small = {"tasks": 4, "rows_a_task": 2, "methods": "base,selection,mixture"}
    world = make_world(scratch / "world", **(small if is_small else {}))  # type: ignore[arg-type]
    warm_up(world, scratch / "warm")
    return world


def _kills(world: World, scratch: Path, log: Log, count: int | None, names: Sequence[str]) -> None:
    from campaign.kills import Kills

    Kills(world, scratch, log).random(count or 1000)


def _operations(world: World, scratch: Path, log: Log, count: int | None, names: Sequence[str]) -> None:
    from campaign.kills import Kills

    Kills(world, scratch, log).at_operations(count, names)


def _signals(world: World, scratch: Path, log: Log, count: int | None, names: Sequence[str]) -> None:
    from campaign.signals import Signals

    signals, some = Signals(world, scratch, log), count or 300
    signals.random(some)
    if not names:
        signals.pipes()
    signals.two_processes(-(-some // 10))
    signals.readers(-(-some // 10))


def _disks(world: World, scratch: Path, log: Log, count: int | None, names: Sequence[str]) -> None:
    from campaign.disks import Disks
    from campaign.kills import Kills

    disks = Disks(Kills(world, scratch, log), log)
    disks.small_file_systems(count)
    disks.at_operations(count, names)


def _inputs(world: World, scratch: Path, log: Log, count: int | None, names: Sequence[str]) -> None:
    from campaign.bad_inputs import try_all

    try_all(world, scratch, log, count)


EXPERIMENTS: dict[str, Callable[[World, Path, Log, int | None, Sequence[str]], None]] = {
    "kills": _kills,
    "operations": _operations,
    "signals": _signals,
    "disks": _disks,
    "inputs": _inputs,
}

if __name__ == "__main__":
    sys.exit(main())
