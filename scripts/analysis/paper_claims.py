"""The paper's claims on its methods, one by one, in the answers of several sources.

    python scripts/analysis/paper_claims.py AUTHORS INDEPENDENT --pool config2.json

A source is a results folder, or a folder of answers from elsewhere. For each claim, the tables have the difference of
the paper's two figures, and the difference in the answers of each source: in points, on the same rows, with the 95 %
bootstrap interval, the p-value of the paired permutation test, and a mark where the two runs are not separable. The
p-values are corrected by Holm for all comparisons of one source and one choice of rows. The tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_retriever.analysis.audit import leaked_ids
from lora_retriever.analysis.comparison import NOT_SEPARABLE, P_SEPARABLE, Difference, compare_pairs, difference_cell
from lora_retriever.analysis.folders import open_folders
from lora_retriever.analysis.published import MEAN_EM, Published, published_table
from lora_retriever.analysis.runs import Run
from lora_retriever.analysis.scores import MEAN, Quantity, score_run
from lora_retriever.data.rows import read_pool
from lora_retriever.metrics import KINDS, SCORINGS, Scoring, read_kinds
from lora_retriever.tables import Cell, Table, markdown


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's table 1 about two runs: `run` compared with `other`."""

    text: str
    run: str
    other: str


CLAIMS = (
    Claim("mixture is level with selection", "mixture", "selection"),
    Claim("mixture is above fusion", "mixture", "fusion"),
    Claim("selection is above fusion", "selection", "fusion"),
    Claim("masked, mixture is above selection", "mixture_ood", "selection_ood"),
    Claim("masked, mixture is above fusion", "mixture_ood", "fusion_ood"),
    Claim("masked, selection is above fusion", "selection_ood", "fusion_ood"),
    Claim("masking costs selection", "selection_ood", "selection"),
    Claim("masking costs mixture", "mixture_ood", "mixture"),
    Claim("masking costs fusion a little", "fusion_ood", "fusion"),
    Claim("selection is below the oracle", "selection", "best_selection"),
    Claim("mixture is below the oracle", "mixture", "best_selection"),
    Claim("fusion is below the oracle", "fusion", "best_selection"),
)
Differences = dict[Claim, dict[Quantity, Difference]]


def main() -> None:
    """Read the sources, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--pool", type=Path, required=True, help="the pool; rows whose inputs it has are leaked")
    parser.add_argument("--paper", default="llama2-7b", help="the model of the paper's figures (default: llama2-7b)")
    args = parser.parse_args()
    paper, pool = published_table(args.paper), read_pool(args.pool)
    sources = {folder.name: folder.runs for folder in open_folders(args.sources)}
    leaked = {id for runs in sources.values() for run in runs for id in leaked_ids(run.rows.values(), pool)}
    scorings = [Scoring(name, read_kinds(KINDS)) for name in SCORINGS]
    for quantity, tasks in ((MEAN_EM, "the exact-match tasks"), (MEAN, "all tasks")):
        for scoring in scorings:
            columns = {
                f"{name}{choice}": mean_differences(
                    [run.without(left_out) for run in runs], scoring, only_exact_match=quantity == MEAN_EM
                )
                for name, runs in sources.items()
                for choice, left_out in (("", set()), (f", without {len(leaked)} leaked rows", leaked))
            }
            title = f"Mean over {tasks}, {scoring.name} scoring"
            print(f"### {title}\n\n{markdown(table_of_means(columns, quantity, paper))}")
    for name, runs in sources.items():
        found = differences(runs, scorings[0], "domain")
        print(f"### {name} by domain, {scorings[0].name} scoring\n\n{markdown(table_of_domains(found, paper))}")


def mean_differences(runs: Sequence[Run], scoring: Scoring, only_exact_match: bool) -> dict[Claim, Difference]:
    """The difference of the means over tasks, for each claim whose two runs exist."""
    if only_exact_match:
        runs = [replace(run, rows={id: row for id, row in run.rows.items() if row.metric == "em"}) for run in runs]
    return {claim: found[MEAN] for claim, found in differences(runs, scoring, "mean").items()}


def differences(runs: Sequence[Run], scoring: Scoring, level: str) -> Differences:
    """The differences of each claim whose two runs exist.

    Args:
        level: as for `compare_pairs`.
    """
    scored = {run.name: score_run(run, scoring) for run in runs}
    claims = [claim for claim in CLAIMS if {claim.run, claim.other} <= scored.keys()]
    compared = compare_pairs([(scored[claim.run], scored[claim.other]) for claim in claims], level)
    return {claim: comparison.differences for claim, comparison in zip(claims, compared, strict=True)}


def table_of_means(columns: dict[str, dict[Claim, Difference]], quantity: Quantity, paper: Published) -> Table:
    """A row for each claim; a column for the paper, and one for each source, scoring and choice of rows."""
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            f"{claim.text}: {claim.run} − {claim.other}",
            [
                Cell(paper_difference(claim, quantity, paper)),
                *(difference_cell(found.get(claim)) for found in columns.values()),
            ],
        )
        for claim in CLAIMS
    ]
    return Table([f"paper, {paper.model}", *columns], rows, [NOTE], bounds=True, signed=True)


def table_of_domains(found: Differences, paper: Published) -> Table:
    """A row for each of the paper's domains and scores, a column for each claim: two differences, paper and answers."""
    quantities = [quantity for quantity in next(iter(paper.printed.values())) if quantity.level == "domain"]
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            f"{quantity.group} {quantity.score}",
            [two_differences(claim, quantity, found[claim].get(quantity), paper) for claim in found],
        )
        for quantity in quantities
    ]
    return Table([f"{claim.run} − {claim.other}" for claim in found], rows, [f"Paper → answers. {NOTE}"])


NOTE = (
    f"{NOT_SEPARABLE} not separable: p, corrected by Holm for all comparisons of the column, is {P_SEPARABLE} or more."
)


def paper_difference(claim: Claim, quantity: Quantity, paper: Published) -> float:
    """The difference of the paper's two figures, in points."""
    run, other = (paper.figures(name, paper.tasks)[quantity].value for name in (claim.run, claim.other))
    return run - other


def two_differences(claim: Claim, quantity: Quantity, difference: Difference | None, paper: Published) -> str:
    """The paper's difference and the answers', with a mark where the two runs of the answers are not separable."""
    printed = f"{paper_difference(claim, quantity, paper):+.1f} →"
    if difference is None:
        return f"{printed} –"
    return f"{printed} {difference.value:+.1f}" + ("" if difference.separable else f" {NOT_SEPARABLE}")


if __name__ == "__main__":
    main()
