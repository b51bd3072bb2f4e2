"""One line for each run: the runs of any number of results folders as a data frame, and `runs.csv` in a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import MEAN, NORMALIZED
from lora_retriever.analysis.summary import RunSummary, summarize
from lora_retriever.escaping import for_csv
from lora_retriever.files import write_text
from lora_retriever.metrics import Scoring, ScoringName

if TYPE_CHECKING:
    import pandas as pd

RUNS_FILE = "runs.csv"
SETTINGS = ("k", "scorer", "temperature", "seed")


def load_results(
    *folders: str | Path, scoring: ScoringName = "paper", metric_folders: Sequence[str | Path] = ()
) -> pd.DataFrame:
    """The runs of several results folders, one line for each run, scored from their answers.

    Columns: folder, run, method, the settings k, scorer, temperature and seed (from the run's configuration; empty
    where a setting does not concern the run), profile, rows, empty_answers, configuration_hash, seconds, scoring, mean
    with its 95 % interval mean_low and mean_high, normalized, a column for every domain and score, such as `nli em`,
    and, where a folder has the file `runs.yaml`, the columns model, source, commit and note. Scores are in percent.

    Args:
        metric_folders: folders with a user's own metrics. Metrics in other folders never run.

    Raises:
        UserError: a folder holds no run, or a damaged run.
    """
    import pandas as pd  # a second to import

    chosen = Scoring(scoring, metric_folders=tuple(map(Path, metric_folders)))
    lines = [
        {"folder": str(folder), **_line(summary)}
        for folder in folders
        for summary in summarize(read_runs(Path(folder)), chosen)
    ]
    return pd.DataFrame(lines)


def write_runs_file(results: Path, metric_folders: Sequence[Path] = ()) -> Path:
    """Write `runs.csv`, one line for each finished run, into its results folder, in one atomic step.

    Raises:
        UserError: the folder holds no run, or a damaged run.
    """
    chosen = Scoring("paper", metric_folders=tuple(metric_folders))
    lines = [_line(summary) for summary in summarize(read_runs(results), chosen)]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(for_csv, columns))
    for line in lines:
        values = [line.get(column) for column in columns]
        writer.writerow([for_csv(value) if isinstance(value, str) else value for value in values])
    path = results / RUNS_FILE
    write_text(path, text.getvalue())
    return path


def _line(summary: RunSummary) -> dict[str, Any]:
    run, (low, high) = summary.scored.run, summary.intervals.get(MEAN, (None, None))
    configuration = run.meta.get("configuration", {})
    varied = {name: configuration.get(name, run.settings.get(name)) for name in SETTINGS}
    domains = {
        f"{quantity.group} {quantity.score}": round(value, 4)
        for quantity, value in summary.values.items()
        if quantity.level == "domain"
    }
    return {
        "run": run.name,
        "method": run.method,
        **varied,
        "profile": run.meta.get("profile"),
        "rows": summary.rows,
        "empty_answers": summary.empty,
        "configuration_hash": run.meta.get("configuration_hash"),
        "seconds": run.meta.get("timings", {}).get("seconds"),
        "scoring": summary.scored.scoring.name,
        "mean": round(summary.values[MEAN], 4),
        "mean_low": low,
        "mean_high": high,
        "normalized": round(summary.values[NORMALIZED], 4) if NORMALIZED in summary.values else None,
        **domains,
        **(run.origin.fields if run.origin else {}),
    }
