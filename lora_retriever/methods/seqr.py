"""SEQR: every token goes to the adapter whose output is longest, in comparison with the adapter's own tokens.

Fleshman & Van Durme 2025, "SEQR: Secure and Efficient QR-based LoRA Routing", arXiv 2509.18093. An adapter's norm at a
token is ‖s B A x‖, the length of its output. Adapters differ in size, so the norms are calibrated: the mean μ and the
standard deviation σ of the norm over the tokens of the adapter's own training data are measured once. A token goes to
the adapter with the largest (‖s B A x‖ − μ) / σ, with weight 1.

In the paper all adapters share one random A, and a QR decomposition of B makes the norm cheap to compute. The adapters
of a pool have an A each, so the norm is exact here and the saving is gone. Three choices are this project's: each
adapter has its own μ and σ at each module; the inputs of the pool's samples give μ and σ; and the base alone reads
these inputs, so that one pass serves all adapters.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.everything import Everything
from lora_retriever.methods.parts.weighing import best_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from lora_retriever.methods.context import Context
    from lora_retriever.methods.parts.own_samples import OwnSamples
    from peft_composition import Offered, Tokens

CITATION = "Fleshman & Van Durme 2025, arXiv 2509.18093"
SMALLEST = 1e-6
"""Minimum σ. An adapter whose samples have a single token has a σ of 0."""


@dataclass(frozen=True)
class Seqr:
    """The gate before its calibration.

    Attributes:
        samples: maximum number of samples of each adapter on which μ and σ are measured.
    """

    samples: Count = 20

    def fit(self, context: Context) -> CalibratedNorms:
        """The gate with μ and σ, measured now if necessary."""
        from lora_retriever.methods.parts.own_samples import own_samples

        return CalibratedNorms(own_samples(context, self.samples))


@dataclasses.dataclass(frozen=True)
class CalibratedNorms:
    """Gives every token the adapter with the largest calibrated norm."""

    measured: OwnSamples

    def prepare(self, offered: Offered) -> tuple[Tensor, Tensor]:
        """The factors [P, r, r] that give norms divided by σ, and μ / σ [P]."""
        from lora_retriever.methods.parts.spectral import computing_dtype, response_of

        place = offered.down.device, computing_dtype(offered)
        mean, deviation, _ = self.measured.of(offered)
        response, mean, deviation = (part.cpu().double() for part in (response_of(offered), mean, deviation))
        deviation = deviation.clamp(min=SMALLEST)
        return (response / deviation[:, None, None]).to(*place), (mean / deviation).to(*place)

    def weights(self, prepared: tuple[Tensor, Tensor], tokens: Tokens) -> Tensor:
        """One-hot weights [batch, n, P]."""
        from lora_retriever.methods.parts.spectral import lengths

        response, mean = prepared
        scores = lengths(response, tokens.inner) - mean  # [batch, n, P]
        return best_of_offered(scores, tokens.offered[:, None])


METHODS = with_ood(
    Method(
        "seqr",
        "every token to the adapter whose output is longest, compared with its output for its own samples",
        CITATION,
        Everything(),
        gate=Seqr(),
        reads=frozenset({"adapters", "pool", "model"}),
    )
)
