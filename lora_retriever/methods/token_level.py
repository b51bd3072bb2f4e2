"""Token-level adaptation, with the weights of the first token: all adapters, of which the nearest counts 4 times.

Belofsky 2023, "Token-Level Adaptation of LoRA Adapters for Downstream Task Generalization", arXiv 2311.10847, and the
authors' code (github.com/jb-01/LoRA-TLE). A text is compared with the mean embedding of every adapter's samples, by
cosine. The largest cosine is multiplied by `boost` = 4, and the softmax over all adapters gives the weights. The
adapters are merged by PEFT's "linear", which merges factors.

In the authors' code, the text grows with the answer, and the weights are computed again for every second token. Here,
the weights are computed from the prompt and stay the same for the whole answer, because a composition is made once. So
only long answers differ from the answers of the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Positive
from lora_retriever.methods.parts.top_k import EMBEDDED, compositions_of, weights_of

if TYPE_CHECKING:
    from lora_retriever.generation.composition import Composition
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Boosted:
    """All adapters, weighted by the softmax of their cosines, of which the largest is multiplied by `boost`."""

    boost: Positive = 4.0

    def route(self, context: Context) -> list[Composition]:
        """All adapters of the pool with their weights, best first."""
        hits = context.search(context.available, scorer="cosine")
        scores = np.array(hits.scores, dtype=np.float64)  # [rows, adapters]
        scores[:, 0] *= self.boost
        return compositions_of(hits, weights_of(scores, 1.0))


METHODS = with_ood(
    Method(
        "token_level",
        "all adapters, merged with the nearest one counted 4 times in a softmax of cosines",
        "Belofsky 2023, arXiv 2311.10847",
        Boosted(),
        "linear",
        reads=EMBEDDED,
    )
)
