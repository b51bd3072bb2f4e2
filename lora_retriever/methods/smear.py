"""SMEAR, soft merging of experts with adaptive routing (Muqeeth et al. 2023, arXiv 2306.03745), over a pool's adapters.

At every module the experts' parameters are averaged once for a prompt, with w = softmax(G x̄), where x̄ is the mean of
the module's inputs for the prompt's tokens: y = W x + (Σ_e w_e s_e B_e)(Σ_e w_e A_e) x, this project's fusion.

Two things differ from the paper of SMEAR. The paper trains the experts together with the layer that weighs them, and
drops experts at random; here, as in the baseline of LoraRetriever (arXiv 2402.09997), the experts are existing adapters
(`parts/experts.py`). And the mean is taken over the prompt only, also for the tokens of the answer, because the answer
does not exist yet when decoding begins. The experts are one fixed draw, so the LoraRetriever paper has no out-of-domain
column for this method, and the project has no out-of-domain variant.

The prompt is the text of the first pass, before which nothing is cached. Three other ways to call the model change
these rules; the project's decoding uses none of the three. Without a cache (`use_cache=False`) every pass reads the
answer so far, too. If a prompt is read in chunks, the first chunk decides, or the last chunk with a cache that cannot
tell its length. With a static cache, whose masks have four dimensions, padding counts as text.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

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
    """The gate, with the options of its training. The gate weighs the experts by prompt and module."""

    def fit(self, context: Context) -> PromptGate:
        """The gate with its matrices, trained now if necessary."""
        from lora_retriever.methods.parts.gate_training import trained_matrices

        return PromptGate(trained_matrices(context, self.options, "smear", "fusion", prompt_weights))


@dataclasses.dataclass(frozen=True)
class PromptGate:
    """Weighs the experts by the prompt. At a module, all tokens of a row have the same weights."""

    matrices: Matrices

    def prepare(self, offered: Offered) -> Tensor:
        """The module's G [P, d_in]."""
        return self.matrices.of(offered)

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The weights [batch, n, P] float32, kept from the prompt for the tokens of the answer."""
        return prompt_weights(prepared, tokens)


def prompt_weights(matrix: Tensor, tokens: Tokens) -> Tensor:
    """w = softmax(G x̄) over the offered experts, the same for all tokens of a row: [batch, n, P].

    x̄ is the mean over the real tokens of the pass that reads the prompt. Later passes use the same weights. If there
    was no such pass, because the cached text was read without this composition, the first new tokens are used instead.
    A head that gets the prompt's last position only uses this position. The weights are computed in the dtype of the
    matrix G [P, d_in], float32.
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
        settings=frozenset({"seed"}),
    ),
)
