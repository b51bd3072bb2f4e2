"""`lora-retriever doctor`: what is missing or will not fit, before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_profile

HELP = "what is missing or will not fit, before anything is loaded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.experiment.profile import load_profile
    from lora_retriever.running.doctor import examine

    profile = load_profile(args.profile)
    results = args.results or Path("results") / profile.name
    problems = 0
    for finding in examine(profile, results):
        print(f"{finding.level:<8} {finding.text}")
        problems += finding.level == "problem"
    print(f"{problems} problems" if problems else "no problems found")
    return 2 if problems else 0
