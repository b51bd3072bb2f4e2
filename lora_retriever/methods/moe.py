"""A mixture of experts over adapters, weighed by token: a baseline of the LoraRetriever paper.

y = W x + Σ_e w_e s_e B_e A_e x over the experts (`parts/experts.py`), with w = softmax(G x) at every module for every
token. *soft* keeps all weights; *top-k* keeps the k largest, scaled to sum to 1.

The three methods share one set of matrices, trained with all experts. They differ in the experts that are kept at
inference; the paper does not say how its top-k gates were trained. The experts are one fixed draw, so the paper has no
out-of-domain column for these methods, and the project has no out-of-domain variants.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.experts import Experts, Training
from lora_retriever.methods.parts.weighing import softmax_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from lora_retriever.methods.context import Context
    from lora_retriever.methods.parts.gate_training import Matrices
    from peft_composition import Offered, Tokens

CITATION = "Zhao et al. 2024, arXiv 2402.09997, baselines"


@dataclass(frozen=True)
class MoE(Training):
    """The gate, with the options of its training. `top_k` None keeps all experts."""

    top_k: Count | None = None

    def fit(self, context: Context) -> TokenGate:
        """The gate with its matrices, trained now if necessary."""
        from lora_retriever.methods.parts.gate_training import trained_matrices

        return TokenGate(trained_matrices(context, self.options, "moe", "mixture", token_weights), self.top_k)


@dataclasses.dataclass(frozen=True)
class TokenGate:
    """Weighs the experts for every token by the module's input."""

    matrices: Matrices
    top_k: int | None = None

    def prepare(self, offered: Offered) -> Tensor:
        """The module's G [P, d_in]."""
        return self.matrices.of(offered)

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The weights [batch, n, P] float32."""
        return token_weights(prepared, tokens, self.top_k)


def token_weights(matrix: Tensor, tokens: Tokens, top_k: int | None = None) -> Tensor:
    """w = softmax(G x) [batch, n, P] over the offered experts, or over the `top_k` experts with the largest scores.

    The softmax over the kept scores is the softmax over all, its kept weights scaled to sum 1. Computed in the dtype of
    the matrix G [P, d_in], float32.
    """
    from torch.nn.functional import linear

    scores = linear(tokens.x.to(matrix.dtype), matrix)  # G x, [batch, n, P]
    return softmax_of_offered(scores, tokens.offered[:, None], top_k)


METHODS = (
    Method(
        "moe_top1",
        "one adapter of every domain as experts, a trained layer gives every token the best",
        CITATION,
        Experts(),
        gate=MoE(top_k=1),
        reads=frozenset({"adapters", "pool", "model"}),
        settings=frozenset({"seed"}),
    ),
    Method(
        "moe_top3",
        "one adapter of every domain as experts, a trained layer weighs the best three for every token",
        CITATION,
        Experts(),
        gate=MoE(top_k=3),
        reads=frozenset({"adapters", "pool", "model"}),
        settings=frozenset({"seed"}),
    ),
    Method(
        "moe_soft",
        "one adapter of every domain as experts, a trained layer weighs all of them for every token",
        CITATION,
        Experts(),
        gate=MoE(),
        reads=frozenset({"adapters", "pool", "model"}),
        settings=frozenset({"seed"}),
    ),
)
