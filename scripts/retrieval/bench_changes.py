"""Measure how long an index takes to add and to remove one adapter, beside a new fit.

    python scripts/retrieval/bench_changes.py [--adapters 10000] [--scorers cosine,discriminant,hybrid]

Embeddings and texts are drawn at random around one centre for each adapter. Times are wall-clock times, with CPU times
of the process in brackets, which count the same on a busy machine. `differing` is the share of queries whose first hit
differs between the quick index and the index that is fitted anew. `one search` is the median of 20 searches for one
query each in the quick index, encoded before. `peak memory` is the maximum memory of this process so far. To measure
one scorer, name this scorer alone.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from lora_retriever.retrieval.index import AdapterIndex

Result = TypeVar("Result")
DIM, SAMPLES, QUERIES, WORDS, SEARCHES = 384, 20, 500, 5000, 20


def timed(what: Callable[[], Result]) -> tuple[Result, tuple[float, float]]:
    """A result, and the seconds of its computation: wall-clock time and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = what()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def told(wall: float, cpu: float) -> str:
    """Both times of `timed`, in words."""
    return f"{wall:.3f} s ({cpu:.3f} s)"


def adapters(count: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray, list[str]]]:
    """Names, embeddings [samples, dim] and texts of adapters."""
    random = np.random.default_rng(seed)
    for number in range(count):
        centre = random.normal(size=DIM)
        samples = (centre + 1.5 * random.normal(size=(SAMPLES, DIM))).astype(np.float32)
        own = random.integers(WORDS, size=12)
        texts = [" ".join(f"w{word}" for word in random.choice(own, 10)) for _ in range(SAMPLES)]
        yield f"adapter_{number}", samples, texts


def main() -> None:
    """Measure every scorer, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--scorers", default="cosine,discriminant,hybrid")
    args = parser.parse_args()
    *pool, (name, samples, texts) = adapters(args.adapters + 1)
    queries = np.stack([pool[place % len(pool)][1][0] for place in range(QUERIES)])
    asked = [pool[place % len(pool)][2][0] for place in range(QUERIES)]
    print("| scorer | new fit | first adapter added | one added | one removed | one search | differing | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for scorer in args.scorers.split(","):
        index = AdapterIndex(scorer)
        for one in pool:
            index.add(*one)
        _, fit = timed(index.prepare)
        index.search(queries[:1], 3, texts=asked[:1])

        def add(to: AdapterIndex, name: str) -> AdapterIndex:
            grown = to.with_adapter(name, samples, texts)
            grown.prepare()
            return grown

        first, first_add = timed(lambda index=index: add(index, name))  # type: ignore[misc]
        second, next_add = timed(lambda first=first: add(first, "another"))  # type: ignore[misc]
        removed, remove = timed(lambda second=second: second.without_adapter(pool[0][0]))  # type: ignore[misc]
        searching = [
            timed(partial(removed.search, queries[n : n + 1], 3, texts=asked[n : n + 1]))[1] for n in range(SEARCHES)
        ]
        quick = removed.search(queries, 1, texts=asked).names
        anew = removed.refitted().search(queries, 1, texts=asked).names
        differing = np.mean([one != other for one, other in zip(quick, anew, strict=True)])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # of kB
        times = [told(*one) for one in (fit, first_add, next_add, remove, np.median(searching, axis=0))]
        print(f"| {scorer} | {' | '.join(times)} | {100 * differing:.1f} % | {peak:.1f} GB |", flush=True)


if __name__ == "__main__":
    main()
