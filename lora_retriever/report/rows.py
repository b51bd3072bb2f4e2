"""The rows in the form that the page's reader takes: each text is stored once, and answers are indices of texts."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from lora_retriever.analysis.runs import AnsweredRow, Asked, Run
from lora_retriever.analysis.scores import ScoredRun
from lora_retriever.analysis.summary import RunSummary
from lora_retriever.data.rows import joined
from lora_retriever.generation.prompt import TEMPLATES

SCORE_DIGITS, PROBABILITY_DIGITS = 3, 2
"""Number of decimals of retrieval scores and of probabilities. The reader shows as many."""
Item = TypeVar("Item", bound=Hashable)
Used = tuple[tuple[int, ...], tuple[float, ...], tuple[float | None, ...]]
Question = tuple[int, int, int]
Found = tuple[tuple[int, ...], tuple[float | None, ...], tuple[float | None, ...]]


@dataclass(frozen=True)
class Task:
    """A task of the benchmark. The task's own adapter has the same name."""

    name: str
    domain: str
    metric: str


@dataclass(frozen=True)
class RunRows:
    """One run, with one entry per row.

    Attributes:
        answers: index of the answer in `Rows.texts`; -1: not answered.
        used: index in `Rows.used` of the adapters that the answer used; -1: not answered; -2: not recorded.
        found: index in `Rows.found` of the hits; -1: no hits, or not recorded.
        scores: the row's metric score; None: not answered.
        likelihoods: the log-likelihood of each option, in nats; None: the row has no options. Empty: no row has
            options.
        stages: the questions of each stage of a procedure: index of the question in `Rows.texts`, index of its answer
            in `Rows.texts`, index of its adapters in `Rows.used`. None: the row has no stages. Empty: no row has.
        template: the prompt template, with `{inputs}` in it; `chat`: the tokenizer's own. None: not recorded.
        before: the parts of the prompt before the input, beside the template: the system prompt and the number of
            examples.
    """

    answers: list[int]
    used: list[int]
    found: list[int]
    scores: list[float | None]
    likelihoods: list[list[float] | None]
    stages: list[list[list[Question]] | None]
    template: str | None
    before: str


@dataclass(frozen=True)
class Rows:
    """All rows, in the file's order, and every run's answers to the rows.

    Attributes:
        used: each distinct use of adapters: indices in `adapters`, their weights, their retrieval scores.
        found: each distinct outcome of retrieval: indices in `adapters`, retrieval scores, probabilities.
        task: per row, the index of its task in `tasks`.
        group: per row, the index of its value among the values by which the rows are split; -1: the row has no value.
            Empty: the rows are not split.
        cut: per row, the number of tokens of the input that were cut off.
        options: per row, the options that are chosen from. Empty: no row has options.
    """

    tasks: list[Task]
    adapters: list[str]
    texts: list[str]
    used: list[Used]
    found: list[Found]
    ids: list[int]
    task: list[int]
    group: list[int]
    inputs: list[str]
    targets: list[str]
    cut: list[int]
    options: list[list[str]]
    runs: list[RunRows]


class _Numbered(Generic[Item]):
    """Distinct values, in the order in which `index` first got each value."""

    def __init__(self) -> None:
        self._indices: dict[Item, int] = {}

    def index(self, item: Item) -> int:
        return self._indices.setdefault(item, len(self._indices))

    @property
    def items(self) -> list[Item]:
        return list(self._indices)


def all_rows(runs: Sequence[RunSummary]) -> list[AnsweredRow]:
    """Every row that some run answered, once, in the order of ids. The answers in these rows have no meaning."""
    rows = {id: row for run in reversed(runs) for id, row in run.scored.run.rows.items()}
    return [rows[id] for id in sorted(rows)]


def tasks_of(rows: Sequence[AnsweredRow]) -> list[Task]:
    """The tasks, ordered by domain; domains and their tasks are in the order of their first rows."""
    domains = list(dict.fromkeys(row.domain for row in rows))
    tasks = {row.task: Task(row.task, row.domain, row.metric) for row in rows}
    return sorted(tasks.values(), key=lambda task: domains.index(task.domain))


def row_scores(run: ScoredRun) -> dict[int, float]:
    """The main score of each single row, by id: 0 or 100 for exact match, else the row's own BLEU or ROUGE."""
    found: dict[int, float] = {}
    for task in run.tasks.values():
        scores = np.concatenate([metric.combine(statistics) for metric, statistics in task.parts], axis=-1)
        found |= zip(task.ids, scores[:, task.main].tolist(), strict=True)
    return found


