"""Does the weight of an adapter explain why `mixture` and `selection` differ? Methods with other weights.

`own_W` is the oracle's adapter with weight W. `best3_W` is a mixture of the best 3 adapters, each with weight W, so the
weights sum to 3 W; `mixture` is W = 1/3. `strong_W` gives the best adapter weight 1, and the next two W each.
Run with `--only adapter_weights:METHODS` under a profile in this folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_retriever.methods import Composition, Method


@dataclass(frozen=True)
class OwnWith:
    """The adapter of the row's own task, with one weight."""

    weight: float

    def route(self, context):
        """One adapter for every row."""
        return [Composition.of({row.task: self.weight}) for row in context.rows]


@dataclass(frozen=True)
class BestWith:
    """The best adapters by retrieval, with these weights, best first."""

    weights: tuple[float, ...]

    def route(self, context):
        """As many adapters for every row as there are weights."""
        hits = context.search(len(self.weights))
        return [Composition.of(dict(zip(names, self.weights, strict=True))) for names in hits.names]


def _best(name: str, *weights: float) -> Method:
    reads, settings = frozenset({"adapters", "pool"}), frozenset({"scorer"})
    summary = f"the best adapters with the weights {weights}"
    return Method(name, summary, "", BestWith(weights), reads=reads, settings=settings)


METHODS = [
    *(
        Method(f"own_{name}", f"the own adapter with weight {weight:.2f}", "", OwnWith(weight))
        for name, weight in {"0.33": 1 / 3, "0.50": 0.5, "1.50": 1.5, "2.00": 2.0}.items()
    ),
    _best("best3_0.50", 0.5, 0.5, 0.5),
    _best("best3_1.00", 1.0, 1.0, 1.0),
    _best("strong_0.33", 1.0, 1 / 3, 1 / 3),
]
