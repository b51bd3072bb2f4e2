"""Check that every answer of a server equals the answer of an evaluation to the same row under the same method.

    bash eval_all.sh --results results/tiny
    python scripts/serving/check_answers.py results/tiny [--profile tiny] [--at-once 32]

The rows are asked in random order, many at once, so that rows of different methods share batches. Prints the rows that
differ; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
from local_server import LocalServer, chat

from lora_retriever.experiment.profile import load_profile


async def differing(url: str, lines: list[tuple[str, dict[str, Any]]], at_once: int) -> list[str]:
    """A line for each answer that differs."""
    room = asyncio.Semaphore(at_once)
    found: list[str] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=at_once)) as client:

        async def ask(method: str, line: dict[str, Any]) -> None:
            async with room:
                answer = await chat(client, method, line["inputs"])
            if answer != line["predicted_answer"]:
                found.append(f"{method}: row {line['id']}: {answer!r} and not {line['predicted_answer']!r}")

        await asyncio.gather(*(ask(method, line) for method, line in lines))
    return found


def main() -> int:
    """Ask all rows, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--at-once", type=int, default=32)
    args = parser.parse_args()
    server = LocalServer(load_profile(args.profile))
    lines = [
        (path.stem, json.loads(line))
        for path in sorted(args.results.glob("*.jsonl"))
        if path.stem in server.serving.service.methods
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    random.Random(0).shuffle(lines)
    found = asyncio.run(differing(server.url, lines, args.at_once))
    server.close()
    methods = sorted({method for method, _ in lines})
    print(f"{len(lines)} answers of {', '.join(methods)}; {args.at_once} at once: {len(found)} differ")
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
