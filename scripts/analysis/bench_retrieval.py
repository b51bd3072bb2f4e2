"""How does retrieval scale? `python scripts/analysis/bench_retrieval.py [--json FILE]`

The embeddings are random: only times are measured.

Searching 100,000 adapters, building an index of 10,000 adapters with 20 samples each, and one adapter coming and going.
Every figure is the median of several runs, with the process's memory beside it.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_retriever import AdapterIndex
from lora_retriever.files import write_json
from lora_retriever.retrieval.scorers import Samples

Vectors = NDArray[np.float32]


def main() -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2395)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    found = [search(generator, args.adapters, args.queries, args.dim, args.runs)]
    found += [build(generator, scorer, 10_000, 20, args.dim, args.runs) for scorer in ("cosine", "discriminant")]
    for line in found:
        print(
            "  ".join(
                f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items()
            )
        )
    if args.json:
        write_json(args.json, found)


def search(generator: np.random.Generator, adapters: int, queries: int, dim: int, runs: int) -> dict[str, Any]:
    """The top 3 of a pool in which adapters resemble each other, against all scores computed and sorted."""
    centers = generator.normal(size=(2000, dim))
    means = (centers[generator.integers(0, 2000, adapters)] + generator.normal(size=(adapters, dim))).astype(np.float32)
    asked = (means[generator.integers(0, adapters, queries)] + 0.5 * generator.normal(size=(queries, dim))).astype(
        np.float32
    )
    index = AdapterIndex.from_embeddings([str(place) for place in range(adapters)], list(means[:, None]))
    index.search(asked[:1], 3)  # the first search arranges the vectors in memory, once
    seconds, hits = timed(lambda: index.search(asked, 3), runs)
    checked = asked[:200]
    scores = index._fitted().fitted.score(Samples(checked))
    exact = np.argsort(-scores, axis=1)[:, :3]
    recall = np.mean(
        [len({int(n) for n in names} & set(row)) / 3 for names, row in zip(hits.names, exact.tolist(), strict=False)]
    )
    return {
        "what": f"search, {adapters} adapters, {queries} queries",
        "seconds": seconds,
        "recall_at_3": float(recall),
        "peak_memory_mb": memory(),
    }


def build(
    generator: np.random.Generator, scorer: str, adapters: int, samples: int, dim: int, runs: int
) -> dict[str, Any]:
    """The times of an index: the fit before the first search, adding one adapter, and removing one adapter."""
    pool: list[Vectors] = list(generator.normal(size=(adapters, samples, dim)).astype(np.float32))
    names, query = [str(place) for place in range(adapters)], pool[0][:1]

    def made() -> AdapterIndex:
        index = AdapterIndex.from_embeddings(names, pool, scorer)
        index.search(query, 3)
        return index

    seconds, index = timed(made, 1)

    def changed() -> None:
        index.add("one more", pool[1])
        index.search(query, 3)
        index.remove("one more")
        index.search(query, 3)

    change, _ = timed(changed, min(runs, 3))
    return {
        "what": f"build, {scorer}, {adapters} adapters of {samples} samples",
        "seconds": seconds,
        "seconds_per_change": change / 2,
        "peak_memory_mb": memory(),
    }


def timed(action: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """The median time of an action, in seconds, and the action's result."""
    times, result = [], None
    for _ in range(runs):
        start = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - start)
    return median(times), result


def memory() -> int:
    """Maximum memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
