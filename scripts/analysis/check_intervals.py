"""Do the 95 % intervals contain the truth 95 % of the time? `python scripts/analysis/check_intervals.py RESULTS --run
NAME` simulates on real rows.

The rows of a run are taken as the whole population, so the truth is known: the scores on all rows. From these rows,
1,000 benchmarks are drawn: `--rows` rows of every task, with replacement. Each benchmark is summarized like a run. The
script prints the share of the benchmarks whose interval contains the truth: the mean and the minimum over tasks, and
the mean and the minimum over domains.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.progress import track

from lora_retriever.analysis.runs import Run, read_runs
from lora_retriever.analysis.scores import MEAN, Quantity, ScoredRun, score_run
from lora_retriever.analysis.summary import RunSummary
from lora_retriever.metrics import SCORINGS, Scoring


def main() -> None:
    """Draw, summarize, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--run", required=True, help="the run whose rows are the population")
    parser.add_argument("--scoring", choices=SCORINGS, default="standard")
    parser.add_argument("--rows", type=int, default=50, help="rows drawn of every task")
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    runs = {run.name: run for run in read_runs(args.results)}
    if args.run not in runs:
        parser.error(f"no run {args.run!r} in {args.results} (there are: {', '.join(runs)})")
    population = score_run(runs[args.run], Scoring(args.scoring))
    truth = whole(population)
    held: dict[Quantity, list[bool]] = defaultdict(list)
    for seed in track(range(args.draws), description="drawing benchmarks"):
        intervals = RunSummary(drawn(population, args.rows, seed), oracle=None).intervals
        for quantity, (low, high) in intervals.items():
            held[quantity].append(low <= truth[quantity] <= high)
    print(f"{args.draws} benchmarks of {args.rows} rows a task drawn from {args.run}, {args.scoring} scoring")
    print(f"{'score':<14}{'of tasks: mean':>16}{'least':>8}{'of domains: mean':>20}{'least':>8}")
    for score in dict.fromkeys(quantity.score for quantity in held if quantity != MEAN):
        shares = {
            level: [100 * float(np.mean(held[q])) for q in held if q.score == score and q.level == level]
            for level in ("task", "domain")
        }
        tasks, domains = shares["task"], shares["domain"]
        print(f"{score:<14}{np.mean(tasks):>16.1f}{min(tasks):>8.1f}{np.mean(domains):>20.1f}{min(domains):>8.1f}")
    print(f"mean over tasks: {100 * np.mean(held[MEAN]):.1f}")


def whole(population: ScoredRun) -> dict[Quantity, float]:
    """The unrounded scores on all rows."""
    exact = ScoredRun(population.run, Scoring("standard"), population.tasks)  # the paper's scoring rounds
    return exact.quantities


def drawn(population: ScoredRun, rows: int, seed: int) -> ScoredRun:
    """A run on rows of every task drawn from the population with replacement."""
    generator = np.random.default_rng(seed)
    tasks = {
        name: task.cut([task.ids[place] for place in generator.integers(0, len(task.ids), rows)])
        for name, task in population.tasks.items()
    }
    return ScoredRun(Run(population.name, {}, {}), population.scoring, tasks)


if __name__ == "__main__":
    main()
