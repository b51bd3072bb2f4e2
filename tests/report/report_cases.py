"""A made-up results folder of the paper's size: 2,395 rows of 48 tasks under 12 runs, with a sweep over k."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TASKS = {
    "struct to text": ("rouge", ["web_nlg_en", "dart", "e2e_nlg", "common_gen"]),
    "translation": (
        "bleu",
        [*(f"wmt16_{tongue}en" for tongue in ("cs", "de", "fi", "ro", "ru", "tr")), "wmt14_enfr", "para_crawl_enes"],
    ),
    "commonsense": ("em", ["story_cloze", "piqa", "copa", "hellaswag"]),
    "sentiment": ("em", ["sst2", "yelp_polarity", "imdb_reviews", "sentiment140"]),
    "reading comp": ("em", ["multirc", "squad_v2", "squad_v1", "openbookqa", "bool_q", "drop"]),
    "closed_book QA": ("em", ["arc_challenge", "arc_easy", "natural_questions", "trivia_qa"]),
    "coreference": ("em", ["winogrande", "definite_pronoun_resolution"]),
    "read.comp.w:commonsense": ("em", ["cosmos_qa", "record"]),
    "paraphrase": ("em", ["glue_qqp", "glue_mrpc", "paws_wiki", "stsb"]),
    "nli": (
        "em",
        ["anli_r1", "anli_r2", "anli_r3", "cb", "mnli_matched", "mnli_mismatched", "qnli", "rte", "snli", "wnli"],
    ),
}
DOMAIN = {task: domain for domain, (_, tasks) in TASKS.items() for task in tasks}
RUNS = {
    "base": 0, "selection": 1, "selection_ood": 1, "fusion": 3, "fusion_ood": 3, "mixture": 3, "mixture_ood": 3,
    "best_selection": 1, "fusion@k=1": 1, "fusion@k=8": 8, "mixture@k=1": 1, "mixture@k=8": 8,
}  # fmt: skip
"""Number of adapters of a row, by run."""
NOT_RETRIEVING = ("base", "best_selection")
SKILL = {"base": 0.1, "fusion": 0.8, "mixture": 0.95}
HOSTILE = '</script><script>document.title = "taken over"</script><img src=x onerror="document.title=\'taken over\'">'
"""The first run's answer to the first row. A page that takes this answer for markup changes its own title."""


STAGED = ("mixture", 7)
"""The run and the row that were answered in two stages."""
STAGES = [
    [{"inputs": "which?", "adapters": ["cb"], "weights": [1.0], "labels": ["wet"], "probabilities": {"wet": 0.912},
      "threshold": 0.5}],
    [{"inputs": "wet | sky", "adapters": ["rte"], "weights": [0.25], "answer": HOSTILE}],
]  # fmt: skip


def write_full_size(folder: Path, words: Sequence[str]) -> None:
    """Write the runs, with texts of random `words`. Every call writes the same files."""
    dice = random.Random(0)
    rows = [_row(task, dice, words) for task in DOMAIN for _ in range(45 if task == "cb" else 50)]
    ranked = [_ranked(row["task"], dice) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    for name, k in RUNS.items():
        lines = [
            {"id": id, **row, **_answered(name, k, row, ranking, dice, words)}
            for id, (row, ranking) in enumerate(zip(rows, ranked, strict=True))
        ]
        if name == STAGED[0]:
            lines[STAGED[1]]["stages"] = STAGES
        if name == "base":
            lines[0]["predicted_answer"] = HOSTILE
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (folder / f"{name}.meta.json").write_text(json.dumps(_meta(name, k)), encoding="utf-8")


def _row(task: str, dice: random.Random, words: Sequence[str]) -> dict[str, Any]:
    metric = TASKS[DOMAIN[task]][0]
    length = min(
        900, int(dice.lognormvariate(3.8, 0.8)) + 5
    )  # words; the official inputs have 373 characters on average
    target = dice.choice(["yes", "no", "it is not possible to tell", "2"])
    return {
        "inputs": f"{task.replace('_', ' ').capitalize()}:\n\n"
        + " ".join(dice.choices(words, k=length))
        + "\n\nAnswer:",
        "targets": target if metric == "em" else " ".join(dice.choices(words, k=dice.randint(8, 20))),
        "task": task,
        "domain": DOMAIN[task],
        "metric": metric,
    }


def _ranked(task: str, dice: random.Random) -> list[tuple[str, float]]:
    """All adapters with their scores, best first.

    Most often the own adapter is first, followed by adapters of its domain.
    """
    score = {
        name: dice.gauss(0, 0.12) + 0.45 + 0.25 * (name == task) + 0.12 * (domain == DOMAIN[task])
        for name, domain in DOMAIN.items()
    }
    return sorted(((name, round(value, 6)) for name, value in score.items()), key=lambda pair: -pair[1])


def _answered(
    name: str, k: int, row: dict[str, Any], ranking: list[tuple[str, float]], dice: random.Random, words: Sequence[str]
) -> dict[str, Any]:
    method = name.partition("@")[0]
    chosen: Sequence[tuple[str, float | None]] = [(row["task"], None)]
    if method != "best_selection":
        masked = row["task"] if method.endswith("_ood") else None
        chosen = [(adapter, score) for adapter, score in ranking if adapter != masked][:k]
    adapters = [adapter for adapter, _ in chosen]
    best = [(adapter, score) for adapter, score in ranking if not method.endswith("_ood") or adapter != row["task"]][:8]
    fit = max((_fit(adapter, row) * 0.97**rank for rank, adapter in enumerate(adapters)), default=0.5)
    skill = fit * SKILL.get(method.removesuffix("_ood"), 1.0)
    return {
        "predicted_answer": _answer(row, skill, dice, words),
        "adapters": adapters,
        "weights": [1 / k for _ in adapters],
        "scores": [score for _, score in chosen],
        "retrieved": None if name in NOT_RETRIEVING else _retrieved(best),
    }


def _retrieved(best: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {
        "adapters": [adapter for adapter, _ in best],
        "scores": [score for _, score in best],
        "probabilities": [0.6 / 2**rank for rank in range(len(best))],
    }


def _fit(adapter: str, row: dict[str, Any]) -> float:
    return 0.75 if adapter == row["task"] else 0.55 if DOMAIN[adapter] == row["domain"] else 0.35


def _answer(row: dict[str, Any], skill: float, dice: random.Random, words: Sequence[str]) -> str:
    if row["metric"] == "em":
        return row["targets"] if dice.random() < skill else " ".join(dice.choices(words, k=dice.randint(1, 12)))
    return " ".join(word if dice.random() < skill else dice.choice(words) for word in row["targets"].split())


def _meta(name: str, k: int) -> dict[str, Any]:
    return {
        "run": name,
        "configuration_hash": f"{sum(name.encode()):064x}",
        "configuration": {"dtype": "float32", "generation": {"template": "alpaca"}}
        | ({"k": k, "scorer": "cosine"} if name not in NOT_RETRIEVING else {}),
        "profile": "made-up",
        "note": "Made-up answers of the paper's size: they show the report, not a model.",
        "timings": {"rows": 2395, "reused": 0 if k else 2395, "seconds": 240 * (1 + k)},
        "versions": {"torch": "2.9.0", "transformers": "5.0.0"},
    }
