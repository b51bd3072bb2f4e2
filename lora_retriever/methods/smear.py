"""SMEAR, soft merging of experts with adaptive routing (Muqeeth et al. 2023, arXiv 2306.03745), over a pool's adapters.

At every module the experts' parameters are averaged, once for a prompt, with w = softmax(G x̄), where x̄ is the mean of
what the module is given for the prompt's tokens: y = W x + (Σ_e w_e s_e B_e)(Σ_e w_e A_e) x, this project's fusion.

What differs from that paper: there the experts are trained along with the layer that weighs them, and dropped at random
meanwhile; as a baseline of LoraRetriever (arXiv 2402.09997) they are adapters that are there already (`experts`). The
prompt is all that the mean is taken of, also for the tokens of the answer, as the answer is not there when it begins.
LoraRetriever has one column for it, no out-of-domain one, as the experts are one fixed draw: so there is no such twin.

The prompt is what the pass reads before which nothing is cached. Three ways of calling the model, of which this
project's decoding does none, make something else of it: without a cache (`use_cache=False`) every pass reads the answer
so far as well; of a prompt that is read in chunks, the first decides (the last, with a cache that cannot say what it
has seen); and with a static cache, under whose masks of four dimensions all tokens count as real, so does the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.methods.base import Method
from lora_retriever.methods.parts.experts import Experts, Training
from lora_retriever.methods.parts.weighing import softmax_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from lora_retriever.methods.context import Context
    from lora_retriever.methods.parts.gate_training import Matrices
    from peft_composition import Offered, Tokens

CITATION = "Muqeeth et al. 2023, arXiv 2306.03745"
REMEMBERED = "weights"


@dataclass(frozen=True)
class Smear(Training):
    """Weights of the experts by prompt and module, with how they are trained."""

    def fit(self, context: Context) -> PromptGate:
        """The gate itself, its matrices trained now if they were not before."""
        from lora_retriever.methods.parts.gate_training import trained_matrices

        return PromptGate(trained_matrices(context, self.options, "smear", "fusion", prompt_weights))


@dataclass(frozen=True)
class PromptGate:
    """Weighs the experts by the prompt: a row's tokens all have the same weights at a module."""

    matrices: Matrices

    def prepare(self, offered: Offered) -> Tensor:
        """The module's G [P, d_in]."""
        return self.matrices.of(offered)

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The weights [batch, n, P] float32, remembered from the prompt on."""
        return prompt_weights(prepared, tokens)


def prompt_weights(matrix: Tensor, tokens: Tokens) -> Tensor:
    """w = softmax(G x̄) over the experts offered, for all tokens of a row alike: [batch, n, P].

    x̄ is the mean over the real tokens of the pass that reads the prompt; later passes have its weights. If there was no
    such pass (what is cached was read without this composition), the first tokens that come stand for the prompt. A
    head that is given only the prompt's last position has no other mean. Computed in the dtype of the matrix G
    [P, d_in], float32.
    """
    from torch.nn.functional import linear

    if tokens.first or REMEMBERED not in tokens.memory:
        real = tokens.real[:, :, None]  # [batch, n, 1]
        total = tokens.x.to(matrix.dtype).where(real, 0).sum(dim=1)  # [batch, d_in]
        scores = linear(total / real.sum(dim=1).clamp(min=1), matrix)  # G x̄, [batch, P]
        weights = softmax_of_offered(scores, tokens.offered)  # [batch, P]
        tokens.remember(REMEMBERED, weights)
    else:
        weights = tokens.recall(REMEMBERED)  # [batch, P]
    return weights[:, None].expand(-1, tokens.x.shape[1], -1)


METHODS = (
    Method(
        "smear",
        "one adapter of every domain as experts, their parameters averaged by a trained layer for every prompt",
        CITATION,
        Experts(),
        mode="fusion",
        gate=Smear(),
        reads=frozenset({"adapters", "pool", "model"}),
    ),
)
