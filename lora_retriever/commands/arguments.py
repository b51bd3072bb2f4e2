"""Arguments that several commands share, and checked types of arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_retriever.data.tables import COLUMN_FIELDS, DEFAULT_FIELDS

if TYPE_CHECKING:
    from lora_retriever.data.sources import DataSource
    from lora_retriever.experiment.profile import Profile

DEFAULT_PROFILE = "tiny"
DEFAULT_RESULTS = Path("results") / DEFAULT_PROFILE


class KnownNames:
    """Names that an argument takes. `--help` lists the names, and the shell completes the names.

    Attributes:
        title: the kind of the names, for the help.
    """

    def __init__(self, title: str, find: Callable[[], Iterable[str]], several: bool = False, end: str = "") -> None:
        """`find` gives the names, `several` names may stand with commas between them, `end` comes after a name."""
        self.title = title
        self._find, self._several, self._end = find, several, end

    def complete(self, *arguments: argparse.Action) -> None:
        """Let these arguments take the names."""
        for argument in arguments:
            argument.completer = self  # type: ignore[attr-defined]  # where argcomplete looks for it

    def names(self) -> list[str]:
        """The names. Finding the names may import slow packages."""
        return list(self._find())

    def __call__(self, prefix: str = "", **_: Any) -> list[str]:
        """The completions that argcomplete offers for a text that begins with `prefix`."""
        before = prefix[: prefix.rfind(",") + 1] if self._several else ""
        return [f"{before}{name}{self._end}" for name in self.names()]


def _profiles() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).resolve().parents[1] / "profiles").glob("*.yaml"))


def _fields() -> list[str]:
    from lora_retriever.experiment.fields import profile_fields

    return [field.name for field in profile_fields()]


def _methods() -> list[str]:
    from lora_retriever.methods import registered

    return ["all", "paper", *registered()]


def _scorers() -> list[str]:
    from lora_retriever.retrieval.scorers import SCORERS

    return list(SCORERS)


PROFILES = KnownNames("bundled profiles", _profiles)
FIELDS = KnownNames("fields of a profile", _fields, end="=")
METHODS = KnownNames("methods", _methods, several=True)
SCORERS = KnownNames("scorers", _scorers)


def add_profile(parser: argparse.ArgumentParser, help: str = "a bundled profile's name, or a YAML file") -> None:
    """Add the arguments for the profile, which `profile_of` reads."""
    profile = parser.add_argument("--profile", default=DEFAULT_PROFILE, help=f"{help} (default: {DEFAULT_PROFILE})")
    PROFILES.complete(profile)
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add the argument that sets fields of the profile."""
    fields = parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="set_fields",
        metavar="FIELD=VALUE",
        help="a value in place of the profile's, such as retrieval.k=5; repeat for several",
    )
    FIELDS.complete(fields)


def profile_of(args: argparse.Namespace) -> Profile:
    """The profile that the arguments name, with the values that the arguments set.

    Raises:
        UserError: there is no such profile, or a field is wrong.
    """
    from lora_retriever.experiment.profile import load_profile

    return load_profile(args.profile, args.set_fields)


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how texts are encoded."""
    parser.add_argument("--layout", choices=["auto", "sentence-transformers", "instructor"], default="auto")
    parser.add_argument("--instruction", default="", help="text before every input")
    parser.add_argument("--no-cache", action="store_true", help="encode all texts and keep no embeddings on disk")


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which columns of a table are which fields, as `columns` and `defaults` of profiles."""
    for option, metavar, fields, example, what in (
        ("--columns", "FIELD=NAME,…", COLUMN_FIELDS, "inputs=question,targets=answer", "the column of each field"),
        ("--defaults", "FIELD=VALUE,…", DEFAULT_FIELDS, "domain=mine,metric=em", "the value of each missing field"),
    ):
        parser.add_argument(
            option,
            type=partial(pairs, fields),
            default={},
            metavar=metavar,
            help=f"{what}, such as {example} (fields: {', '.join(fields)})",
        )


