"""`lora-retriever prompts`: the prompts that the base model reads, with special tokens made visible."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.arguments import add_profile, count, profile_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import brief, for_rich, for_terminal, one_line, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.data.rows import Row
    from lora_retriever.generation.prompt import Prompt

ROWS = 3
"""Default number of rows whose prompts are shown."""
MAX_CUT = 200
"""Maximum length of the cut text that is shown, in characters."""
HELP = "the prompts that the base model reads, with special tokens made visible"
EXAMPLES = """
lora-retriever prompts --profile mine.yaml
lora-retriever prompts --profile mine.yaml --task rte --rows 1 --tokens
lora-retriever prompts --profile mine.yaml --set generation.template=chat
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--rows", type=count, default=ROWS, metavar="N", help=f"number of rows (default: {ROWS})")
    parser.add_argument("--task", help="only rows of this task")
    parser.add_argument("--tokens", action="store_true", help="also show each token with its id")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.data.rows import read_rows
    from lora_retriever.experiment.benchmark import folder_of, pool_of
    from lora_retriever.generation.generator import row_prompts
    from lora_retriever.generation.loading import load_tokenizer
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.hub import TOKENIZER_WANTED
    from lora_retriever.progress import quieten_transformers

    profile = profile_of(args)
    notes: list[str] = []
    rows = read_rows(profile.rows_source, notes=notes)
    for note in notes:
        console.print(for_rich(note), soft_wrap=True)
    if args.task is not None and not any(row.task == args.task for row in rows):
        raise UserError(f"--task: {profile.rows_path} has no row of the task {quoted(args.task)}")
    chosen = [row for row in rows if args.task in (None, row.task)][: args.rows]
    quieten_transformers()
    wanted = files_wanted(profile.generation.template, TOKENIZER_WANTED)
    tokenizer = load_tokenizer(folder_of(profile, profile.base.location, profile.base.revision, wanted))
    pool = pool_of(profile, rows, []) if profile.generation.shots else []
    prompts = row_prompts(chosen, tokenizer, profile.generation, pool)
    print("\n\n".join(_shown(*pair, tokenizer, args.tokens) for pair in zip(chosen, prompts, strict=True)))
    return 0


def _shown(row: Row, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, tokens: bool) -> str:
    """One prompt for the terminal: a line about the row, the prompt, the cut text, and the tokens if asked for."""
    lines = [
        one_line(f"row {row.id}, task {row.task}: {len(prompt.token_ids)} tokens{_examples(prompt)}"),
        for_terminal(with_special_tokens(prompt.token_ids, tokenizer)),
    ]
    if prompt.truncated_tokens:
        text = one_line(repr(brief(prompt.truncated_text, MAX_CUT)))
        lines.append(f"cut from the end of the input: {prompt.truncated_tokens} tokens, {text}")
    for option, scored in zip(row.options or (), prompt.options, strict=True):
        own = tokenizer.decode(list(scored.token_ids[-scored.scored :]), clean_up_tokenization_spaces=False)
        lines.append(one_line(f"option {option!r}: {scored.scored} tokens, {own!r}"))
    if tokens:
        pieces = tokenizer.convert_ids_to_tokens(prompt.token_ids)
        lines += [one_line(f"{id:>8}  {piece!r}") for id, piece in zip(prompt.token_ids, pieces, strict=True)]
    return "\n".join(lines)


def _examples(prompt: Prompt) -> str:
    return "" if prompt.shots is None else f", {prompt.shots} examples"


def with_special_tokens(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of tokens, with each special token as `⟦token⟧`. A text that reads like a special token does not change.

    Args:
        ids: the tokens of a prompt.
    """
    from lora_retriever.generation.tokenizing import special_tokens

    special = {id: text for text, id in special_tokens(tokenizer).items()}
    text, ordinary = "", list[int]()
    for id in [*ids, None]:
        if id is not None and id not in special:
            ordinary.append(id)
            continue
        if ordinary:
            text += str(tokenizer.decode(ordinary, clean_up_tokenization_spaces=False))
            ordinary = []
        if id is not None:
            text += f"⟦{special[id]}⟧"
    return text
