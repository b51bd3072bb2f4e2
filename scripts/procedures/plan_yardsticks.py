"""Answers without a model to the rows that `build_plans.py` made, as runs of a results folder.

    python scripts/procedures/plan_yardsticks.py --plans data/plans --results results/plans
    python summarize_results.py results/plans --scoring standard --by rooms

- `constant`: one plan of four steps for every goal.
- `nearest_goal`: the plan of the most similar goal of the validation files (TF-IDF of words and pairs of words). With
  tables, only the goal is compared.
- `other_annotator`: the plan of the next annotator of the same trial; rows of trials with one annotator are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

from lora_retriever.data.plans import divided, plan_of
from lora_retriever.data.rows import Row, read_pool, read_rows
from lora_retriever.files import write_text

CONSTANT = plan_of(
    [
        "Turn around and walk to the counter.",
        "Pick up the object on the counter.",
        "Turn left and walk to the table.",
        "Put the object on the table.",
    ]
)


def constant(rows: Sequence[Row], folder: Path) -> list[str | None]:
    """The same plan for every row."""
    return [CONSTANT for _ in rows]


def nearest_goal(rows: Sequence[Row], folder: Path) -> list[str | None]:
    """The plan of the most similar goal among the plans for training."""
    (entry,) = read_pool(folder / "plans.json")
    goals = [divided(sample.inputs)[0] for sample in entry.sample]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = words.fit_transform(goals)
    best = (words.transform([divided(row.inputs)[0] for row in rows]) @ known.T).toarray().argmax(axis=1)  # [rows]
    return [entry.sample[place].target for place in best.tolist()]


def other_annotator(rows: Sequence[Row], folder: Path) -> list[str | None]:
    """The plan of the next annotator of the row's trial. None: the trial has one annotator."""
    trials: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        trials.setdefault(str(row.further["trial"]), []).append(place)
    answers: list[str | None] = [None] * len(rows)
    for places in trials.values():
        for place, other in zip(places, [*places[1:], places[0]], strict=True):
            answers[place] = rows[other].target if len(places) > 1 else None
    return answers


YARDSTICKS: dict[str, Callable[[Sequence[Row], Path], list[str | None]]] = {
    "constant": constant,
    "nearest_goal": nearest_goal,
    "other_annotator": other_annotator,
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write the runs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, required=True, help="folder that build_plans.py wrote")
    parser.add_argument("--results", type=Path, required=True, help="results folder")
    args = parser.parse_args(arguments)
    rows = read_rows(args.plans / "test.json")
    for name, answer in YARDSTICKS.items():
        lines = [
            {"id": row.id, **row.model_dump(exclude={"id"}), **row.further, "predicted_answer": text}
            for row, text in zip(rows, answer(rows, args.plans), strict=True)
            if text is not None
        ]
        write_text(args.results / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        print(f"{args.results / name}.jsonl: {len(lines)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
