"""Whether the miniature behaves like the real benchmark: its scores under every method, and conditions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import (
    AdaptersSection,
    Checkpoint,
    DataSection,
    EncoderSection,
    Profile,
    RetrievalSection,
)
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import load_generator
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.methods import Composition
from lora_retriever.methods.context import Context, Resources
from lora_retriever.methods.paper import METHODS
from lora_retriever.metrics.base import compute
from lora_retriever.metrics.named import named_metric
from peft_composition import Composer

SETTINGS = GenerationSection(max_prompt_tokens=128, max_new_tokens=16, batch_size=60)
K = 3

Scores = dict[str, dict[str, float]]
"""Per run, per task, the mean main score in percent."""


def measure(folder: Path) -> dict[str, Any]:
    """Scores of a finished miniature: for each run and task, for the best other adapter of each task's domain, and for
    retrieval.

    Runs retrieve by cosine. `retrieval` holds top 1 and top 3 in percent, by cosine and by the paper's mean inner
    product.
    """
    profile = profile_of(folder)
    benchmark = open_benchmark(profile, None)
    rows = benchmark.rows
    generator = load_generator(model_source(profile, benchmark))
    resources = Resources(profile, benchmark, folder, Console(quiet=True), lambda: generator)

    runs: Scores = {}
    for method in METHODS:
        compositions = method.router.route(Context(resources, profile, method.declaration))
        runs[method.name] = _task_scores(rows, _answers(generator, rows, compositions, method.mode))
        print(f"  check: {method.name}: {em_mean(rows, runs[method.name]):.1f} (mean exact match)", flush=True)
    retrieval = {}
    for scorer in ("cosine", "mean_ip"):
        hits = resources.index(scorer).search(resources.embeddings[1], K).names
        retrieval[scorer] = {
            f"top{k}": _percent([row.task in hit[:k] for row, hit in zip(rows, hits, strict=True)]) for k in (1, K)
        }
    return {"runs": runs, "best_sibling": _best_siblings(generator, rows, benchmark.pool), "retrieval": retrieval}


def profile_of(folder: Path) -> Profile:
    """The profile of a finished miniature, wherever it lies."""
    return Profile(
        name="tiny",
        folder=folder,
        base=Checkpoint(location="./base"),
        adapters=AdaptersSection(location="./adapters/{adapter}"),
        encoder=EncoderSection(location="./encoder", cache=False),
        data=DataSection(rows="./test.json", pool="./pool.json"),
        retrieval=RetrievalSection(scorer="cosine", k=K),
        generation=SETTINGS,
        device="cpu",
    )


def em_mean(rows: Sequence[Row], scores: Mapping[str, float]) -> float:
    """The mean score of the tasks measured by exact match, in percent."""
    return mean(scores[task] for task in {row.task: None for row in rows if row.metric == "em"})


def failures(rows: Sequence[Row], measured: dict[str, Any]) -> list[str]:
    """The conditions that the measured scores do not meet, in words; empty if the miniature can be used."""
    runs: Scores = measured["runs"]
    em = {name: em_mean(rows, scores) for name, scores in runs.items()}
    conditions = {
        "base answers at most 15 %": em["base"] <= 15,
        "best_selection answers at least 80 %": em["best_selection"] >= 80,
    }
    for name in ("selection", "mixture"):
        conditions[f"{name} is within 12 points of best_selection"] = em[name] >= em["best_selection"] - 12
        conditions[f"{name}_ood is at least 10 points below {name}"] = em[f"{name}_ood"] <= em[name] - 10
        conditions[f"{name}_ood is above base"] = em[f"{name}_ood"] > em["base"]
    for scorer, shares in measured["retrieval"].items():
        conditions[f"retrieval by {scorer} finds 60 to 98 % at top 1"] = 60 <= shares["top1"] <= 98
    return [condition for condition, met in conditions.items() if not met]


def _best_siblings(generator: Generator, rows: Sequence[Row], pool: Sequence[PoolEntry]) -> dict[str, float]:
    """Per task, the score of the best other adapter of its domain."""
    best = {}
    for entry in pool:
        own = [row for row in rows if row.task == entry.model_name]
        siblings = [other.model_name for other in pool if other.domain == entry.domain and other != entry]
        alone = {name: [Composition({name: 1.0})] * len(own) for name in siblings}
        scores = [_task_scores(own, _answers(generator, own, alone[name], "mixture")) for name in siblings]
        best[entry.model_name] = max(score[entry.model_name] for score in scores)
    return best


def _answers(
    generator: Generator, rows: Sequence[Row], compositions: Sequence[Composition], mode: str | Composer
) -> list[str]:
    """Greedy answers, one a row, each row under its own composition."""
    prompts = make_prompts([row.inputs for row in rows], generator.tokenizer, generator.settings)
    answers: list[str] = []
    for start in range(0, len(rows), SETTINGS.batch_size):
        batch = slice(start, start + SETTINGS.batch_size)
        answers += [answer.text for answer in generator.answer(prompts[batch], compositions[batch], mode)]
    return answers


def _task_scores(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    grouped: dict[str, list[tuple[Row, str]]] = {}
    for row, text in zip(rows, answers, strict=True):
        grouped.setdefault(row.task, []).append((row, text))
    scores = {}
    for task, answered in grouped.items():
        metric, texts = answered[0][0].metric, [text for _, text in answered]
        targets = [row.targets for row, _ in answered]
        named = named_metric(metric)
        found = compute(named.paper()[0], predictions=texts, references=targets)
        scores[task] = round(found[named.MAIN_SCORE], 1)
    return scores


def _percent(values: Sequence[float]) -> float:
    return round(100 * mean(values), 1)
