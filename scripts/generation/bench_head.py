"""How much do the output layer's forms cost? `python scripts/generation/bench_head.py --base FOLDER [--dtype bfloat16]`

Three products with a large vocabulary, each in the project's form and in the plain form, which take turns in every
round: a prefill that wants the logits of the last positions, the same with its backward pass (a training step without
an adapter), and the choice of the next token. Any causal LM of transformers will do; numbers are medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from lora_retriever.generation.heads import contiguous_head
from lora_retriever.tables import Cell, Table, terminal


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rows", type=int, default=16, help="of the prefill; a training step has a quarter")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--choices", type=int, default=64, help="rows whose next token is chosen")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=getattr(torch, args.dtype)).requires_grad_(False)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (args.rows, args.tokens))  # [rows, tokens]
    embedded = model.get_input_embeddings()(ids[: max(1, args.rows // 4)])  # [rows / 4, tokens, hidden]
    logits = torch.randn(args.choices, vocabulary, dtype=model.dtype)

    def prefill(plain: bool) -> None:
        with torch.inference_mode(), nullcontext() if plain else contiguous_head(model):
            model(input_ids=ids, logits_to_keep=1, use_cache=False)

    def step(plain: bool) -> None:
        with nullcontext() if plain else contiguous_head(model):
            inputs = embedded.clone().requires_grad_()  # so that there is a backward pass, as for an adapter
            model(inputs_embeds=inputs, logits_to_keep=4, use_cache=False).logits.float().logsumexp(-1).sum().backward()

    def choose(plain: bool) -> None:
        _ = logits.argmax(dim=-1) if plain else logits.max(dim=-1).indices

    rows: list[tuple[str, list[Cell | str | None]]] = []
    for name, act in {"prefill": prefill, "prefill and backward": step, "next token": choose}.items():
        plain, ours = in_turn(act, args.rounds)
        rows.append((name, [f"{1000 * ours:.1f}", f"{1000 * plain:.1f}", f"{plain / ours:.2f}"]))
    print(terminal(Table(["ours, ms", "plain, ms", "plain / ours"], rows, [f"{args.dtype}, {args.base}"])))


def in_turn(act: Callable[[bool], None], rounds: int) -> tuple[float, float]:
    """The median seconds of the plain form and of our form. One round to warm up does not count."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds + 1):
        for plain, times in seconds.items():
            started = time.perf_counter()
            act(plain)
            times.append(time.perf_counter() - started)
    return median(seconds[True][1:]), median(seconds[False][1:])


if __name__ == "__main__":
    main()