def pack_rows(
    runs: Sequence[RunSummary],
    rows: Sequence[AnsweredRow],
    tasks: Sequence[Task],
    groups: Sequence[Collection[int]] = (),
) -> Rows:
    """The rows with the answers of all runs. `groups` has the ids of each group of rows."""
    texts, adapters, used, found = _Numbered[str](), _Numbered[str](), _Numbered[Used](), _Numbered[Found]()
    packed = []
    for run in runs:
        scores = row_scores(run.scored)
        answered = [run.scored.run.rows.get(row.id) for row in rows]
        packed.append(
            RunRows(
                answers=[texts.index(row.answer) if row else -1 for row in answered],
                used=[_used_index(row, adapters, used) for row in answered],
                found=[_found_index(row, adapters, found) for row in answered],
                likelihoods=_likelihoods(answered),
                stages=_stages(answered, texts, adapters, used),
                scores=[rounded(scores[row.id], 1) if row else None for row in answered],
                template=_template(run.scored.run),
                before=_before(run.scored.run),
            )
        )
    task_index = {task.name: index for index, task in enumerate(tasks)}
    group_index = {id: index for index, ids in enumerate(groups) for id in ids}
    return Rows(
        tasks=list(tasks),
        adapters=adapters.items,
        texts=texts.items,
        used=used.items,
        found=found.items,
        ids=[row.id for row in rows],
        task=[task_index[row.task] for row in rows],
        group=[group_index.get(row.id, -1) for row in rows] if groups else [],
        inputs=[row.inputs for row in rows],
        targets=[joined(row.targets) for row in rows],
        cut=[row.truncated_tokens or 0 for row in rows],
        options=[list(row.options or ()) for row in rows] if any(row.options for row in rows) else [],
        runs=packed,
    )


def rounded(value: float | None, digits: int) -> float | None:
    """A rounded number, whole numbers as `int` to keep the JSON short. None for NaN and infinity, which JSON lacks."""
    if value is None or not np.isfinite(value):
        return None
    short = round(value, digits)
    return int(short) if short == int(short) else short


def _used_index(row: AnsweredRow | None, adapters: _Numbered[str], used: _Numbered[Used]) -> int:
    """The entry of `RunRows.used` for an answered row. None: the run did not answer the row."""
    if row is None:
        return -1
    return used.index(_used(row, row.scores, adapters)) if row.names_adapters else -2


def _used(answer: AnsweredRow | Asked, scores: Sequence[float | None], adapters: _Numbered[str]) -> Used:
    weights = tuple(round(weight, 4) for weight in answer.weights)
    return tuple(map(adapters.index, answer.adapters)), weights, tuple(rounded(score, SCORE_DIGITS) for score in scores)


def _found_index(row: AnsweredRow | None, adapters: _Numbered[str], found: _Numbered[Found]) -> int:
    """The entry of `RunRows.found` for an answered row. None: the run did not answer the row."""
    if row is None or row.retrieved is None:
        return -1
    scores = tuple(rounded(score, SCORE_DIGITS) for score in row.retrieved.scores)
    probabilities = tuple(rounded(share, PROBABILITY_DIGITS) for share in row.retrieved.probabilities)
    return found.index((tuple(map(adapters.index, row.retrieved.adapters)), scores, probabilities))


def _likelihoods(answered: Sequence[AnsweredRow | None]) -> list[list[float] | None]:
    """The entries of `RunRows.likelihoods`."""
    if not any(row and row.likelihoods for row in answered):
        return []
    return [[round(number, 3) for number in row.likelihoods] if row and row.likelihoods else None for row in answered]


def _stages(
    answered: Sequence[AnsweredRow | None],
    texts: _Numbered[str],
    adapters: _Numbered[str],
    used: _Numbered[Used],
) -> list[list[list[Question]] | None]:
    """The entries of `RunRows.stages`."""
    if not any(row and row.stages for row in answered):
        return []

    def packed(asked: Asked) -> Question:
        return texts.index(asked.inputs), texts.index(_answer_of(asked)), used.index(_used(asked, (), adapters))

    stages = [row.stages if row else None for row in answered]
    return [[[packed(asked) for asked in stage] for stage in each] if each else None for each in stages]


def _answer_of(asked: Asked) -> str:
    """The answer to a question: the text, or a line for each label with its probability."""
    if asked.answer is not None:
        return asked.answer
    chances = {label: f" {chance:.2f}" for label, chance in asked.probabilities.items()}
    threshold = "" if asked.threshold is None else f" (threshold {asked.threshold:.2f})"
    return "\n".join(label + chances.get(label, "") for label in asked.labels or ("no label",)) + threshold


def _generation(run: Run) -> dict[str, Any]:
    """The section `generation` of the run's configuration. Empty: not recorded."""
    recorded = run.meta.get("configuration", {}).get("generation")
    return recorded if isinstance(recorded, dict) else {}


def _template(run: Run) -> str | None:
    """The entry of `RunRows.template`."""
    name = _generation(run).get("template")
    return TEMPLATES.get(name, name) if isinstance(name, str) else None


def _before(run: Run) -> str:
    """The entry of `RunRows.before`."""
    generation = _generation(run)
    parts = [f"system prompt: {generation['system']}"] if generation.get("system") else []
    parts += [f"{generation['shots']} examples at most"] if generation.get("shots") else []
    return "; ".join(parts)
