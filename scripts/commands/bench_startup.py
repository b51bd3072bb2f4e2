"""How fast do commands start? `python scripts/commands/bench_startup.py [--rounds 5]`

Answers one row of each task of the bundled miniature under the paper's eight methods, then times commands that
need no model, each as a process of its own: the median of several rounds, after one round that warms the caches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "tiny"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first one (default: 5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results"
        os.environ["LORA_RETRIEVER_CACHE"] = str(Path(scratch) / "cache")
        run = ["run", "--limit", "1", "--table", "--results", str(results)]
        seconds_of(run)
        commands = {
            "--help": ["--help"],
            "--version": ["--version"],
            "methods": ["methods"],
            "audit": ["audit", str(TINY / "test.json"), "--pool", str(TINY / "pool.json")],
            "summarize": ["summarize", str(results)],
            "report": ["report", str(results)],
            "doctor, to its first finding": ["doctor", "--results", str(results)],
            "run, nothing left to do": run,
        }
        for name, command in commands.items():
            first_line = name.startswith("doctor")
            rounds = [seconds_of(command, first_line) for _ in range(args.rounds + 1)][1:]
            print(f"{name:<30} {median(rounds):.2f} s (from {min(rounds):.2f} to {max(rounds):.2f})")


def seconds_of(command: list[str], first_line: bool = False) -> float:
    """The time from the start of one command to its end, or to its first line of output, in seconds."""
    started = time.perf_counter()
    arguments = [sys.executable, "-m", "lora_retriever", *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        assert process.stdout is not None
        if first_line:
            process.stdout.readline()
            seconds = time.perf_counter() - started
            process.kill()
            return seconds
        process.stdout.read()
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
