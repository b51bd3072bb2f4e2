"""Try what must never go wrong: `python scripts/run_campaign.py kills|signals|disks|inputs|fuzz [--count N] [--seconds S]`

    kills    SIGKILL at random moments and before every file operation
    signals  SIGTERM, SIGINT and SIGHUP at random moments, closed pipes, two processes in one folder
    disks    every file operation fails: a full disk, EIO, ESTALE, EROFS, EACCES
    inputs   bad inputs of every kind
    fuzz     mutated rows, pools, profiles, adapters, results files and indices

Every trial is a line of `OUT/EXPERIMENT.jsonl`. The same command goes on where it was stopped. The exit status is 1 if a
promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign.figures import Log

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
    """A third of `--count` kills before file operations and the others at random moments; by default all and 1,000."""
    from campaign.kills import Kills
    from campaign.world import make_world, warm_up

    world = make_world(scratch / "world")
    warm_up(world, scratch / "warm")
    kills = Kills(world, scratch, log)
    kills.at_operations(None if args.count is None else args.count // 3)
    kills.random(1000 if args.count is None else args.count - args.count // 3)


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
    from campaign.world import make_world, warm_up

    world = make_world(scratch / "world")
    warm_up(world, scratch / "warm")
    disks = Disks(Kills(world, scratch, log), log)
    disks.small_file_systems()
    disks.at_operations(args.count)


EXPERIMENTS = {"kills": kills, "signals": signals, "disks": disks}

if __name__ == "__main__":
    sys.exit(main())
