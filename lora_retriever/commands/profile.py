"""`lora-retriever profile`: a profile with all its fields, and where each value comes from."""

from __future__ import annotations

import argparse

from rich.console import Console

from lora_retriever.commands.arguments import DEFAULT_PROFILE, PROFILES, add_set
from lora_retriever.escaping import for_terminal

HELP = "a profile with all its fields, and where each value comes from"
EXAMPLES = """
lora-retriever profile mine.yaml
lora-retriever profile tiny --set retrieval.k=5 --set 'methods=[base, mixture]'
lora-retriever profile --fields      # every field that a profile may have, in Markdown
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    profile = parser.add_argument(
        "profile",
        nargs="?",
        default=DEFAULT_PROFILE,
        metavar="PROFILE",
        help=f"a bundled profile's name, or a YAML file (default: {DEFAULT_PROFILE})",
    )
    PROFILES.complete(profile)
    add_set(parser)
    parser.add_argument("--fields", action="store_true", help="print what every field may be and means, and stop")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.experiment.fields import reference, with_sources

    print(for_terminal(reference() if args.fields else with_sources(args.profile, args.set_fields)), end="")
    return 0
