"""Do released answers show traces of faults? `fault_traces.py AUTHORS PREDICTIONS --rows FILE --pool FILE`

AUTHORS and PREDICTIONS are folders with answers to all rows of the benchmark, NAME.json for each method: the authors'
own answers, and the answers of an independent run, which also has `base`. No model is needed. With --encoder, the
answers are also compared by where retrieval finds the own adapter; the paper's encoder is not public, so another
encoder takes its place.

Prints Markdown. `answer_traces.py` has the statistics.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from answer_traces import (
    BATCH,
    MARK,
    WHOLE_PROMPT,
    Answers,
    Values,
    difference_within,
    equal_inputs,
    heterogeneity,
    in_mixed_batches,
    mean_over_tasks,
    most_frequent,
    padding,
    places_of,
    read_answers,
    shared_input,
    slope,
)

from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import INSTRUCTION
from lora_retriever.files import hash_path
from lora_retriever.methods.paper import METHODS
from lora_retriever.resampling import wilson_interval
from lora_retriever.retrieval.embedding_cache import cached
from lora_retriever.retrieval.encoders import load_encoder
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.tables import Cell, Table, markdown

CONFIGURATIONS = [method.name for method in METHODS]
ORACLE = "best_selection"
LONG = 2048
"""Length of a long input, in characters: about 512 tokens."""
SHOWN = 30
"""Maximum length of an answer in a table, in characters."""
Sources = dict[str, dict[str, Answers]]


def main() -> None:
    """Read, count, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("authors", type=Path, help="folder with the authors' answers")
    parser.add_argument("predictions", type=Path, help="folder with the answers of the independent run")
    parser.add_argument("--rows", type=Path, required=True, help="the benchmark's rows")
    parser.add_argument("--pool", type=Path, required=True, help="the pool")
    parser.add_argument("--larger-pool", type=Path, metavar="FILE", help="the larger pool, of the authors' script")
    parser.add_argument("--encoder", type=Path, help="folder of a sentence encoder")
    args = parser.parse_args()
    try:
        rows = read_rows(args.rows)
        sources: Sources = {
            "authors": read_answers(args.authors, rows),
            "independent run": read_answers(args.predictions, rows),
        }
        tables = {
            "Scores and parts of the template": overview(sources, rows),
            "One input, several tasks": one_input(sources, rows),
            "Equal answers of two methods": agreements(sources, rows),
            "Equal answers of two sources": crossed(sources),
            "Equal inputs of a task": sampling(sources, rows),
            "Batches": batches(sources, rows),
            "Padding and long inputs": lengths(sources, rows),
        }
        if args.encoder:
            pools = {"authors": read_pool(args.larger_pool or args.pool), "independent run": read_pool(args.pool)}
            found = {source: own_places(rows, pool, args.encoder) for source, pool in pools.items()}
            tables["Answers of the oracle, by retrieval"] = by_retrieval(sources, found)
            if args.larger_pool:
                tables["Rows that only the larger pool misleads"] = misled(sources, rows, found)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("\n".join(f"### {title}\n\n{markdown(table)}" for title, table in tables.items()), end="")


def lines_of(sources: Sources) -> list[tuple[str, dict[str, Answers], Answers]]:
    """A line for each source and method: the label, all answers of the source, and the answers of the method."""
    return [
        (f"{source}: {name}", known, known[name])
        for source, known in sources.items()
        for name in CONFIGURATIONS
        if name in known
    ]


def overview(sources: Sources, rows: Sequence[Row]) -> Table:
    """Exact match, and answers that hold parts of the template."""
    tasks = [row.task for row in rows]
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for label, _, answers in lines_of(sources):
        marked = [MARK in text for text in answers.texts]
        where = [task for task, mark in zip(tasks, marked, strict=True) if mark]
        task, count, _ = most_frequent(where) if where else ("–", 0, 0)
        lines.append(
            (
                label,
                [
                    Cell(*mean_over_tasks(answers.exact, tasks)),
                    str(sum(marked)),
                    f"{task} {count}" if count else "–",
                    str(sum(text.startswith(WHOLE_PROMPT) for text in answers.texts)),
                    f"{np.mean([len(text.split()) for text in answers.texts]):.1f}",
                ],
            )
        )
    return Table(
        ["exact match", f"answers with {MARK}", "most in task", "whole prompts", "words"],
        lines,
        ["Exact match: the mean over the exact-match tasks, paper scoring, ± half of the 95 % interval."],
    )


