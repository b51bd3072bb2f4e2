"""A plan for more than one machine: a simulation of a server with 10³ to 10⁶ adapters.

    python scripts/serving/simulate_scale.py [--rate 12] [--requests 20000]

Requests arrive as a Poisson process. The adapters of a request are drawn by Zipf's law: the adapter of popularity rank
i with probability ∝ i^-α. Adapters lie in the GPU's memory, else in the host's, else on the local disk, else in an
object store; the memories and the disk drop the least recently used adapters. A request joins the batch when all its
adapters are on the GPU and a row is free. A step decodes one token of every row.

All numbers of `Machine` are stated, not measured: a GPU of 80 GB with a base of 7 B parameters. `--json` writes the
figures. docs/scale.md shows the table and what follows from it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SIZES = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Place:
    """Where adapters lie.

    Attributes:
        room: for adapters, in bytes.
        rate: at which adapters are moved from here to the GPU, in bytes a second.
        latency: time until the place begins to answer, in seconds. The link to the GPU is free meanwhile.
    """

    room: float
    rate: float = math.inf
    latency: float = 0.0


@dataclass(frozen=True)
class Machine:
    """One replica. Sizes in bytes, times in seconds.

    Attributes:
        adapter: size of one adapter: rank 16 on q and v of a base of 7 B, bfloat16.
        places: the GPU's memory, the host's memory, the local disk, and the object store, which has room for all.
        rows: maximum number of rows of the batch.
        step: time of a step, and `row_step` for each of its rows.
        prefill: time of reading one prompt.
        search: time of one search by inner products, for each adapter of the pool.
    """

    adapter: float = 16.8e6
    places: tuple[Place, ...] = (Place(40e9), Place(400e9, 20e9), Place(3.5e12, 3e9), Place(math.inf, 0.3e9, 0.05))
    rows: int = 64
    step: float = 0.022
    row_step: float = 0.00012
    prefill: float = 0.015
    search: float = 1e-7


@dataclass(frozen=True)
class Figures:
    """The figures of one simulation. Times in seconds.

    Attributes:
        found: the share of the uses of adapters that each place serves.
        loading: time of moving adapters to the GPU, for each request.
    """

    adapters: int
    alpha: float
    rate: float
    found: tuple[float, ...]
    loading: float
    first_p50: float
    first_p99: float
    requests_a_second: float


class Lru:
    """The names that are in a memory with room for `room` adapters; the least recently used is dropped."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._names: OrderedDict[int, None] = OrderedDict()

    def fill(self, adapters: int) -> None:
        """Begin with the most popular adapters, the most popular used last."""
        for name in reversed(range(min(adapters, self._room))):
            self._names[name] = None

    def use(self, name: int) -> bool:
        """Note a use. Returns whether the adapter was there."""
        found = name in self._names
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > self._room:
            self._names.popitem(last=False)
        return found


def draw(adapters: int, alpha: float, requests: int, k: int, random: np.random.Generator) -> np.ndarray:
    """The adapters [requests, k] of each request, by popularity rank from 0."""
    weights = np.arange(1, adapters + 1, dtype=np.float64) ** -alpha
    sums = np.cumsum(weights)
    return np.searchsorted(sums, random.random((requests, k)) * sums[-1])


