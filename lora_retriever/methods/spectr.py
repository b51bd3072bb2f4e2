"""SpectR: every token goes to the adapters in whose input directions it lies most.

Fleshman & Van Durme 2025, "SpectR: Dynamically Composing LM Experts with Spectral Routing", arXiv 2504.03454. Arrow
sees one direction of an adapter; SpectR all of them. With the update B A = U S V^T, its authors store the adapter
as B* = U S and A* = V^T, and a token's score is ‖A* x‖ = ‖V^T x‖, the length of what the token has within the adapter's
r input directions. So their code has it (github.com/wfleshman/spectr), and so do they describe it in a later paper
(arXiv 2507.05346, equations 1 to 7); scaling does not matter to it. With `singular_values` the score is ‖S V^T x‖ =
‖s B A x‖ instead, the length of what the adapter would add, and so with its scaling.

The `top_k` best get the softmax of their scores, as Arrow's do; SpectR's own paper was not at hand to say. The code
gives 4 adapters equal weights, and averages the stored A* and B*, a fusion of such parameters. Here outputs are
averaged, as under Arrow, so that the two differ in the score, and in how many adapters they take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.everything import Everything
from lora_retriever.methods.parts.weighing import check_top_k, softmax_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from peft_composition import Offered, Tokens

CITATION = "Fleshman & Van Durme 2025, arXiv 2504.03454"


@dataclass(frozen=True)
class SpectR:
    """Weighs the `top_k` adapters that hold most of a token, by a softmax at `temperature`.

    Attributes:
        singular_values: whether each of an adapter's directions counts by how much the adapter makes of it.
    """

    top_k: int = 4
    temperature: float = 1.0
    singular_values: bool = False

    def __post_init__(self) -> None:
        check_top_k(self.top_k, self.temperature)

    def prepare(self, offered: Offered) -> Tensor:
        """What takes A x to V^T x, or to as many numbers as long as s B A x: [P, r, r]."""
        from lora_retriever.methods.parts.spectral import computing_dtype, response_of, spectrum_of

        factor = response_of(offered) if self.singular_values else spectrum_of(offered).coordinates  # [P, r, r]
        return factor.to(offered.down.device, computing_dtype(offered))

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The softmax [batch, n, P] of the lengths over the best of what is offered."""
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