def one_input(sources: Sources, rows: Sequence[Row]) -> Table:
    """The answers of each method to the one input that most tasks share."""
    text = shared_input(rows)
    places = {
        task: [place for place in at if rows[place].inputs == text]
        for task, at in places_of([row.task for row in rows]).items()
    }
    places = {task: at for task, at in places.items() if at}
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for label, known, answers in lines_of(sources):
        oracle = {most_frequent(known[ORACLE].texts[at] for at in there)[0]: task for task, there in places.items()}
        cells: list[Cell | str | None] = []
        for there in places.values():
            answer, count, of = most_frequent(answers.texts[at] for at in there)
            shown = f"= adapter {oracle[answer]}" if answer in oracle else " ".join(answer.split())[:SHOWN]
            cells.append(f"{shown} ({count} of {of})")
        lines.append((label, cells))
    notes = [
        f"The input “{text}” is a row's of {len(places)} tasks. Each cell shows the most frequent answer to the rows "
        f"of the task, and how many rows have this answer. “= adapter T”: the answer is the most frequent answer of "
        f"{ORACLE} of the same source to the rows of task T, so the answer of T's adapter alone."
    ]
    return Table(list(places), lines, notes)


PAIRS = (
    ("selection", ORACLE),
    ("fusion", "selection"),
    ("mixture", "selection"),
    ("fusion_ood", "selection_ood"),
    ("mixture_ood", "selection_ood"),
    ("mixture", "mixture_ood"),
    ("fusion", "fusion_ood"),
    ("mixture", "fusion"),
    ("mixture_ood", "fusion_ood"),
)


def agreements(sources: Sources, rows: Sequence[Row]) -> Table:
    """The share of equal answers of two methods, over the tasks with free text."""
    places = {task: at for task, at in places_of([row.task for row in rows]).items() if rows[int(at[0])].metric != "em"}
    lines: list[tuple[str, list[Cell | str | None]]] = []
    columns = [f"{source}: {what}" for source in sources for what in ("mean", "least to most in a task", "deviation")]
    for first, second in PAIRS:
        cells: list[Cell | str | None] = []
        for known in sources.values():
            equal = known[first].equal(known[second])
            shares = {task: float(equal[at].mean()) for task, at in places.items()}
            least, most = (pick(shares, key=lambda task: shares[task]) for pick in (min, max))
            cells += [
                f"{np.mean(list(shares.values())):.0f}",
                f"{shares[least]:.0f} ({least}) to {shares[most]:.0f} ({most})",
                f"{np.std(list(shares.values())):.0f}",
            ]
        lines.append((f"{first} = {second}", cells))
    return Table(
        columns, lines, [f"Percent of rows with the same text, in the {len(places)} tasks with BLEU or ROUGE."]
    )


def crossed(sources: Sources) -> Table:
    """The share of equal answers between each method of the second source and all other methods, over all rows."""
    (first, theirs), (second, ours) = sources.items()
    names = [name for name in CONFIGURATIONS if name in ours]
    columns = [
        (f"{source}: {name}", known[name]) for source, known in sources.items() for name in names if name in known
    ]
    lines: list[tuple[str, list[Cell | str | None]]] = [
        (f"{second}: {name}", [f"{ours[name].equal(answers).mean():.0f}" for _, answers in columns]) for name in names
    ]
    lines += [
        (f"{first}: {name}", [f"{theirs[name].equal(answers).mean():.0f}" for _, answers in columns])
        for name in names
        if name in theirs
    ]
    return Table([label for label, _ in columns], lines, ["Percent of all rows with the same text."])


def sampling(sources: Sources, rows: Sequence[Row]) -> Table:
    """Equal inputs of a task that have different answers."""
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for label, _, answers in lines_of(sources):
        found = equal_inputs(rows, answers)
        lines.append((label, [f"{different} of {pairs}" for different, pairs in (found.together, found.apart)]))
    return Table(
        [f"different, in one batch of {BATCH}", "different, other pairs"],
        lines,
        ["Pairs of rows of one task with equal inputs. Such rows have the same adapters under every method."],
    )


