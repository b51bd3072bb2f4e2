"""The next steps of a benchmark's plans as rows, each with its phase as the task, for `planning.md`.

    PYTHONPATH=.:peft:scripts python docs/results/next_phases.py data/plans

Writes `next_phases.json` beside `test.json`. With the pool `phases.json`, the command `retrieval` then counts the steps
for which the adapter of the right phase is found.
"""

import json
import sys
from pathlib import Path

from procedures.build_plans import by_phase

from lora_retriever.files import write_json


def main() -> None:
    """Write the rows."""
    folder = Path(sys.argv[1])
    plans = json.loads((folder / "test.json").read_text("utf-8"))
    rows = [
        {**step, "task": f"gplanet_{phase}", "domain": phase, "metric": "em"}
        for phase, steps in by_phase([{"inputs": one["inputs"], "targets": one["targets"]} for one in plans]).items()
        for step in steps
    ]
    write_json(folder / "next_phases.json", rows)


if __name__ == "__main__":
    main()
