"""Measure a server: requests arrive at random (Poisson) at several rates, beside other ways to answer the same rows.

    python scripts/serving/bench_serving.py [--profile tiny] [--rows 190] [--rates 0.5,0.8] [--rounds 3] [--json FILE]
        [--vllm PYTHON]

Prints requests and tokens a second, the time to the first token, and the time of each further token (p50, p99), for

- `one at a time`: every request waits for the one before, with mixed methods, and with the base alone;
- `all at once`: all requests are sent at the beginning (saturation), with mixed methods, and with one adapter for all;
- each rate of arrivals, as a share of the throughput at saturation if it is below 1;
- `offline`: the same rows and methods as one evaluation answers them, adapters found included;
- with `--vllm PYTHON`, `all at once` on a server with `--backend vllm`, by the Python of vLLM's environment
  (`scripts/backends/test_vllm.sh` makes one). With one adapter for all, this is vLLM with an adapter that the client
  names. vLLM computes in processes of its own, so the CPU time is not known.

For every scenario, `lora-retriever serve` is started anew as a process of its own, so that no input is known before.
The server is then warmed up with other inputs. `CPU` is the CPU time of a request in the server's process, as
`/metrics` tells it. Other programs on the machine do not change CPU times. So on a shared machine, compare CPU times
and not throughputs. The figures of `offline` are the difference between two evaluations, so that loading is left out.
With several rounds, all figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import IO
from unittest.mock import patch

import httpx
import numpy as np
from light_client import LightClient
from local_server import chat_body

from lora_retriever.data.rows import Row, read_pool, read_rows
from lora_retriever.experiment.profile import Profile, load_profile

METHODS = ("selection", "fusion", "mixture")
Ask = tuple[str, str]
"""A model and a text."""
Way = Callable[[LightClient, Sequence[Ask]], Awaitable[list[list[float]]]]
"""Sends requests, and returns the times of each request (`LightClient.times`)."""


@dataclass(frozen=True)
class Figures:
    """The figures of one scenario. Times in milliseconds."""

    name: str
    requests_a_second: float
    tokens_a_second: float
    cpu: float
    first_p50: float = float("nan")
    first_p99: float = float("nan")
    token_p50: float = float("nan")
    token_p99: float = float("nan")


async def timed(client: LightClient, ask: Ask) -> list[float]:
    """The times at which the request was sent and at which each piece of its answer came, in seconds."""
    return await client.times(chat_body(*ask))


async def one_at_a_time(client: LightClient, asks: Sequence[Ask]) -> list[list[float]]:
    """Every request waits for the one before."""
    return [await timed(client, ask) for ask in asks]


async def all_at_once(client: LightClient, asks: Sequence[Ask]) -> list[list[float]]:
    """All requests are sent at the beginning."""
    return list(await asyncio.gather(*(timed(client, ask) for ask in asks)))


def arriving(rate: float, seed: int) -> Way:
    """Requests arrive as a Poisson process of `rate` requests a second, whether answers come or not."""

    async def run(client: LightClient, asks: Sequence[Ask]) -> list[list[float]]:
        draw, tasks = random.Random(seed), []
        for ask in asks:
            tasks.append(asyncio.create_task(timed(client, ask)))
            await asyncio.sleep(draw.expovariate(rate))
        return list(await asyncio.gather(*tasks))

    return run


@contextmanager
def serving(profile: str, values: Sequence[str], vllm: str | None = None) -> Iterator[str]:
    """The address of a server that runs as a process of its own while the context is open.

    Args:
        vllm: the Python of vLLM's environment, for a server whose backend is vLLM.

    Raises:
        RuntimeError: the server did not start.
    """
    given = ["serve.waiting=1000000", *values]
    command = [vllm or sys.executable, "-m", "lora_retriever", "serve", "--profile", profile, "--port", "0"]
    command += ["--backend", "vllm"] if vllm else []
    command += [f"--set={value}" for value in given]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output)
        try:
            while (found := re.search(r"ready: (http://\S+)", _read(output))) is None:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended: {_read(output)}")
                time.sleep(0.2)
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def counters(url: str) -> tuple[float, float]:
    """The CPU seconds of the server's process, and the number of tokens that the server has made."""
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#")
    return float(lines["process_cpu_seconds_total"]), float(lines["lora_retriever_answer_tokens_total"])


