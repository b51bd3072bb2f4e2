"""Metrics: how answers become scores, the paper's way (`paper`) and the field's standard way (`standard`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml

from lora_retriever.data.rows import METRICS
from lora_retriever.errors import UserError
from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.own import Evaluated, load_metric

MAIN_SCORE = {"em": "em", "bleu": "bleu", "rouge": "rouge-1"}
"""The one score by which a task counts in means over tasks; of a user's metric it is the first."""

KINDS = Path(str(files("lora_retriever"))) / "metrics" / "kinds.yaml"
ScoringName = Literal["paper", "standard"]
SCORINGS: tuple[ScoringName, ...] = ("paper", "standard")


@dataclass
class Scoring:
    """A way of scoring: which metrics a task gets, given the metric that its rows name.

    Attributes:
        kinds: what kind of task a task is, `choice` or `qa`; standard scoring adds scores by it.
        stemming: whether standard ROUGE stems words.
        allow_hub: whether a metric of the Hub, code of its own, may be fetched and run.
    """

    name: ScoringName = "paper"
    kinds: dict[str, str] = field(default_factory=lambda: read_kinds(KINDS))
    stemming: bool = False
    allow_hub: bool = False
    _loaded: dict[str, Evaluated] = field(default_factory=dict, repr=False)

    def metrics_of(self, task: str, metric: str) -> list[Metric]:
        """The metrics of a task whose rows name this metric, that of the main score first.

        Raises:
            UserError: the metric is unknown or cannot be loaded.
        """
        if metric not in METRICS:
            if metric not in self._loaded:
                self._loaded[metric] = load_metric(metric, self.allow_hub)
            return [self._loaded[metric]]
        # The libraries behind the two take seconds to import.
        if self.name == "paper":
            from lora_retriever.metrics.paper import PAPER

            return [PAPER[metric]]
        from lora_retriever.metrics import standard

        if metric == "bleu":
            return [standard.BLEU, standard.CHRF]
        if metric == "rouge":
            return [standard.rouge_metric(self.stemming)]
        extra = {"qa": [standard.F1], "choice": [standard.ACCURACY]}
        return [standard.EXACT_MATCH, *extra.get(self.kinds.get(task, ""), [])]

    @property
    def details(self) -> dict[str, str]:
        """How each score was made, for whoever quotes it."""
        if self.name == "paper":
            return {"all": "the original's own: nltk sentence BLEU, PyPI rouge, exact match without dots and case"}
        from lora_retriever.metrics import standard

        return standard.details(self.stemming)


def read_kinds(path: Path) -> dict[str, str]:
    """The kinds of tasks of a YAML file, `{qa: [task, …], choice: [task, …]}`, as {task: kind}.

    Raises:
        UserError: it cannot be read or has another form.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict) or not set(content) <= {"qa", "choice"}:
        raise UserError(f"{path}: expected lists of tasks under `qa` and `choice`")
    return {str(task): kind for kind, tasks in content.items() for task in tasks or ()}


__all__ = [
    "KINDS",
    "MAIN_SCORE",
    "METRICS",
    "SCORINGS",
    "Metric",
    "Scoring",
    "ScoringName",
    "read_kinds",
]
