"""Arguments that several commands share, and checked types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

DEFAULT_PROFILE = "tiny"


def add_profile(parser: argparse.ArgumentParser, help: str = "a bundled profile's name, or a YAML file") -> None:
    """Add the argument for the profile."""
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help=f"{help} (default: {DEFAULT_PROFILE})")


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how texts are encoded."""
    parser.add_argument("--layout", choices=["auto", "sentence-transformers", "instructor"], default="auto")
    parser.add_argument("--instruction", default="", help="text before every input")
    parser.add_argument("--no-cache", action="store_true", help="encode all texts and keep no embeddings on disk")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the results folder that a command reads."""
    parser.add_argument("results", type=Path, nargs="?", default=Path("results") / DEFAULT_PROFILE, metavar="DIR")


def add_scoring(parser: argparse.ArgumentParser, scorings: Sequence[str]) -> None:
    """Add the arguments that say how answers are read and scored."""
    parser.add_argument("--scoring", choices=scorings, default=scorings[0])
    parser.add_argument("--stemming", action="store_true", help="stem words in standard ROUGE")
    parser.add_argument("--kinds", type=Path, metavar="FILE", help="YAML: which tasks are `qa`, which `choice`")
    parser.add_argument(
        "--allow-hub-metrics", action="store_true", help="fetch and run metric scripts of the Hub that rows name"
    )
    parser.add_argument(
        "--allow-metrics",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a folder whose own metrics may run where rows name them; repeat for several",
    )
    parser.add_argument("--without-leaks", action="store_true", help="leave out rows whose inputs are in the pool")
    parser.add_argument("--pool", type=Path, help="the pool file, for --without-leaks (default: the run's)")


def names(text: str) -> list[str]:
    """Names separated by commas.

    Raises:
        argparse.ArgumentTypeError: there is no name.
    """
    found = [name for name in text.split(",") if name]
    if not found:
        raise argparse.ArgumentTypeError("must name at least one")
    return found


def count(text: str) -> int:
    """An integer of 1 or more.

    Raises:
        argparse.ArgumentTypeError: the number is less than 1.
        ValueError: the text is no integer.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def nonnegative(text: str) -> int:
    """An integer of 0 or more.

    Raises:
        argparse.ArgumentTypeError: the number is less than 0.
        ValueError: the text is no integer.
    """
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def penalty(text: str) -> float:
    """A finite number of 0 or more.

    Raises:
        argparse.ArgumentTypeError: the number is negative or infinite.
        ValueError: the text is no number.
    """
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of 0 or more")
    return number
