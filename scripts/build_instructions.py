"""Build the instruction benchmark: rows, pool and training examples of short tasks, from two public repositories.

    python scripts/build_instructions.py --induction instruction-induction --vectors function_vectors \
        --out data/instructions

Writes OUT/test.json (rows), OUT/pool.json, OUT/train.json (a pool file with the training examples, for
`train_loras.py --pool`) and OUT/card.json (tasks, domains, counts, licences, commits, hashes), after everything was
read and checked. Equal sources and an equal seed give equal files, to the byte. The tasks and their instructions are in
`scripts/instruction_benchmark/tasks.yaml`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruction_benchmark.plan import Plan, read_plan
from instruction_benchmark.sources import Material, check_folder, commit_of, read_material
from instruction_benchmark.split import TaskData, task_data
from instruction_benchmark.wording import Instructions, check_distinct, instructions_of

from lora_retriever.errors import UserError
from lora_retriever.files import hash_path, write_json, writing

PLAN = Path(__file__).parent / "instruction_benchmark" / "tasks.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--induction", type=Path, required=True, help="checkout of orhonovich/instruction-induction")
    parser.add_argument("--vectors", type=Path, required=True, help="checkout of ericwtodd/function_vectors")
    parser.add_argument("--out", type=Path, required=True, help="folder for the benchmark")
    parser.add_argument("--plan", type=Path, default=PLAN, help="file of tasks and instructions; default: tasks.yaml")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        summary = build(args.plan, {"induction": args.induction, "vectors": args.vectors}, args.out, args.seed)
    except UserError as error:
        print(f"build_instructions: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


def build(plan_file: Path, folders: Mapping[str, Path], out: Path, seed: int) -> str:
    """Read and check everything, then write the four files into `out`.

    Args:
        folders: the checkout of each source of the plan, by the source's name.

    Returns:
        One line that says what was built.

    Raises:
        UserError: the plan is wrong, a folder or a file of a source is missing or unusable, an instruction is there
            twice, a task has too few cases, or `out` cannot be written.
    """
    plan = read_plan(plan_file)
    for name, source in plan.sources.items():
        if name not in folders:
            raise UserError(f"{plan_file}: sources.{name}: unknown source (known: {', '.join(folders)})")
        check_folder(folders[name], source, f"--{name}")
    material = {
        name: read_material(folders[task.source], plan.sources[task.source], task) for name, task in plan.tasks.items()
    }
    instructions = {
        name: instructions_of(name, plan.tasks[name], found.instructions) for name, found in material.items()
    }
    check_distinct(instructions)
    data = {
        name: task_data(name, plan.tasks[name], found.cases, found.held_out, instructions[name], plan.layouts, seed)
        for name, found in material.items()
    }
    files = {
        "test.json": [row for made in data.values() for row in made.rows],
        "pool.json": [made.pool_entry for made in data.values()],
        "train.json": [made.entry for made in data.values()],
    }
    for file, content in files.items():
        with writing(out / file):
            write_json(out / file, content)
    card = card_of(plan, folders, material, instructions, data)
    hashes = {file: hash_path(out / file) for file in files}
    with writing(out / "card.json"):
        write_json(out / "card.json", {"seed": seed, "plan": hash_path(plan_file), **card, "outputs": hashes})
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in card["counts"].items())
    return f"{out}: {counts}"


def card_of(
    plan: Plan,
    folders: Mapping[str, Path],
    material: Mapping[str, Material],
    instructions: Mapping[str, Instructions],
    data: Mapping[str, TaskData],
) -> dict[str, Any]:
    """The content of the benchmark, and the sources of its texts. All mappings but `folders` are by the tasks'
    names."""
    return {
        "sources": {
            name: {
                "repository": source.repository,
                "licence": source.licence,
                "commit": commit_of(folders[name]),
                "sha256": {
                    file: hash_path(path)
                    for task, found in material.items()
                    if plan.tasks[task].source == name
                    for file, path in found.files.items()
                },
            }
            for name, source in plan.sources.items()
        },
        "counts": {
            "tasks": len(data),
            "domains": len({task.domain for task in plan.tasks.values()}),
            "rows": sum(len(made.rows) for made in data.values()),
            "samples": sum(len(made.pool_entry["sample"]) for made in data.values()),
            "examples": sum(len(made.entry["sample"]) for made in data.values()),
        },
        "domains": Counter(task.domain for task in plan.tasks.values()),
        "tasks": {
            name: {
                "domain": plan.tasks[name].domain,
                "source": plan.tasks[name].source,
                "file": plan.tasks[name].file,
                "cases": made.cases,
                "rows": len(made.rows),
                "rows_with_several_targets": sum(isinstance(row["targets"], list) for row in made.rows),
                "samples": len(made.pool_entry["sample"]),
                "examples": len(made.entry["sample"]),
                "instructions": {"seen": instructions[name].seen, "unseen": instructions[name].unseen},
            }
            for name, made in data.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
