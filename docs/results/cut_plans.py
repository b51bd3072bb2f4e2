"""The plans of a run, cut to the usual number of steps, as another run of its results folder, for `planning.md`.

    python docs/results/cut_plans.py data/plans/plans.json results/whole selection

The usual number is the median of the plans for training. The new run has the name of the run with `_cut` behind it.
"""

import json
import statistics
import sys
from pathlib import Path

from lora_retriever.data.plans import plan_of, steps_of
from lora_retriever.data.rows import read_pool


def main() -> None:
    """Write the run."""
    pool, results, run = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    number = int(statistics.median(len(steps_of(one.target)) for entry in read_pool(pool) for one in entry.sample))
    lines = []
    for text in (results / f"{run}.jsonl").read_text("utf-8").splitlines():
        line = json.loads(text)
        cut = plan_of(steps_of(line["predicted_answer"])[:number])
        lines.append(json.dumps({**line, "predicted_answer": cut}) + "\n")
    (results / f"{run}_cut.jsonl").write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
