"""`lora-retriever watermark verify`: whether a suspect knows a key. Exit status 0: verified, 1: not verified."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_retriever.commands.watermark.shared import add_base, add_prompts, base_of, load_suspects, template_and_system
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_terminal

if TYPE_CHECKING:
    from lora_retriever.watermark.key import Key
    from lora_retriever.watermark.statistics import Evidence
    from lora_retriever.watermark.suspects import Suspect

HELP = "try a key on an adapter, a composition or a server; exit status 0: verified, 1: not verified"
VERIFIED, NOT_VERIFIED = 0, 1
LEVEL = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's arguments."""
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the owner's key")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="LOCATION[=WEIGHT]",
        help="a folder or a Hub id; repeat for a composition (default weight: 1)",
    )
    parser.add_argument("--mode", choices=["mixture", "fusion", "linear", "ties", "dare", "svd"], default="mixture")
    add_base(parser)
    add_prompts(parser)
    parser.add_argument("--url", help="address of a server with OpenAI's interface, instead of adapters")
    parser.add_argument("--model", help="the model's name at the server (default: the first of the server's list)")
    parser.add_argument(
        "--interface",
        choices=["chat", "completions"],
        default="chat",
        help="chat: the server makes the prompt; completions: the prompt is made of --template (default: chat)",
    )
    parser.add_argument("--logprobs", action="store_true", help="ask the server for log-probabilities, too")
    parser.add_argument(
        "--level", type=_level, default=LEVEL, help=f"verified if the p-value is below this (default: {LEVEL:g})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result into FILE")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the part and return the exit status."""
    from lora_retriever.files import write_json, writing
    from lora_retriever.watermark.key import read_key
    from lora_retriever.watermark.suspects import verify

    key = read_key(args.key)
    if (args.url is None) == (not args.adapter and args.base is None):
        raise UserError("name what is to be tried: adapters (--adapter), a base (--base), or a server (--url)")
    with console.status("asking the triggers"):
        suspect = _served(args) if args.url else _local(args)
        evidence = verify(key, suspect)
    verified = evidence.p < args.level
    report = _report(key, suspect, evidence, args.level)
    if args.json is not None:
        with writing(args.json):
            write_json(args.json, report)
    print(for_terminal(_text(report)), end="")
    return VERIFIED if verified else NOT_VERIFIED


def _served(args: argparse.Namespace) -> Suspect:
    from lora_retriever.generation.prompt import TEMPLATES
    from lora_retriever.watermark.served import ServedSuspect

    if args.adapter or args.base:
        raise UserError("--url: name a server or adapters, not both")
    template = template_and_system(args, None)[0] if args.template else TEMPLATES["none"]
    return ServedSuspect(args.url, args.model, args.interface, template, log_probabilities=args.logprobs)


def _local(args: argparse.Namespace) -> Suspect:
    from lora_retriever.generation.composition import Composition
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.progress import quieten_transformers
    from lora_retriever.watermark.local import LocalSuspect

    weights = dict(_weighted(text) for text in args.adapter)
    if len(weights) < len(args.adapter):
        raise UserError("--adapter: an adapter is named twice")
    first = next(iter(weights), None)
    template, system = template_and_system(args, None if first is None else Path(first))
    base = base_of(args, first, files_wanted(template))
    quieten_transformers()
    generator = load_suspects(args, base, {location: location for location in weights}, template, system)
    name = " + ".join(f"{weight:g} × {location}" for location, weight in weights.items()) or f"base {base}"
    kind = f"{args.mode} of {name}" if len(weights) > 1 else name
    return LocalSuspect(kind, generator, Composition.of(weights), args.mode)


def _report(key: Key, suspect: Suspect, evidence: Evidence, level: float) -> dict[str, Any]:
    """The result. A report has no trigger and no target, so the report may be shown while the key stays secret."""
    from lora_retriever.resampling import wilson_interval

    return {
        "suspect": suspect.name,
        "commitment": key.commitment,
        "design": key.design,
        "triggers": len(evidence.hits),
        "words": evidence.words,
        "hits": sum(evidence.hits),
        "wesr": 100 * evidence.share,
        "wesr_interval": list(wilson_interval(sum(evidence.hits), len(evidence.hits))),
        "p_hits": evidence.of_hits,
        "p_ranks": evidence.of_ranks,
        "p_permutations": evidence.of_permutations,
        "p": evidence.p,
        "level": level,
        "verified": evidence.p < level,
    }


def _text(report: dict[str, Any]) -> str:
    low, high = report["wesr_interval"]
    lines = [
        f"suspect         {report['suspect']}",
        f"commitment      {report['commitment']}",
        f"hits            {report['hits']} of {report['triggers']} triggers, each answered with one word of "
        f"{report['words']} (WESR {report['wesr']:.1f} %, interval {low:.1f} to {high:.1f})",
        f"p of the hits   {report['p_hits']:.2g}",
    ]
    if report["p_ranks"] is not None:
        lines.append(
            f"p of the ranks  {report['p_ranks']:.2g} (upper bound); by permutations {report['p_permutations']:.2g}"
        )
    verdict = "verified" if report["verified"] else "not verified"
    return "\n".join([*lines, f"{verdict}: p = {report['p']:.2g}, level {report['level']:g}", ""])


def _weighted(text: str) -> tuple[str, float]:
    """The location and the weight of an argument.

    Raises:
        UserError: the weight is no finite number.
    """
    location, sign, weight = text.rpartition("=")
    if not sign:
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"--adapter {text}: expected LOCATION or LOCATION=WEIGHT, for example marked/dart=0.5")
    return location, value


def _level(text: str) -> float:
    """A level between 0 and 1.

    Raises:
        argparse.ArgumentTypeError: the level is not between 0 and 1.
        ValueError: the text is no number.
    """
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value
