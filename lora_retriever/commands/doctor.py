"""`lora-retriever doctor`: the problems that a run would have, found before anything is loaded; and measurements."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_profile, profile_of
from lora_retriever.escaping import one_line
from lora_retriever.files import write_json

HELP = "what is missing or will not fit, before anything is loaded"
EXAMPLES = """
lora-retriever doctor --profile mine.yaml
lora-retriever doctor --profile llama2-7b --offline
lora-retriever doctor --profile llama2-7b --set generation.batch_size=32
lora-retriever doctor --profile llama2-7b --measure --json measured.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    parser.add_argument("--offline", action="store_true", help="do not ask the Hub about models that are not here")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="then load the base and the adapters, and measure on this device: whether composing is exact, whether "
        "answers depend on the batch, tokens per second, peak memory, and the time of the profile's runs",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings and figures to this file as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.progress import quieten_transformers
    from lora_retriever.running.doctor import examine

    profile = profile_of(args)
    results = args.results or Path("results") / profile.name
    findings = []
    for number, finding in enumerate(examine(profile, results, args.offline)):
        print(f"{finding.level:<8} {one_line(finding.text)}", flush=True)
        findings.append(finding)
        if number == 0:  # transformers takes seconds to import, and the first finding does not need transformers
            quieten_transformers()
    problems = sum(finding.level == "problem" for finding in findings)
    print(f"{problems} problem{'s' if problems > 1 else ''}" if problems else "no problems found", flush=True)
    figures = None
    if args.measure and not problems:
        from lora_retriever.running.measured_findings import measured

        found, figures = measured(profile)
        findings += found
        for finding in found:
            print(f"{finding.level:<8} {one_line(finding.text)}", flush=True)
        problems = sum(finding.level == "problem" for finding in found)
    if args.json is not None:
        write_json(args.json, {"findings": [asdict(finding) for finding in findings], "measured": figures})
    return 2 if problems else 0
