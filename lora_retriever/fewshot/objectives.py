"""The objectives that LoraHub's weights minimise: the loss of the examples' answers, or the share of wrong greedy
answers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_retriever.data.rows import Row
from lora_retriever.fewshot.answering import answer_all
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.methods.parts.lorahub_weights import Loss, answer_loss
from lora_retriever.metrics import Scoring

OBJECTIVES = ("loss", "score")


def objective_of(kind: str, generator: Generator, names: Sequence[str], examples: Sequence[Row]) -> Loss:
    """The function of the weights of adapters that is minimised.

    Args:
        kind: `loss`: the mean cross-entropy of the answers, in nats. `score`: 1 - the mean score / 100 of the greedy
            answers, by the metric of the examples.
        names: the adapters, in the order of the weights.

    Raises:
        UserError: as for `answer_loss`.
    """
    if kind == "loss":
        return answer_loss(generator.model, generator.tokenizer, names, examples, generator.settings)
    targets = [example.targets for example in examples]

    def wrong(weights: Sequence[float]) -> float:
        composition = Composition.of(dict(zip(names, weights, strict=True)))
        answers = answer_all(generator, examples, [composition] * len(examples))
        return 1 - mean_score(examples[0].metric, answers, targets) / 100

    return wrong


def mean_score(metric: str, answers: Sequence[str], targets: Sequence[str | tuple[str, ...]]) -> float:
    """The mean score of answers under paper scoring, in percent."""
    first = Scoring().metrics_of("", metric)[0]
    return float(first.combine(first.statistics(answers, targets).sum(axis=0))[0])
