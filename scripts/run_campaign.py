"""Try what must never go wrong: `python scripts/run_campaign.py EXPERIMENT [--count N] [--seconds S]`

    kills       SIGKILL at random moments
    operations  SIGKILL before every file operation, and in the middle of every write
    signals     SIGTERM, SIGINT and SIGHUP at random moments, closed pipes, two processes in one folder
    disks       every file operation fails: a full disk, EIO, ESTALE, EROFS, EACCES
    inputs      bad inputs of every kind
    fuzz        mutated rows, pools, profiles, adapters, results files and indices

Every trial is a line of `OUT/EXPERIMENT.jsonl`. The same command goes on where it was stopped. The exit status is 1 if
a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign.figures import Log
    from campaign.world import World

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> int:
    """Run one experiment, and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--count", type=int, help="number of random trials (default: the full campaign's)")
    parser.add_argument("--seconds", type=float, default=3600, help="time of fuzzing, in seconds (default: 3600)")
    parser.add_argument("--out", type=Path, default=Path("results") / "campaign", help="(default: results/campaign)")
    args = parser.parse_args()

    from campaign.figures import Log

    log = Log(args.out, args.experiment)
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        EXPERIMENTS[args.experiment](args, log, Path(scratch))
    figures = log.save()
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    return 1 if figures["problems"] else 0


def kills(args: argparse.Namespace, log: Log, scratch: Path) -> None:
    """`--count` kills at random moments (default: 1,000)."""
    from campaign.kills import Kills
    from campaign.world import make_world, warm_up

    world = make_world(scratch / "world")
    warm_up(world, scratch / "warm")
    Kills(world, scratch, log).random(args.count or 1000)


def operations(args: argparse.Namespace, log: Log, scratch: Path) -> None:
    """`--count` kills before file operations and in the middle of writes; by default all."""
    from campaign.kills import Kills

    Kills(_small_world(scratch), scratch, log).at_operations(args.count)


def signals(args: argparse.Namespace, log: Log, scratch: Path) -> None:
    """`--count` signals (default: 300), and a tenth as many of two processes and of readers beside a writer."""
    from campaign.signals import Signals
    from campaign.world import make_world, warm_up

    world = make_world(scratch / "world")
    warm_up(world, scratch / "warm")
    signals, count = Signals(world, scratch, log), args.count or 300
    signals.random(count)
    signals.pipes()
    signals.two_processes(-(-count // 10))
    signals.readers(-(-count // 10))


def disks(args: argparse.Namespace, log: Log, scratch: Path) -> None:
    """`--count` failing operations; by default all."""
    from campaign.disks import Disks
    from campaign.kills import Kills

    disks = Disks(Kills(_small_world(scratch), scratch, log), log)
    disks.small_file_systems()
    disks.at_operations(args.count)


def inputs(args: argparse.Namespace, log: Log, scratch: Path) -> None:
    """`--count` bad inputs, spread evenly over all; by default all."""
    from campaign.bad_inputs import try_all
    from campaign.world import make_world, warm_up

    world = make_world(scratch / "world")
    warm_up(world, scratch / "warm")
    try_all(world, scratch, log, args.count)


def fuzz(args: argparse.Namespace, log: Log, scratch: Path) -> None:
    """Mutated files for `--seconds`."""
    from campaign.fuzzing import fuzz

    fuzz(scratch, log, args.seconds)


def _small_world(scratch: Path) -> World:
    """A world whose runs have few file operations: two batches each."""
    from campaign.world import make_world, warm_up

    world = make_world(scratch / "world", tasks=4, rows_a_task=2, methods="base,selection,mixture")
    warm_up(world, scratch / "warm")
    return world


EXPERIMENTS: dict[str, Callable[[argparse.Namespace, Log, Path], None]] = {
    "kills": kills,
    "operations": operations,
    "signals": signals,
    "disks": disks,
    "inputs": inputs,
    "fuzz": fuzz,
}

if __name__ == "__main__":
    sys.exit(main())
