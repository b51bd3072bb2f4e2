"""LoraHub as the LoraRetriever paper's baseline: one learned weighted fusion for the whole mixed set.

LoraHub (Huang et al. 2023, arXiv 2307.13269) learns weights for one task. The LoraRetriever paper (arXiv 2402.09997)
draws 20 adapters of the pool, and learns one set of weights on 20 samples of every task. All rows are answered with
these weights. If a row's own adapter is masked, this adapter has weight 0 for the row, and the other adapters keep
their weights. `methods/parts/lorahub_weights.py` has the optimisation, and says where the optimisation differs from the
authors' code.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.context import RECORD_FILE
from lora_retriever.methods.options import Count, NotNegative, Positive

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context

STEPS_FILE = "steps.jsonl"


@dataclass(frozen=True)
class LoraHub:
    """Adapters drawn with the seed, with the same weights for every row.

    Attributes:
        adapters: number of adapters that are drawn. A smaller pool is taken whole.
        samples: maximum number of samples of each task that the weights are learned on.
        steps: number of weight vectors tried.
        l1: the penalty on the mean absolute weight.
        bound: maximum absolute value of a weight.
    """

    adapters: Count = 20
    samples: Count = 20
    steps: Count = 40
    l1: NotNegative = 0.05
    bound: Positive = 1.5

    def route(self, context: Context) -> list[Composition]:
        """The learned composition for every row, learned now if necessary, without masked adapters.

        Raises:
            UserError: the backend has no model, or the weights cannot be learned.
        """
        folder = context.learned("lorahub", asdict(self), partial(self._learn, context))
        weights: dict[str, float] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))["weights"]
        return [
            Composition.of({name: weight for name, weight in weights.items() if name != own})
            for own in context.masked_adapters
        ]

    def _learn(self, context: Context, folder: Path) -> dict[str, Any]:
        """Learn the weights, and return the record. Every step is written to `folder` at once."""
        from lora_retriever.methods.parts.lorahub_weights import Search, answer_loss, draw_adapters, learn_weights

        generator = context.generator
        names = draw_adapters(context.names, self.adapters, context.seed)
        samples = [sample for entry in context.pool for sample in entry.sample[: self.samples]]
        loss = answer_loss(generator.model, generator.tokenizer, names, samples, generator.settings)
        search = Search(self.steps, self.l1, self.bound)
        learned = learn_weights(loss, names, search, context.seed, folder / STEPS_FILE, context.console)
        return {"adapters": names, "examples": len(samples), **learned.record()}


METHODS = with_ood(
    Method(
        "lorahub",
        "one fusion for all rows, its weights learned on the pool's samples without gradients",
        "Huang et al. 2023, arXiv 2307.13269",
        LoraHub(),
        "fusion",
        reads=frozenset({"adapters", "pool", "model"}),
        settings=frozenset({"seed"}),
    )
)
