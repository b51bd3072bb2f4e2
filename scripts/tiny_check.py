"""Whether the miniature behaves like the real benchmark: its scores under every method, and the conditions they must meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from peft_composition import ComposableModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lora_retriever.data import PoolEntry, Row, read_pool, read_rows
from lora_retriever.encoders import SentenceEncoder
from lora_retriever.index import AdapterIndex
from lora_retriever.methods import METHODS, Composition, Mode, route
from lora_retriever.metrics import MAIN_SCORE, METRICS
from lora_retriever.profile import INSTRUCTION
from lora_retriever.prompt import ALPACA

BATCH = 60
NEW_TOKENS = 16
K = 3

Scores = dict[str, dict[str, float]]
"""Per run, per task, the mean main score in percent."""


def measure(folder: Path) -> dict[str, Any]:
    """Scores of a finished miniature: per run and task, of the best sibling's adapter per task, and of retrieval.

    Retrieval is by cosine; `retrieval` holds top-1 and top-3 in percent for it and for the paper's mean inner product.
    """
    rows, pool = read_rows(folder / "test.json"), read_pool(folder / "pool.json")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = ComposableModel(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval())
    for entry in pool:
        model.load_adapter(folder / "adapters" / entry.model_name, name=entry.model_name)
    encoder = SentenceEncoder(SentenceTransformer(str(folder / "encoder"), device="cpu"), INSTRUCTION)
    queries = encoder.encode([row.inputs for row in rows])
    embeddings = [encoder.encode([sample.inputs for sample in entry.sample]) for entry in pool]
    names = [entry.model_name for entry in pool]
    indexes = {scorer: AdapterIndex.from_embeddings(names, embeddings, scorer) for scorer in ("cosine", "mean_ip")}

    runs: Scores = {}
    for method in METHODS.values():
        compositions = route(method, rows, K, indexes["cosine"], queries)
        runs[method.name] = _task_scores(rows, answer(model, tokenizer, rows, compositions, method.mode))
        print(f"  check: {method.name}: {em_mean(rows, runs[method.name]):.1f} (mean exact match)", flush=True)
    retrieval = {}
    for scorer, index in indexes.items():
        hits = index.search(queries, K).names
        retrieval[scorer] = {f"top{k}": _percent([row.task in hit[:k] for row, hit in zip(rows, hits)]) for k in (1, K)}
    return {"runs": runs, "best_sibling": _best_siblings(model, tokenizer, rows, pool), "retrieval": retrieval}


def answer(
    model: ComposableModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    compositions: Sequence[Composition],
    mode: Mode,
) -> list[str]:
    """Greedy answers, one a row, each row under its own composition."""
    names = model.adapters
    answers: list[str] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        weights = torch.zeros(len(batch), len(names))  # [batch, adapters]
        for place, composition in enumerate(compositions[start : start + BATCH]):
            for name, weight in zip(composition.adapters, composition.weights, strict=True):
                weights[place, names.index(name)] = weight
        prompts = tokenizer([ALPACA.format(inputs=row.inputs) for row in batch], padding=True, return_tensors="pt")
        with torch.inference_mode(), model.composed(names, weights, mode):
            tokens = model.generate(**prompts, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers += tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def em_mean(rows: Sequence[Row], scores: Mapping[str, float]) -> float:
    """The mean score of the tasks measured by exact match, in percent."""
    return mean(scores[task] for task in {row.task: None for row in rows if row.metric == "em"})


def failures(rows: Sequence[Row], measured: dict[str, object]) -> list[str]:
    """The conditions that the measured scores do not meet, in words; empty when the miniature is fit for use."""
    runs: Scores = measured["runs"]  # type: ignore[assignment]
    em = {name: em_mean(rows, scores) for name, scores in runs.items()}
    conditions = {
        "base answers at most 15 %": em["base"] <= 15,
        "best_selection answers at least 80 %": em["best_selection"] >= 80,
    }
    for name in ("selection", "mixture"):
        conditions[f"{name} is within 12 points of best_selection"] = em[name] >= em["best_selection"] - 12
        conditions[f"{name}_ood is at least 10 points below {name}"] = em[f"{name}_ood"] <= em[name] - 10
        conditions[f"{name}_ood is above base"] = em[f"{name}_ood"] > em["base"]
    for scorer, shares in measured["retrieval"].items():  # type: ignore[attr-defined]
        conditions[f"retrieval by {scorer} finds 60 to 98 % at top 1"] = 60 <= shares["top1"] <= 98
    return [condition for condition, met in conditions.items() if not met]


def _best_siblings(
    model: ComposableModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], pool: Sequence[PoolEntry]
) -> dict[str, float]:
    """Per task, the score of the best other adapter of its domain."""
    best = {}
    for entry in pool:
        own = [row for row in rows if row.task == entry.model_name]
        siblings = [other.model_name for other in pool if other.domain == entry.domain and other != entry]
        scores = [
            _task_scores(own, answer(model, tokenizer, own, [Composition((name,), (1.0,))] * len(own), "mixture"))
            for name in siblings
        ]
        best[entry.model_name] = max(score[entry.model_name] for score in scores)
    return best


def _task_scores(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row, text in zip(rows, answers, strict=True):
        scores.setdefault(row.task, []).append(METRICS[row.metric](row.targets, text)[MAIN_SCORE[row.metric]])
    return {task: _percent(values) for task, values in scores.items()}


def _percent(values: Sequence[float]) -> float:
    return round(100 * mean(values), 1)
