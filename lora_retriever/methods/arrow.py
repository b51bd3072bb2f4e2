"""Arrow: every token goes to the adapters whose main direction is nearest to the token.

Ostapenko et al. 2024, "Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv 2405.11157. An adapter's
prototype at a module is the top right singular vector v of its update B A: the input direction to which the update
responds most. A token's score is |x · v|, because v and -v are the same direction. x is not scaled to length 1. The
`top_k` best adapters get the softmax of their scores as weights, and the other adapters get 0: y = W x + Σ_p w_p s_p
B_p A_p x.

These are the formula and the defaults of upstream PEFT's Arrow (`create_arrow_model`): 3 adapters, temperature 1. PEFT
finds v by 15 power iterations from a random vector, which are too few if the first two singular values are nearly
equal; here v is exact. The authors' own library (github.com/microsoft/mttl, `arrow_router`) has the same scores. By
default this library keeps all adapters, and averages their parameters by token, (Σ_p w_p B_p)(Σ_p w_p A_p) x.
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

CITATION = "Ostapenko et al. 2024, arXiv 2405.11157"


@dataclass(frozen=True)
class Arrow:
    """Weighs the `top_k` adapters whose prototypes are nearest to a token, by a softmax at `temperature`."""

    top_k: Count = 3
    temperature: Positive = 1.0

    def prepare(self, offered: Offered) -> Tensor:
        """The prototypes [P, d_in], of length 1; zeros for an adapter without an effect at this module."""
        from lora_retriever.methods.parts.spectral import computing_dtype, spectrum_of

        first = spectrum_of(offered).coordinates[:, :1]  # [P, 1, r]
        prototypes = first @ offered.down.cpu().double()  # [P, 1, d_in]
        return prototypes[:, 0].to(offered.down.device, computing_dtype(offered))

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The softmax [batch, n, P] of |x · v_p| over the best of the offered adapters."""
        scores = (tokens.x.to(prepared.dtype) @ prepared.T).abs()  # [batch, n, P]
        return softmax_of_offered(scores, tokens.offered[:, None], self.top_k, self.temperature)


METHODS = with_ood(
    Method(
        "arrow",
        "every token to the adapters whose main direction is nearest to it",
        CITATION,
        Everything(),
        gate=Arrow(),
    )
)
