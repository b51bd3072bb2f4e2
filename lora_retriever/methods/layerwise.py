"""Layer-wise retrieval: at every module, the adapters whose update of the prompt is like their update of own samples.

The recipe of the repository codeshannonx-cpu/LoRAWeaver (commit 0cacc9cf), which names no paper. At a module, the
prototype of an adapter is p = s B A h̄ / ‖s B A h̄‖, with h̄ the mean of the module's inputs over the adapter's samples.
For a prompt with the mean input x̄, the score is the cosine of s B A x̄ with p. The `top_k` adapters with the best
scores are kept, and their positive scores, scaled to sum to 1, are the weights of their outputs. A module at which no
score is positive is left to the base.

In the repository, the base alone reads the prompt in an extra pass, before the answer begins. Here, x̄ is taken in the
pass that reads the prompt with the adapters, so later modules get inputs that the adapters of earlier modules have
changed. The base alone reads the samples, as in the repository. The mean over a sample's tokens is taken first, then
the mean over samples.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.everything import Everything

if TYPE_CHECKING:
    from torch import Tensor

    from lora_retriever.methods.context import Context
    from lora_retriever.methods.parts.own_samples import OwnSamples
    from peft_composition import Offered, Tokens

REMEMBERED = "weights"


@dataclass(frozen=True)
class Layerwise:
    """The gate before the prototypes are measured.

    Attributes:
        top_k: number of adapters at a module.
        samples: maximum number of samples of an adapter from which its prototypes are made.
    """

    top_k: Count = 3
    samples: Count = 20

    def fit(self, context: Context) -> Prototypes:
        """The gate with its prototypes, measured now if necessary."""
        from lora_retriever.methods.parts.own_samples import own_samples

        return Prototypes(own_samples(context, self.samples), self.top_k)


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Weighs adapters by prompt and module. At a module, all tokens of a row have the same weights."""

    measured: OwnSamples
    top_k: int = 3

    def prepare(self, offered: Offered) -> tuple[Tensor, Tensor]:
        """F [P, r, r], with ‖F A x‖ = ‖s B A x‖, and the prototypes F A h̄, of length 1 or 0, [P, r].

        F keeps lengths and therefore cosines: the cosine of s B A x̄ with s B A h̄ is the cosine of F A x̄ with
        F A h̄.
        """
        import torch

        from lora_retriever.methods.parts.spectral import computing_dtype, response_of

        place = offered.down.device, computing_dtype(offered)
        response = response_of(offered)  # [P, r, r] float64
        inner = self.measured.of(offered)[2]  # A h̄, [P, r]
        prototypes = torch.nn.functional.normalize((response @ inner[..., None])[..., 0], dim=-1)  # [P, r]
        return response.to(*place), prototypes.to(*place)

    def weights(self, prepared: tuple[Tensor, Tensor], tokens: Tokens) -> Tensor:
        """The weights [batch, n, P], kept from the prompt for the tokens of the answer."""
        import torch

        if tokens.first or REMEMBERED not in tokens.memory:
            response, prototypes = prepared
            real = tokens.real[..., None, None]  # [batch, n, 1, 1]
            total = tokens.inner.to(response.dtype).where(real, 0).sum(dim=1)  # [batch, P, r]
            mean = total / real.sum(dim=1).clamp(min=1)  # A x̄, [batch, P, r]
            outputs = torch.einsum("bpr,pqr->bpq", mean, response)  # F A x̄, [batch, P, r]
            cosines = (torch.nn.functional.normalize(outputs, dim=-1) * prototypes).sum(dim=-1)  # [batch, P]
            scores = cosines.clamp(min=0).where(tokens.offered, 0)  # [batch, P]
            best, places = scores.topk(min(self.top_k, scores.shape[1]), dim=1)  # [batch, k]
            shares = best / best.sum(dim=1, keepdim=True).clamp(min=torch.finfo(best.dtype).tiny)
            tokens.remember(REMEMBERED, torch.zeros_like(scores).scatter(1, places, shares))  # [batch, P]
        return tokens.recall(REMEMBERED)[:, None].expand(-1, tokens.x.shape[1], -1)


METHODS = with_ood(
    Method(
        "layerwise",
        "by prompt and module: the 3 adapters whose update of the prompt is most like their update of own samples",
        "the repository codeshannonx-cpu/LoRAWeaver, without a paper",
        Everything(),
        gate=Layerwise(),
        reads=frozenset({"adapters", "pool", "model"}),
    )
)
