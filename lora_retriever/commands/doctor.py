"""`lora-retriever doctor`: the problems that a run would have, found before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_profile, profile_of
from lora_retriever.escaping import one_line

HELP = "what is missing or will not fit, before anything is loaded"
EXAMPLES = """
lora-retriever doctor --profile mine.yaml
lora-retriever doctor --profile llama2-7b --offline
lora-retriever doctor --profile llama2-7b --set generation.batch_size=32
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    parser.add_argument("--offline", action="store_true", help="do not ask the Hub about models that are not here")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.progress import quieten_transformers
    from lora_retriever.running.doctor import examine

    profile = profile_of(args)
    results = args.results or Path("results") / profile.name
    problems = 0
    for number, finding in enumerate(examine(profile, results, args.offline)):
        print(f"{finding.level:<8} {one_line(finding.text)}", flush=True)
        problems += finding.level == "problem"
        if number == 0:  # transformers takes seconds to import, and the first finding does not need it
            quieten_transformers()
    print(f"{problems} problem{'s' if problems > 1 else ''}" if problems else "no problems found")
    return 2 if problems else 0
