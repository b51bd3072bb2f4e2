"""Metrics: how answers become scores, by the paper's scoring (`paper`) or the field's standard scoring (`standard`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal

from lora_retriever.data.plans import steps_of
from lora_retriever.data.rows import METRICS
from lora_retriever.data.yaml_files import read_yaml
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.metrics.base import Metric, Reference, RowError
from lora_retriever.metrics.named import StandardOptions, named_metric
from lora_retriever.metrics.own import Evaluated, find_metric, load_metric
from lora_retriever.metrics.texts import in_one_form, main_script

KINDS = Path(str(files("lora_retriever"))) / "metrics" / "kinds.yaml"
ScoringName = Literal["paper", "standard"]
SCORINGS: tuple[ScoringName, ...] = ("paper", "standard")


@dataclass
class Scoring:
    """The rule that says which metrics a task gets, given the metric that the task's rows name.

    Attributes:
        kinds: the kind of each task, `choice` or `qa`; standard scoring adds scores by kind.
        stemming: whether standard ROUGE stems words.
        allow_hub: whether the code of a metric of the Hub may be fetched and run.
        metric_folders: folders whose metrics may run. The code of a metric in any other folder never runs.
    """

    name: ScoringName = "paper"
    kinds: dict[str, str] = field(default_factory=lambda: read_kinds(KINDS))
    stemming: bool = False
    allow_hub: bool = False
    metric_folders: tuple[Path, ...] = ()
    _loaded: dict[str, Evaluated] = field(default_factory=dict, repr=False)

    def metrics_of(self, task: str, metric: str) -> list[Metric]:
        """The metrics of a task whose rows name this metric, the metric of the main score first.

        Raises:
            UserError: the metric is unknown, not allowed, or cannot be loaded.
        """
        if metric not in METRICS:
            if metric not in self._loaded:
                self._loaded[metric] = load_metric(metric, self.allow_hub, self.metric_folders)
            return [self._loaded[metric]]
        if self.name == "paper":
            return named_metric(metric).paper()
        return named_metric(metric).standard(StandardOptions(self.kinds.get(task, ""), self.stemming))

    @property
    def details(self) -> dict[str, str]:
        """How each score was computed, for readers who quote the score."""
        if self.name == "paper":
            return {"all": "the original's own: nltk sentence BLEU, PyPI rouge, exact match without dots and case"}
        from lora_retriever.metrics import standard

        return standard.details(self.stemming)

    def notes(self, tasks: Mapping[str, tuple[str, Sequence[Reference]]]) -> list[str]:
        """The notes under a table of these tasks' scores: facts that a reader must know.

        Args:
            tasks: per task, the metric that its rows name and the targets of its rows.
        """
        bleu = {name: targets for name, (metric, targets) in tasks.items() if metric == "bleu"}
        lines = []
        if self.name == "paper":
            short = _short_targets(bleu, lambda text, _: len(text.split()))
            if short:
                lines.append(
                    "Paper scoring: BLEU is not smoothed; an answer of fewer than four words scores 0.0, even if it is "
                    f"right. Targets of fewer than four words: {short}."
                )
            unspaced = [
                f"{name} ({script})"
                for name, (metric, targets) in tasks.items()
                if metric in ("bleu", "rouge") and (script := main_script(_texts(targets))) not in (None, "Hangul")
            ]
            if unspaced:
                lines.append(
                    "Paper scoring: BLEU and ROUGE split words at white space alone, which is wrong for scripts "
                    f"without spaces: {', '.join(unspaced)}. Standard scoring splits them."
                )
        elif bleu:
            from lora_retriever.metrics.standard import bleu_length, bleu_tokenizer

            tokenizers = {name: bleu_tokenizer(targets) for name, targets in bleu.items()}
            others = [f"{name} tok:{tokenizer}" for name, tokenizer in tokenizers.items() if tokenizer != "13a"]
            if others:
                lines.append(
                    f"Standard scoring: BLEU's tokenizer by the script of the targets: {', '.join(others)}; other "
                    "tasks tok:13a."
                )
            short = _short_targets(bleu, lambda text, name: bleu_length(text, tokenizers[name]))
            if short:
                lines.append(
                    "Standard scoring: BLEU counts runs of four words; a task whose targets are all shorter scores "
                    f"0.0, even if all answers are right. Targets of fewer than four words: {short}."
                )
        unspaced = [
            f"{name} ({script})"
            for name, (metric, targets) in tasks.items()
            if metric == "kas" and (script := main_script(_steps(targets))) not in (None, "Hangul")
        ]
        if unspaced:
            lines.append(
                "KAS splits words by English rules, so a step in a script without spaces is one word: "
                f"{', '.join(unspaced)}."
            )
        several = {name: most for name, (_, targets) in tasks.items() if (most := max(map(_count, targets))) > 1}
        if several:
            listed = ", ".join(f"{name} (up to {most})" for name, most in several.items())
            lines.append(f"Rows with several targets count the best target; BLEU uses them all: {listed}.")
        return lines


def main_score(metric: str) -> str | None:
    """The score of a metric that counts in means over tasks. None: a user's own metric, whose first score counts."""
    return named_metric(metric).MAIN_SCORE if metric in METRICS else None


def read_kinds(path: Path) -> dict[str, str]:
    """The kinds of tasks of a YAML file, `{qa: [task, …], choice: [task, …]}`, as {task: kind}.

    Raises:
        UserError: the file cannot be read or has another form.
    """
    content = read_yaml(path)
    if not all(kind in ("qa", "choice") for kind in content):
        raise UserError(f"{path}: expected lists of tasks under `qa` and `choice`")
    kinds: dict[str, str] = {}
    for kind, tasks in content.items():
        if not isinstance(tasks, (list, type(None))):
            raise UserError(f"{path}: expected a list of tasks under `{kind}`, found {quoted(tasks)}")
        for task in (in_one_form(str(task)) for task in tasks or ()):
            if kinds.setdefault(task, kind) != kind:
                raise UserError(f"{path}: task {quoted(task)} is under `qa` and under `choice`; a task is of one kind")
    return kinds


def _texts(targets: Sequence[Reference]) -> list[str]:
    return [text for target in targets for text in ([target] if isinstance(target, str) else target)]


def _steps(targets: Sequence[Reference]) -> list[str]:
    return [step for plan in _texts(targets) for step in steps_of(plan)]


def _count(target: Reference) -> int:
    return 1 if isinstance(target, str) else len(target)


def _short_targets(tasks: Mapping[str, Sequence[Reference]], length: Callable[[str, str], int]) -> str:
    """The tasks with targets of fewer than four words, `task (2 of 30)`; with several targets, all must be short."""
    found = []
    for name, targets in tasks.items():
        short = sum(all(length(text, name) < 4 for text in _texts([target])) for target in targets)
        if short:
            found.append(f"{name} ({short} of {len(targets)})")
    return ", ".join(found)


__all__ = [
    "KINDS",
    "METRICS",
    "SCORINGS",
    "Metric",
    "Reference",
    "RowError",
    "Scoring",
    "ScoringName",
    "find_metric",
    "main_score",
    "read_kinds",
]
