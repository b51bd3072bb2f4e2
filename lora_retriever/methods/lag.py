"""LAG: at every module and token, Arrow finds a few adapters, and the adapter with the best SpectR score among these
acts.

Fleshman & Van Durme 2025, "LAG: LoRA-Augmented Generation", arXiv 2507.05346. With the update s B A = U S V^T, a* is
the first row of V^T and A* is V^T. For a token x, the `top_k` adapters with the largest |a* · x| are kept (Arrow's
score), and the adapter among them with the largest ‖A* x‖ (SpectR's score) acts with weight 1: y = W x + s B A x.

Two things are open. The paper's text scores by ‖V^T x‖, without singular values, while a later paper (arXiv 2509.18093)
describes the score as ‖S V^T x‖ = ‖s B A x‖; `singular_values` takes the second score. The paper routes a library of
tasks and a library of knowledge separately, with one adapter each; here the pool is one library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.everything import Everything
from lora_retriever.methods.parts.weighing import best_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from peft_composition import Offered, Tokens

CITATION = "Fleshman & Van Durme 2025, arXiv 2507.05346"


@dataclass(frozen=True)
class LAG:
    """Gives a token one adapter: of the `top_k` best adapters by Arrow's score, the best by SpectR's score.

    Attributes:
        singular_values: whether each direction of an adapter is weighted by its singular value in the second score.
    """

    top_k: Count = 20
    singular_values: bool = False

    def prepare(self, offered: Offered) -> Tensor:
        """The factors [P, 1 + r, r] of A x: first the factor of the first direction, then the factors of the second
        score."""
        import torch

        from lora_retriever.methods.parts.spectral import computing_dtype, response_of, spectrum_of

        coordinates = spectrum_of(offered).coordinates  # [P, r, r]
        length = response_of(offered) if self.singular_values else coordinates  # [P, r, r]
        return torch.cat([coordinates[:, :1], length], dim=1).to(offered.down.device, computing_dtype(offered))

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """One-hot weights [batch, n, P]."""
        import torch

        from lora_retriever.methods.parts.spectral import products

        offered = tokens.offered[:, None]  # [batch, 1, P]
        found = products(prepared, tokens.inner)  # [batch, n, P, 1 + r]
        arrow = found[..., 0].abs().where(offered, -1)  # |a* · x|, [batch, n, P]
        best = arrow.topk(min(self.top_k, arrow.shape[-1]), dim=-1).indices  # [batch, n, k]
        kept = torch.zeros_like(arrow, dtype=torch.bool).scatter(-1, best, True)  # [batch, n, P]
        return best_of_offered(found[..., 1:].norm(dim=-1), kept & offered)  # the adapter with the largest ‖A* x‖


METHODS = with_ood(
    Method(
        "lag",
        "every token to one adapter: of the 20 best by Arrow's score, the best by SpectR's score",
        CITATION,
        Everything(),
        gate=LAG(),
    )
)