def simulate(
    adapters: int,
    alpha: float,
    rate: float,
    requests: int,
    k: int = 3,
    tokens: int = 50,
    machine: Machine | None = None,
    seed: int = 0,
) -> Figures:
    """One replica under `rate` requests a second.

    The memories begin with the most popular adapters. The first half of the requests is not counted.
    """
    m, random = machine or Machine(), np.random.default_rng(seed)
    wanted = draw(adapters, alpha, requests, k, random)
    arrivals = np.cumsum(random.exponential(1 / rate, requests))
    lengths = random.geometric(1 / tokens, requests)
    memories = [Lru(int(place.room / m.adapter)) for place in m.places[:-1]]
    for memory in memories:
        memory.fill(adapters)
    costs = [m.adapter / place.rate for place in m.places]  # the link is busy
    found = np.zeros(len(m.places))
    ready, link, loading = np.empty(requests), 0.0, 0.0  # when a request's adapters are there; when the link is free
    for place, names in enumerate(wanted.tolist()):
        at = there_at = arrivals[place] + m.search * adapters
        for name in names:
            level = [*(memory.use(name) for memory in memories), True].index(True)
            if level:
                link = max(link, at) + costs[level]
                there_at = max(there_at, link + m.places[level].latency)
            if place >= requests // 2:
                found[level] += 1
                loading += costs[level] + m.places[level].latency
        ready[place] = there_at
    first = _steps(m, ready, lengths) - arrivals
    counted = slice(requests // 2, None)
    half = requests - requests // 2
    seconds = max(float((arrivals + first)[counted].max() - arrivals[requests // 2]), 1e-9)
    p50, p99 = np.quantile(first[counted], [0.5, 0.99]).tolist()
    return Figures(
        adapters=adapters,
        alpha=alpha,
        rate=rate,
        found=tuple((found / found.sum()).tolist()),
        loading=loading / half,
        first_p50=p50,
        first_p99=p99,
        requests_a_second=half / seconds,
    )


def _steps(m: Machine, ready: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The time of the first token of each request. A request joins when it is ready and a row is free."""
    order = np.argsort(ready, kind="stable")
    waiting = deque(order.tolist())
    first = np.empty(len(ready))
    left: list[int] = []  # tokens that each row of the batch still gets
    now = 0.0
    while waiting or left:
        if not left:
            now = max(now, float(ready[waiting[0]]))
        while waiting and len(left) < m.rows and ready[waiting[0]] <= now:
            request = waiting.popleft()
            now += m.prefill
            first[request] = now
            left.append(int(lengths[request]))
        steps = _steps_until_change(m, left, waiting, ready, now)
        now += steps * (m.step + m.row_step * len(left))
        left = [tokens - steps for tokens in left if tokens > steps]
    return first


def _steps_until_change(m: Machine, left: Sequence[int], waiting: deque[int], ready: np.ndarray, now: float) -> int:
    """The number of steps without a change of the batch: until a row ends, or a request is ready and a row is free."""
    steps = min(left)
    if waiting and len(left) < m.rows:
        until = ready[waiting[0]] - now
        steps = min(steps, max(1, int(np.ceil(until / (m.step + m.row_step * len(left))))))
    return steps


def largest_rate(adapters: int, alpha: float, requests: int, limit: float, machine: Machine | None = None) -> float:
    """The largest number of requests a second of one replica whose p99 of the time to the first token is in `limit`."""
    low, high = 0.0, 128.0
    while high - low > 1:
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if simulate(adapters, alpha, middle, requests, machine=machine).first_p99 <= limit
            else (low, middle)
        )
    return low


def main() -> None:
    """Print the table of all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second of one replica (default: 12)")
    parser.add_argument("--total", type=float, default=100.0, help="requests a second of all replicas (default: 100)")
    parser.add_argument("--limit", type=float, default=1.0, help="p99 of the time to the first token, in seconds")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    print("| adapters | α | in GPU | in host | on disk | in store | loading | p50 / p99 | most/s | replicas |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for adapters in SIZES:
        for alpha in (1.0, 0.7):
            f = simulate(adapters, alpha, args.rate, args.requests)
            most = largest_rate(adapters, alpha, args.requests, args.limit)
            replicas = "–" if most < 1 else str(int(np.ceil(args.total / most)))
            shares = " | ".join(f"{100 * share:.1f} %" for share in f.found)
            print(
                f"| {adapters:,} | {alpha} | {shares} | {1000 * f.loading:.1f} ms | {1000 * f.first_p50:.0f} / "
                f"{1000 * f.first_p99:.0f} ms | {most:.0f} | {replicas} |"
            )
            found.append({**asdict(f), "most": most})
    if args.json:
        args.json.write_text(json.dumps({"machine": asdict(Machine()), "figures": found}, indent=1))


if __name__ == "__main__":
    main()