def batches(sources: Sources, rows: Sequence[Row]) -> Table:
    """Whether the answers of a task depend on the place in the batch, on the batch, and on mixed batches."""
    tasks = [row.task for row in rows]
    numbers, places = [place // BATCH for place in range(len(rows))], [place % BATCH for place in range(len(rows))]
    mixed = in_mixed_batches(rows)
    first = np.arange(len(rows)) < BATCH
    later = ~first & (np.array(tasks) == tasks[0])
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for label, known, answers in lines_of(sources):
        equal = known[ORACLE].equal(answers)
        same = answers.name == ORACLE
        value, low, high = difference_within(answers.exact, tasks, mixed)
        agreement = None if same else Cell(*difference_within(equal, tasks, mixed), difference=True)
        lines.append(
            (
                label,
                [
                    f"{heterogeneity(answers.exact, tasks, places):.2f}",
                    f"{heterogeneity(answers.exact, tasks, numbers):.2f}",
                    "–" if same else f"{heterogeneity(equal, tasks, places):.2f}",
                    "–" if same else f"{heterogeneity(equal, tasks, numbers):.2f}",
                    Cell(value, low, high, difference=True),
                    agreement,
                    "–" if same else f"{equal[first].mean():.0f} / {equal[later].mean():.0f}",
                ],
            )
        )
    notes = [
        f"Rows in the file's order, in batches of {BATCH}. p: permutation test within tasks of “no difference by place "
        "in the batch” (or by batch), for exact match and for being equal to the oracle's answer. Mixed: rows of "
        f"batches with two tasks ({int(mixed.sum())} rows) minus other rows of their tasks, in points, with the 95 % "
        "interval. First batch: percent of rows with the oracle's answer in the first batch / in the later batches of "
        "its task.",
    ]
    columns = [
        "exact match: p by place", "p by batch", "oracle's answer: p by place", "p by batch",
        "exact match: mixed", "oracle's answer: mixed", "first batch / later",
    ]  # fmt: skip
    return Table(columns, lines, notes)


def lengths(sources: Sources, rows: Sequence[Row]) -> Table:
    """Whether padding and the length of the input show in the answers."""
    tasks = [row.task for row in rows]
    share = padding(rows)
    long = np.array([len(row.inputs) > LONG for row in rows])
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for label, _, answers in lines_of(sources):
        correlation, p = slope(answers.exact, tasks, share)
        whole = [text.startswith(WHOLE_PROMPT) for text, is_long in zip(answers.texts, long, strict=True) if is_long]
        lines.append(
            (
                label,
                [
                    f"{correlation:+.3f} (p {p:.2f})",
                    Cell(*difference_within(answers.exact, tasks, long), difference=True),
                    f"{sum(whole)} of {len(whole)}",
                ],
            )
        )
    notes = [
        "Padding: the correlation, within tasks, of exact match with the share of the batch's longest input that is "
        f"padding for the row. Long: rows with more than {LONG} characters minus other rows of their tasks. Whole "
        "prompts: a prompt cut at its end would lose the response mark, and the whole prompt would be the answer.",
    ]
    return Table(["exact match and padding", "exact match: long", "long rows with a whole prompt"], lines, notes)


def own_places(rows: Sequence[Row], pool: Sequence[PoolEntry], folder: Path) -> tuple[Values, np.ndarray]:
    """For each row the own adapter's place among all hits, from 0, and the domain of the first hit: [rows] each.

    As in the original, means are not normalised (`mean_ip`).
    """
    encoder = cached(partial(load_encoder, folder, instruction=INSTRUCTION), hash_path(folder), "auto", INSTRUCTION)
    queries = encoder.encode([row.inputs for row in rows])
    hits = AdapterIndex.from_texts(pool, encoder, "mean_ip").search(queries, len(pool))
    domains = {entry.model_name: entry.domain for entry in pool}
    places = [names.index(row.task) for row, names in zip(rows, hits.names, strict=True)]
    return np.array(places, dtype=float), np.array([domains[names[0]] for names in hits.names])


BANDS = (("first", 0, 1), ("2nd or 3rd", 1, 3), ("later", 3, 10_000))


def by_retrieval(sources: Sources, found: dict[str, tuple[Values, np.ndarray]]) -> Table:
    """The share of rows with the oracle's answer, by the place of the own adapter among the hits."""
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for source, known in sources.items():
        for name in ("selection", "fusion", "mixture"):
            equal, places = known[name].equal(known[ORACLE]), found[source][0]
            cells: list[Cell | str | None] = []
            for _, start, stop in BANDS:
                band = equal[(places >= start) & (places < stop)]
                cells.append(Cell(float(band.mean()), *wilson_interval(int((band > 0).sum()), len(band))))
            lines.append((f"{source}: {name}", cells))
    sizes = [
        f"{source} {', '.join(str(int(((places >= a) & (places < b)).sum())) for _, a, b in BANDS)}"
        for source, (places, _) in found.items()
    ]
    notes = [f"Percent of rows, ± half of the 95 % interval. Rows in the three columns: {'; '.join(sizes)}."]
    return Table([f"own adapter {name}" for name, _, _ in BANDS], lines, notes)


def misled(sources: Sources, rows: Sequence[Row], found: dict[str, tuple[Values, np.ndarray]]) -> Table:
    """Exact match of rows whose first hit is an adapter of no benchmark task, minus other rows of their tasks."""
    tasks = [row.task for row in rows]
    chosen = found["authors"][1] == "other"
    lines: list[tuple[str, list[Cell | str | None]]] = []
    for source, known in sources.items():
        for name in ("selection", "selection_ood", "fusion", "mixture", ORACLE):
            lines.append(
                (f"{source}: {name}", [Cell(*difference_within(known[name].exact, tasks, chosen), difference=True)])
            )
    notes = [
        f"{int(chosen.sum())} of {len(rows)} rows have as first hit one of the adapters that only the larger pool has "
        "(domain “other”). Points of exact match, with the 95 % interval."
    ]
    return Table(["misled minus other rows of the task"], lines, notes)


if __name__ == "__main__":
    main()
