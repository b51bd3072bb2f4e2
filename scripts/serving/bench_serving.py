"""Measure a server: requests arrive at random (Poisson) at several rates, beside other ways to answer the same rows.

    python scripts/serving/bench_serving.py [--profile tiny] [--rows 190] [--rates 2,4,8] [--json FILE]

Prints requests and tokens a second, the time to the first token, and the time of each further token (p50, p99), for

- `one at a time`: every request waits for the one before;
- `offline`: the same rows and methods as one evaluation answers them, adapters found included;
- `all at once`: all requests are sent at the beginning (saturation), with mixed methods, and with one adapter for all;
- each rate of arrivals, as a share of the throughput at saturation if it is below 1.

`CPU` is the CPU time of a request, without the client, which runs in the main thread. It counts the same on a machine
where other programs run, and the quotient of two CPU times is then worth more than that of two throughputs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
from local_server import LocalServer, chat_times

from lora_retriever.data.rows import Row, read_rows
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.serving.loading import settle

METHODS = ("selection", "fusion", "mixture")
Ask = tuple[str, str]
"""A model and a text."""


@dataclass(frozen=True)
class Figures:
    """What one way of answering takes. Times in milliseconds."""

    name: str
    requests_a_second: float
    tokens_a_second: float
    cpu: float
    first_p50: float | None = None
    first_p99: float | None = None
    token_p50: float | None = None
    token_p99: float | None = None


async def timed(client: httpx.AsyncClient, ask: Ask) -> list[float]:
    """When the request was sent, and when each piece of its answer came, in seconds."""
    return [time.perf_counter(), *[at async for at in chat_times(client, *ask)]]


async def one_at_a_time(client: httpx.AsyncClient, asks: Sequence[Ask]) -> list[list[float]]:
    """Every request waits for the one before."""
    return [await timed(client, ask) for ask in asks]


async def all_at_once(client: httpx.AsyncClient, asks: Sequence[Ask]) -> list[list[float]]:
    """All requests are sent at the beginning."""
    return list(await asyncio.gather(*(timed(client, ask) for ask in asks)))


def arriving(rate: float, seed: int = 0) -> Callable[[httpx.AsyncClient, Sequence[Ask]], Awaitable[list[list[float]]]]:
    """Requests arrive as a Poisson process of `rate` requests a second, whether answers come or not."""

    async def run(client: httpx.AsyncClient, asks: Sequence[Ask]) -> list[list[float]]:
        draw, tasks = random.Random(seed), []
        for ask in asks:
            tasks.append(asyncio.create_task(timed(client, ask)))
            await asyncio.sleep(draw.expovariate(rate))
        return list(await asyncio.gather(*tasks))

    return run


def figures_of(name: str, times: list[list[float]], tokens: int, cpu: float) -> Figures:
    """The figures of requests, from the times of `timed`, the tokens of all answers, and the CPU seconds."""
    seconds = max(one[-1] for one in times) - min(one[0] for one in times)
    first = [1000 * (one[1] - one[0]) for one in times if len(one) > 1]
    further = [1000 * (b - a) for one in times for a, b in pairwise(one[1:])]
    quantiles = [float(q) for values in (first, further) for q in np.quantile(values or [np.nan], [0.5, 0.99])]
    return Figures(name, len(times) / seconds, tokens / seconds, 1000 * cpu / len(times), *quantiles)


def offline(profile: Profile, rows: Sequence[Row]) -> Figures:
    """An evaluation of the same rows under the same methods. The CPU time of loading is taken off."""
    from rich.console import Console

    from lora_retriever.running.evaluate import evaluate

    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "null").open("w") as null:
        path = Path(folder) / "rows.json"
        path.write_text(json.dumps([row.model_dump(exclude={"id"}) for row in rows]), encoding="utf-8")
        data = profile.data.model_copy(update={"rows": str(path)})
        changed = profile.model_copy(update={"data": data, "reuse_answers": False})
        evaluate(changed, ["base"], Path(folder) / "warm-up", 1, Console(file=null))
        loading = time.process_time()
        evaluate(changed, ["base"], Path(folder) / "loading", 1, Console(file=null))
        started = time.process_time()
        evaluate(changed, list(METHODS), Path(folder) / "results", None, Console(file=null))
        cpu = time.process_time() - started - (started - loading)
        seconds = 0.0
        for method in METHODS:
            record = json.loads((Path(folder) / "results" / f"{method}.meta.json").read_text())
            seconds += record["timings"]["seconds"]
    requests = len(METHODS) * len(rows)
    return Figures("offline", requests / seconds, float("nan"), 1000 * cpu / requests)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--rows", type=int, default=190, help="number of rows; every row is asked under every method")
    parser.add_argument("--rates", default="0.5,0.8", help="rates of arrivals (default: 0.5,0.8)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    profile = load_profile(args.profile)
    profile = profile.model_copy(update={"serve": profile.serve.model_copy(update={"waiting": 10**6})})
    rows = read_rows(profile.rows_source)
    rows = rows[:: max(1, len(rows) // args.rows)][: args.rows]
    asks = [(method, row.inputs) for row in rows for method in METHODS]
    random.Random(0).shuffle(asks)
    server = LocalServer(profile)
    settle()
    adapter = next(iter(server.serving.service.pool.current.entries))
    found: list[Figures] = []

    def measure(name: str, way: Callable[..., Awaitable[list[list[float]]]], asked: Sequence[Ask]) -> Figures:
        async def run() -> list[list[float]]:
            async with httpx.AsyncClient(base_url=server.url, timeout=3600, limits=httpx.Limits()) as client:
                return await way(client, asked)

        made, before = server.serving.metrics.made._value, server.serving.metrics.made._value.get()
        cpu, own = time.process_time(), time.thread_time()
        times = asyncio.run(run())
        cpu = (time.process_time() - cpu) - (time.thread_time() - own)
        figures = figures_of(name, times, int(made.get() - before), cpu)
        found.append(figures)
        return figures

    measure("warm-up", all_at_once, asks[:32])
    found.clear()
    measure("one at a time", one_at_a_time, asks[: max(10, len(asks) // 10)])
    most = measure("all at once, mixed", all_at_once, asks)
    measure("all at once, one adapter", all_at_once, [(adapter, text) for _, text in asks])
    for rate in map(float, args.rates.split(",")):
        absolute = rate * most.requests_a_second if rate < 1 else rate
        measure(f"{absolute:.1f} arrivals/s", arriving(absolute), asks)
    server.close()
    found.append(offline(profile, rows))
    print("| way | requests/s | tokens/s | CPU | first token p50 / p99 | further token p50 / p99 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for one in found:
        times = [
            "–" if p50 is None or p99 is None else f"{p50:.1f} / {p99:.1f} ms"
            for p50, p99 in ((one.first_p50, one.first_p99), (one.token_p50, one.token_p99))
        ]
        print(
            f"| {one.name} | {one.requests_a_second:.1f} | {one.tokens_a_second:.0f} | {one.cpu:.1f} ms | "
            f"{' | '.join(times)} |"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
