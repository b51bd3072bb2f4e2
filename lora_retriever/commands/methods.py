"""`lora-retriever methods`: every method, a line each."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_retriever.commands.arguments import add_profile, profile_of
from lora_retriever.escaping import for_terminal

if TYPE_CHECKING:
    from lora_retriever.methods import Method

HELP = "every method, a line each, with where it is described"
EXAMPLES = """
lora-retriever methods
lora-retriever methods --profile mine.yaml      # with the options and the own methods of a profile
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser, "show the options and the own methods of this profile: a bundled name, or a YAML file")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.methods import methods_of

    profile = profile_of(args)
    own = [name for name in profile.methods if ":" in name]
    print(to_text(methods_of(profile, ["all", *own]), {method.name for method in methods_of(profile)}), end="")
    return 0


def to_text(methods: Sequence[Method], chosen: Collection[str]) -> str:
    """One line for each method: name, summary, options, citation. An out-of-domain variant shares its method's line.

    Args:
        chosen: the names of the methods that a run of the profile takes; their lines are marked.
    """
    from lora_retriever.methods.base import OOD

    names = {method.name for method in methods}
    lines = []
    for method in methods:
        if method.plain_name in names - {method.name}:
            continue
        variant = method.name + OOD
        mark = "*" if {method.name, variant} & set(chosen) else " "
        name = f"{method.name}[{OOD}]" if variant in names else method.name
        options = ", ".join(f"{option}={value}" for option, value in options_of(method).items())
        lines.append((f"{mark} {name}", method.summary + (f" ({options})" if options else ""), method.citation))
    width = max(len(name) for name, _, _ in lines)
    text = "".join(f"{name:<{width}}  {summary}. {citation}\n" for name, summary, citation in lines)
    explained = f"* run by default; [{OOD}]: also with each row's own adapter masked; k=None: the profile's k"
    return for_terminal(f"{text}\n{explained}\n")


def options_of(method: Method) -> dict[str, Any]:
    """The options of a method's router, composer and gate, with their values."""
    parts: list[Any] = [method.router, method.mode, method.gate]
    return {
        field.name: getattr(part, field.name)
        for part in parts
        if dataclasses.is_dataclass(part)
        for field in dataclasses.fields(part)
    }
