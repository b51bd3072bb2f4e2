"""Harm: the score of the adapter's own task with and without the mark, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_retriever.generation.batches import Request, plan_batches
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.metrics import Scoring
from lora_retriever.resampling import Array, Indices, bootstrap, exact_bound
from lora_retriever.watermark.attacks.scene import MARKED, Scene

ANSWER_TOKENS = 50
"""Maximum length of an answer to a row, in tokens."""


@dataclass(frozen=True)
class Harm:
    """Scores of one task in percent, on the same rows with both adapters.

    Attributes:
        score: the name of the score.
        low, high: 95 % interval of the difference marked − unmarked, in points; rows are drawn anew.
        better, worse: number of rows that only one of the adapters answers better.
    """

    score: str
    rows: int
    marked: float
    unmarked: float
    low: float
    high: float
    better: int
    worse: int


def measure_harm(scene: Scene) -> Harm:
    """Answer the scene's rows with the marked and the unmarked adapter, and score both by standard scoring.

    Raises:
        UserError: a row cannot be scored.
    """
    assert scene.unmarked is not None
    settings = scene.generator.settings.model_copy(update={"max_new_tokens": ANSWER_TOKENS})
    generator = Generator(scene.generator.model, scene.generator.tokenizer, settings)
    first = scene.rows[0]
    metric = Scoring("standard").metrics_of(first.task, first.metric)[0]
    targets = [row.targets for row in scene.rows]
    statistics = [
        metric.statistics(_answers(generator, name, [row.inputs for row in scene.rows]), targets)
        for name in (MARKED, scene.unmarked)
    ]  # [rows, statistics], twice

    def difference(indices: Sequence[Indices]) -> Array:
        marked, unmarked = (metric.combine(each[indices[0]].sum(axis=-2))[..., 0] for each in statistics)
        return np.asarray(marked - unmarked)[None]

    rows = len(scene.rows)
    low, high = bootstrap([rows], difference)[0].tolist() if rows > 1 else (-100.0, 100.0)
    by_row = statistics[0][:, 0] - statistics[1][:, 0]  # [rows], the main score's own statistic
    better, worse = int((by_row > 0).sum()), int((by_row < 0).sum())
    # No row that differs shows no variation; then the exact binomial bound for 0 of n holds on either side.
    bound = exact_bound(0, rows)[1]
    low, high = low if worse else min(low, -bound), high if better else max(high, bound)
    whole = [float(metric.combine(each.sum(axis=0))[0]) for each in statistics]
    return Harm(metric.scores[0], rows, whole[0], whole[1], low, high, better, worse)


def _answers(generator: Generator, adapter: str, inputs: Sequence[str]) -> list[str]:
    """The answer of one adapter to each input."""
    prompts = make_prompts(inputs, generator.tokenizer, generator.settings)
    composition = Composition.of({adapter: 1.0})
    answers = [""] * len(inputs)
    for batch in plan_batches([Request(n, p, composition) for n, p in enumerate(prompts)], generator.settings):
        found = generator.answer([request.prompt for request in batch], [composition] * len(batch), "mixture")
        for request, answer in zip(batch, found, strict=True):
            answers[request.id] = answer.text
    return answers