def rows_source(path: Path, args: argparse.Namespace) -> DataSource:
    """The rows of a file, read as the arguments of `add_columns` say."""
    from lora_retriever.data.sources import DataSource

    return DataSource(path, columns=args.columns, defaults=args.defaults)


def pool_source(path: Path, args: argparse.Namespace) -> DataSource:
    """The pool of a file, read as the arguments of `add_columns` say. Pools have no metric and no options."""
    from lora_retriever.data.sources import DataSource

    columns, defaults = (
        {name: value for name, value in given.items() if name not in ("metric", "options")}
        for given in (args.columns, args.defaults)
    )
    return DataSource(path, columns=columns, defaults=defaults)


def pairs(fields: Sequence[str], text: str) -> dict[str, str]:
    """Fields of rows with a text each: `inputs=question,targets=answer`. `fields` are the fields that may stand there.

    Raises:
        argparse.ArgumentTypeError: a pair has no `=`, a field is unknown or named twice, or a text is empty.
    """
    found: dict[str, str] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        if not name or not value:
            raise argparse.ArgumentTypeError(f"{pair!r}: expected FIELD=NAME, such as inputs=question")
        if name not in fields:
            raise argparse.ArgumentTypeError(f"unknown field {name!r} (known: {', '.join(fields)})")
        if name in found:
            raise argparse.ArgumentTypeError(f"field {name} is named twice")
        found[name] = value
    return found


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for results folders, and for the rows with which the rows of these folders are matched."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        default=[DEFAULT_RESULTS],
        metavar="DIR",
        help="several folders stand side by side; their rows are matched with the rows of the first",
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="match the answered rows with the rows of this file of a benchmark"
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose and order the runs of a table."""
    parser.add_argument(
        "--runs",
        type=run_names,
        metavar="NAME,NAME",
        help="show these runs alone: names, or patterns such as 'mixture*'; of several folders also FOLDER:RUN "
        "(default: all)",
    )
    parser.add_argument(
        "--sort", choices=["paper", "mean"], default="paper", help="the paper's order, or by falling mean over tasks"
    )


def add_by(parser: argparse.ArgumentParser) -> None:
    """Add the argument that splits the rows of a table."""
    parser.add_argument(
        "--by", metavar="FIELD", help="split the rows by a further field of theirs: a column for each of its values"
    )


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
        help="a folder with metrics of your own, which rows may name; repeat for several",
    )
    parser.add_argument("--without-leaks", action="store_true", help="leave out rows whose inputs are in the pool")
    parser.add_argument("--pool", type=Path, help="the pool file, for --without-leaks (default: the run's)")


def names(text: str, separator: str = ",") -> list[str]:
    """Names separated by commas, or by another separator.

    Raises:
        argparse.ArgumentTypeError: there is no name.
    """
    found = [name for name in text.split(separator) if name]
    if not found:
        raise argparse.ArgumentTypeError("must name at least one")
    return found


def run_names(text: str) -> list[str]:
    """Names of runs separated by commas. In `mixture@k=4,scorer=cosine` the comma belongs to the name.

    Raises:
        argparse.ArgumentTypeError: there is no name.
    """
    return names(re.sub(r",(?!\w+=)", "\0", text), "\0")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error


def count(text: str) -> int:
    """An integer of 1 or more.

    Raises:
        argparse.ArgumentTypeError: the text is no integer, or the number is less than 1.
    """
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def nonnegative(text: str) -> int:
    """An integer of 0 or more.

    Raises:
        argparse.ArgumentTypeError: the text is no integer, or the number is less than 0.
    """
    number = _integer(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def penalty(text: str) -> float:
    """A finite number of 0 or more.

    Raises:
        argparse.ArgumentTypeError: the text is no number, or the number is negative or infinite.
    """
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of 0 or more")
    return number