def measured(
    profile: str, values: Sequence[str], name: str, way: Way, asks: Sequence[Ask], vllm: str | None = None
) -> Figures:
    """The figures of one scenario, measured with a new server. `vllm`: as for `serving`."""
    warming = [(model, f"{text} again") for model, text in asks[:64]]

    async def run(way: Way, asks: Sequence[Ask], url: str) -> list[list[float]]:
        client = LightClient(url)
        times = await way(client, asks)
        await client.close()
        return times

    with serving(profile, values, vllm) as url:
        asyncio.run(run(all_at_once, warming, url))
        cpu, made = counters(url)
        times = asyncio.run(run(way, asks, url))
        cpu_after, made_after = counters(url)
    seconds = max(one[-1] for one in times) - min(one[0] for one in times)
    first = [1000 * (one[1] - one[0]) for one in times if len(one) > 1]
    further = [1000 * (b - a) for one in times for a, b in pairwise(one[1:])]
    quantiles = [float(q) for values in (first, further) for q in np.quantile(values or [np.nan], [0.5, 0.99])]
    cpu = float("nan") if vllm else 1000 * (cpu_after - cpu) / len(times)
    return Figures(name, len(times) / seconds, (made_after - made) / seconds, cpu, *quantiles)


def offline(profile: Profile, rows: Sequence[Row]) -> Figures:
    """An evaluation of the rows under all methods, less an evaluation of few other rows, which loads as much."""
    from rich.console import Console

    from lora_retriever.running.evaluate import evaluate

    few = [row.model_copy(update={"inputs": f"{row.inputs} again"}) for row in rows[:8]]
    warming = [row.model_copy(update={"inputs": f"{row.inputs} once more"}) for row in rows[:8]]
    taken: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"LORA_RETRIEVER_CACHE": folder}):
        for number, some in enumerate((warming, few, rows)):
            path = Path(folder) / f"rows-{number}.json"
            path.write_text(json.dumps([row.model_dump(exclude={"id"}) for row in some]), encoding="utf-8")
            data = profile.data.model_copy(update={"rows": str(path)})
            changed = profile.model_copy(update={"data": data, "reuse_answers": False})
            wall, cpu = time.perf_counter(), time.process_time()
            evaluate(changed, list(METHODS), Path(folder) / f"results-{number}", None, Console(quiet=True))
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    seconds, cpu = np.subtract(taken[2], taken[1])
    requests = len(METHODS) * (len(rows) - len(few))
    return Figures("offline", requests / seconds, float("nan"), 1000 * cpu / requests)


def one_round(args: argparse.Namespace, profile: Profile, rows: Sequence[Row], seed: int) -> list[Figures]:
    """The figures of all scenarios."""
    asks = [(method, row.inputs) for row in rows for method in METHODS]
    random.Random(seed).shuffle(asks)
    adapter = read_pool(profile.pool_source)[0].model_name

    def measure(name: str, way: Way, asked: Sequence[Ask], vllm: str | None = None) -> Figures:
        return measured(args.profile, args.set, name, way, asked, vllm)

    few = asks[: max(10, len(asks) // 10)]
    named = [(adapter, text) for _, text in asks]
    most = measure("all at once, mixed", all_at_once, asks)
    found = [
        measure("one at a time, base", one_at_a_time, [("base", text) for _, text in few]),
        measure("one at a time, mixed", one_at_a_time, few),
        most,
        measure("all at once, one adapter", all_at_once, named),
    ]
    for rate in map(float, filter(None, args.rates.split(","))):
        absolute = rate * most.requests_a_second if rate < 1 else rate
        name = f"arrivals, {rate:.0%} of all at once" if rate < 1 else f"{rate:.1f} arrivals/s"
        found.append(measure(name, arriving(absolute, seed), asks))
    if args.vllm:
        found += [
            measure("all at once, mixed, vLLM", all_at_once, asks, args.vllm),
            measure("all at once, one adapter, vLLM", all_at_once, named, args.vllm),
        ]
    return [*found, offline(profile, rows)]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of `lora-retriever`")
    parser.add_argument("--rows", type=int, default=190, help="number of rows; every row is asked under every method")
    parser.add_argument("--rates", default="0.5,0.8", help="rates of arrivals (default: 0.5,0.8)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--vllm", metavar="PYTHON", help="measure a server on vLLM, too, by this Python")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    profile = load_profile(args.profile, args.set)
    rows = read_rows(profile.rows_source)
    rows = rows[:: max(1, len(rows) // args.rows)][: args.rows]
    rounds = [one_round(args, profile, rows, seed) for seed in range(args.rounds)]
    found = [
        Figures(ways[0].name, *(float(np.median([getattr(way, f.name) for way in ways])) for f in fields(Figures)[1:]))
        for ways in zip(*rounds, strict=True)
    ]
    print("| way | requests/s | tokens/s | CPU | first token p50 / p99 | further token p50 / p99 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for one in found:
        figures = [
            f"{one.requests_a_second:.1f}",
            f"{one.tokens_a_second:.0f}",
            f"{one.cpu:.1f} ms",
            f"{one.first_p50:.1f} / {one.first_p99:.1f} ms",
            f"{one.token_p50:.1f} / {one.token_p99:.1f} ms",
        ]
        print(f"| {one.name} | {' | '.join('–' if 'nan' in figure else figure for figure in figures)} |")
    if args.json:
        args.json.write_text(json.dumps([[asdict(one) for one in ways] for ways in rounds], indent=1))


if __name__ == "__main__":
    main()
