"""SpectR: every token goes to the adapters whose input directions hold most of the token.

Fleshman & Van Durme 2025, "SpectR: Dynamically Composing LM Experts with Spectral Routing", arXiv 2504.03454. Arrow
uses one direction of an adapter; SpectR uses all directions. With the update B A = U S V^T, the authors store the
adapter as B* = U S and A* = V^T. A token's score is ‖A* x‖ = ‖V^T x‖, the length of the token's projection on the
adapter's r input directions. The authors' code (github.com/wfleshman/spectr) and a later paper of the authors (arXiv
2507.05346, equations 1 to 7) have this score. The adapter's scaling does not count. With `singular_values` the score is
‖S V^T x‖ = ‖s B A x‖, the length of the adapter's output, in which the scaling counts.

The `top_k` best adapters get the softmax of their scores, as in Arrow. (SpectR's own paper was not available.) The
authors' code gives 4 adapters equal weights, and averages the stored A* and B*, a fusion of these parameters. Here
outputs are averaged, as in Arrow. So the two methods differ in the score and in the number of adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Positive
from lora_retriever.methods.parts.everything import Everything
from lora_retriever.methods.parts.weighing import softmax_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from peft_composition import Offered, Tokens

CITATION = "Fleshman & Van Durme 2025, arXiv 2504.03454"


@dataclass(frozen=True)
class SpectR:
    """Weighs the `top_k` adapters that hold most of a token, by a softmax at `temperature`.

    Attributes:
        singular_values: whether each direction of an adapter is weighted by its singular value.
    """

    top_k: Count = 4
    temperature: Positive = 1.0
    singular_values: bool = False

    def prepare(self, offered: Offered) -> Tensor:
        """The matrices [P, r, r] that map A x to V^T x, or to r numbers with the length of s B A x."""
        from lora_retriever.methods.parts.spectral import computing_dtype, response_of, spectrum_of

        factor = response_of(offered) if self.singular_values else spectrum_of(offered).coordinates  # [P, r, r]
        return factor.to(offered.down.device, computing_dtype(offered))

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The softmax [batch, n, P] of the lengths over the best of the offered adapters."""
        from lora_retriever.methods.parts.spectral import lengths

        scores = lengths(prepared, tokens.inner)  # [batch, n, P]
        return softmax_of_offered(scores, tokens.offered[:, None], self.top_k, self.temperature)


METHODS = with_ood(
    Method(
        "spectr",
        "every token to the adapters whose input directions hold most of it",
        CITATION,
        Everything(),
        gate=SpectR(),
    )
)
