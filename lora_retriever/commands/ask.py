"""`lora-retriever ask`: the adapters that fit one input, and the answers of one or several methods."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_retriever.commands.arguments import METHODS, SCORERS, add_profile, count, names, profile_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import as_json, for_terminal, one_line

if TYPE_CHECKING:
    from lora_retriever.serving.schemas import Message, Wishes
    from lora_retriever.serving.service import Service

HELP = "find the adapters that fit one input, and answer it with one or several methods"
EXAMPLES = """
lora-retriever ask "what does Karin wear?"                         # the bundled miniature
lora-retriever ask "Is this review positive? …" --profile mine.yaml --method base,selection,mixture --k 5
lora-retriever ask "what does Karin wear?" --method people_qa:0.5+people_live:0.5 --json
"""
SHOWN = 8
"""Number of adapters that are shown, if the methods use fewer."""
BAR = 24
"""Width of a bar of probability 1, in characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("text", metavar="TEXT", help="the input, which is put into the profile's template")
    add_profile(parser)
    methods = parser.add_argument(
        "--method",
        type=names,
        default=["selection"],
        metavar="NAME,NAME",
        help="methods, adapters, or adapters with weights, A:0.5+B:0.5 (default: selection)",
    )
    METHODS.complete(methods)
    parser.add_argument("--k", type=count, help="number of adapters (default: the profile's)")
    scorer = parser.add_argument("--scorer", help="the scorer (default: the profile's)")
    SCORERS.complete(scorer)
    parser.add_argument("--exclude", type=names, default=[], metavar="NAME,NAME", help="adapters that are not used")
    parser.add_argument("--results", type=Path, help="folder of what methods learn (default: results/PROFILE)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from pydantic import ValidationError

    from lora_retriever.serving.errors import ApiError
    from lora_retriever.serving.loading import load_service
    from lora_retriever.serving.schemas import Message, Wishes
    from lora_retriever.settings import plain_text, problems_of

    try:  # before anything is loaded
        message = Message(role="user", content=plain_text(args.text))
        wishes = Wishes(k=args.k, scorer=args.scorer, exclude=args.exclude)
    except ValidationError as error:
        raise UserError(f"--{problems_of(error)[0]}") from error
    except ValueError as error:
        raise UserError(f"TEXT: {error}") from error
    profile = profile_of(args)
    try:
        with closing(load_service(profile, console, results=args.results)) as service:
            answers = asyncio.run(_answers(service, message, args.method, wishes))
            domains = service.pool.current.domains
    except ApiError as error:
        raise UserError(error.message.replace("`", "")) from error
    if args.json:
        print(as_json({"input": args.text, "answers": answers}))
        return 0
    shown: list[dict[str, Any]] = next(
        (answer["lora"]["retrieved"] for answer in answers if "retrieved" in answer["lora"]), []
    )
    if shown:
        print("adapters found")
        for line in _bars(shown[: max(SHOWN, args.k or 0)]):
            print(line)
        print()
    for answer in answers:
        used = answer["lora"]["adapters"]
        parts = ", ".join(f"{one_line(adapter['name'])} {adapter['weight']:.2f}" for adapter in used)
        offered = (
            f"{answer['lora']['offered']} of {len(domains)} adapters, weighed by token"
            if not used and ("offered" in answer["lora"])
            else "no adapter"
        )
        print(for_terminal(f"{answer['method']}  ({parts or offered})"))
        print(for_terminal(f"  {answer['answer']}"))
    return 0


async def _answers(service: Service, message: Message, models: list[str], wishes: Wishes) -> list[dict[str, Any]]:
    """The answer of each method, with the adapters that the method used. All share batches."""
    from lora_retriever.generation.loop import Sampling
    from lora_retriever.serving.answers import chat_text, described
    from lora_retriever.serving.asking import Wanted, answering
    from lora_retriever.serving.naming import asked_of, learns
    from lora_retriever.serving.prompts import Prompts
    from lora_retriever.serving.schemas import Wishes

    prompts, pool = Prompts(service.codec), service.pool.current
    prompt = prompts.of_chat([message])
    wanted = Wanted(Sampling(prompts.default_tokens), trims=True)

    async def answer(model: str) -> dict[str, Any]:
        method = service.methods.get(model)
        takes = Wishes()
        if method is not None and learns(method) and service.learning is not None:
            await asyncio.to_thread(service.learning.learn, method)
            takes = Wishes(exclude=wishes.exclude)
        elif method is not None:  # each method gets only the wishes that the method reads
            k = service.profile.retrieval.k
            read = {name: getattr(wishes, name) for name in ("k", "scorer") if method.depends_on(name, k)}
            takes = Wishes(exclude=wishes.exclude, **read)
        asked = asked_of(model, takes, service.methods, pool.entries.keys(), service.profile)
        async with answering(service, asked, [prompt], wanted) as answers:
            await answers.whole()
            (choice,) = answers.choices
            lora = described(asked, choice, pool.domains)
            return {"method": model, "answer": chat_text(choice, service.codec.tokenizer), "lora": lora}

    return list(await asyncio.gather(*map(answer, models)))


def _bars(hits: list[dict[str, Any]]) -> list[str]:
    """One line for each adapter: a bar of its probability, its name and domain, and its score."""
    names = [one_line(hit["name"]) for hit in hits]
    width = max(map(len, names))
    lines = []
    for name, hit in zip(names, hits, strict=True):
        chance = hit["probability"]
        bar = "█" * round(BAR * (chance or 0))
        share = "      –" if chance is None else f"{100 * chance:5.1f} %"
        score = f"{hit['score']:.4g}"
        lines.append(for_terminal(f"  {share} {bar:{BAR}} {name:{width}}  {one_line(hit['domain'])}  ({score})"))
    return lines
