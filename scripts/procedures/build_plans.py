"""Build rows, pools and training examples of grounded planning from the files of G-PlanET (arXiv 2209.00465).

    python scripts/procedures/build_plans.py --gplanet DIR --out data/plans
    python scripts/procedures/build_plans.py --gplanet DIR --out data/plans-tables --table sorted --length 600

Writes into OUT:
- `test.json`: the rows of both test files, with the further field `rooms` (seen or unseen). A trial that several people
  annotated is several rows; with `--references trial` the plans of all its annotators are the targets of each.
- `plans.json`: a pool of one entry, `gplanet`: goals and whole plans of the validation files.
- `steps.json`: a pool of one entry, `gplanet_steps`: the same samples, for `train_loras.py --procedure steps`.
- `phases.json`: a pool of four entries: the next steps, by what the next step does (`PHASES`).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_retriever.data.objects import read_objects
from lora_retriever.data.plans import END, divided, joined, plan_of, sorted_table, steps_of
from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import write_json, writing
from lora_retriever.metrics.plans import words
from lora_retriever.procedures.steps import next_steps

ROOMS = ("seen", "unseen")
DOMAIN = "planning"
PHASES = {
    "go": "turn walk go move head face look step cross make continue proceed approach hang veer bring carry",
    "take": "pick grab take get remove retrieve lift collect pull",
    "place": "place put set drop leave insert lay stack throw return",
}
"""The phase of a step, by the first word of the step that is listed here.

All other steps (open, cut, heat, turn on) have the phase `change`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gplanet", type=Path, required=True, help="folder of the eight files of G-PlanET")
    parser.add_argument("--out", type=Path, required=True, help="folder for the benchmark")
    parser.add_argument("--table", choices=["none", "whole", "sorted"], default="none", help="how tables are written")
    parser.add_argument("--length", type=int, default=600, help="maximum length of a sorted table, in characters")
    parser.add_argument("--plans", type=int, help="number of validation plans, drawn by the seed (default: all)")
    parser.add_argument("--rows", type=int, help="number of test rows of each kind of rooms, drawn (default: all)")
    parser.add_argument("--references", choices=["own", "trial"], default="own", help="targets of a row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        print(build(args.gplanet, args.out, args.table, args.length, args.plans, args.rows, args.references, args.seed))
    except UserError as error:
        print(f"build_plans: {error}", file=sys.stderr)
        return 2
    return 0


def build(
    folder: Path,
    out: Path,
    table: str,
    length: int,
    plans: int | None,
    rows: int | None,
    references: str,
    seed: int,
) -> str:
    """Read everything, then write the four files. Returns one line that says what was built.

    Raises:
        UserError: a file is missing or malformed, or `out` cannot be written.
    """
    draw = random.Random(seed)
    test: list[dict[str, Any]] = []
    for rooms in ROOMS:
        read = read_split(folder, f"tests_{rooms}", table, length)
        by_trial: dict[str, list[str]] = defaultdict(list)
        for one in read:
            by_trial[one["trial"]].append(one["targets"])
        for one in drawn(read, rows, draw):
            several = sorted(by_trial[one["trial"]]) if references == "trial" else [one["targets"]]
            fields = {"task": "gplanet", "domain": DOMAIN, "metric": "kas", "rooms": rooms, "trial": one["trial"]}
            test.append({"inputs": one["inputs"], "targets": several if len(several) > 1 else several[0], **fields})
    read = [one for rooms in ROOMS for one in read_split(folder, f"valid_{rooms}", table, length)]
    samples = [{"inputs": one["inputs"], "targets": one["targets"]} for one in drawn(read, plans, draw)]
    pools = {
        "plans.json": [entry("gplanet", samples)],
        "steps.json": [entry("gplanet_steps", samples)],
        "phases.json": [entry(f"gplanet_{name}", found) for name, found in by_phase(samples).items() if found],
    }
    for name, content in {"test.json": test, **pools}.items():
        with writing(out / name):
            write_json(out / name, content)
    return f"{out}: {len(test)} rows, {len(samples)} plans for training"


def read_split(folder: Path, name: str, table: str, length: int) -> list[dict[str, str]]:
    """The plans of one file, each as inputs, targets and trial. `table` and `length` are the arguments' values."""
    path = folder / f"{name}{'' if table == 'none' else '_table_seq'}.jsonl"
    found = []
    for number, line in enumerate(read_objects(path), start=1):
        try:
            goal, objects = divided(line["input"])
            plan = plan_of(steps_of(line["output"][0]))
            trial = line["id"].rpartition("-")[0]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: row {number}: is no row of G-PlanET ({type(error).__name__}: {error})") from error
        if table == "sorted":
            objects = sorted_table(goal, objects, length)
        if goal:
            found.append({"inputs": joined(goal, "" if table == "none" else objects), "targets": plan, "trial": trial})
    return found


def drawn(items: Sequence[dict[str, str]], count: int | None, draw: random.Random) -> list[dict[str, str]]:
    """A random choice of some values, in their old order. None: all."""
    if count is None or count >= len(items):
        return [*items]
    return [items[place] for place in sorted(draw.sample(range(len(items)), count))]


def by_phase(samples: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The next steps of all plans by phase. END belongs to the phase of the last step."""
    found: dict[str, list[dict[str, str]]] = {name: [] for name in (*PHASES, "change")}
    for sample in samples:
        phase = "go"
        for example in next_steps(Sample.model_validate(sample)):
            if example.target != END:
                phase = phase_of(steps_of(example.target)[0])
            found[phase].append({"inputs": example.inputs, "targets": example.target})
    return found


def phase_of(step: str) -> str:
    """The phase of a step: by its first word that `PHASES` lists. "turn on" and "turn off" change something."""
    said = words(step)
    for place, word in enumerate(said):
        if word == "turn" and said[place + 1 : place + 2] in (["on"], ["off"]):
            return "change"
        for name, listed in PHASES.items():
            if word in listed.split():
                return name
    return "change"


def entry(name: str, samples: list[dict[str, str]]) -> dict[str, Any]:
    """A pool entry."""
    return {"model_name": name, "domain": DOMAIN, "sample": samples}


if __name__ == "__main__":
    sys.exit(main())
