"""PHATGOOSE: every adapter learns its tokens on its own samples, and a token goes to the two best adapters.

Muqeeth et al. 2024, "Learning to Route Among Specialized Experts for Zero-Shot Generalization", arXiv 2402.05859. For
an adapter and a module, a vector v is trained from 0 with y = W x + σ(v · x) s B A x, everything else frozen, on the
adapter's own task. To answer, x and v are standardised over their n features (mean 0, variance 1): x̂ and v̂. A token's
logit is v̂ · x̂ / √n. The `top_k` = 2 best adapters get the softmax of their logits, and their outputs are mixed.

The paper trains 100 steps on an adapter's whole training data. Here an adapter has the pool's samples: 20 samples in
20 epochs of batches of 4 are 100 steps. AdamW's rate at 2,560 inputs is 1e-3, as in the authors of mttl
(github.com/microsoft/mttl, `phatgoose`); the original's is 5e-3.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Positive
from lora_retriever.methods.parts.everything import Everything
from lora_retriever.methods.parts.experts import Training
from lora_retriever.methods.parts.weighing import softmax_of_offered

if TYPE_CHECKING:
    from torch import Tensor

    from lora_retriever.methods.context import Context
    from lora_retriever.methods.parts.gate_training import Matrices
    from peft_composition import Offered, Tokens

CITATION = "Muqeeth et al. 2024, arXiv 2402.05859"


@dataclass(frozen=True)
class Phatgoose(Training):
    """The gate, with the options of its training. A step has samples of one adapter."""

    epochs: Count = 20
    learning_rate: Positive = 2.56
    top_k: Count = 2

    def fit(self, context: Context) -> Vectors:
        """The gate with the vectors of all adapters, trained now if necessary."""
        from lora_retriever.methods.parts.gate_training import MATRICES_FILE, Matrices

        learn = partial(_train_all, context, self.options)
        file = context.learned("phatgoose", vars(self.options), learn) / MATRICES_FILE
        return Vectors(Matrices.load(file), self.top_k)


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Weighs the `top_k` adapters whose vectors are nearest to a token."""

    vectors: Matrices
    top_k: int = 2

    def prepare(self, offered: Offered) -> Tensor:
        """The standardised vectors v̂ [P, d_in]; zeros for an adapter without a vector at this module."""
        return standardised(self.vectors.of(offered))

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        """The softmax [batch, n, P] of v̂ · x̂ / √d_in over the best of the offered adapters."""
        scores = standardised(tokens.x.to(prepared.dtype)) @ prepared.T / prepared.shape[1] ** 0.5  # [batch, n, P]
        return softmax_of_offered(scores, tokens.offered[:, None], self.top_k)


def standardised(values: Tensor) -> Tensor:
    """Values [..., d] with mean 0 and variance 1 over the last dimension. Equal values become 0."""
    from torch.nn.functional import layer_norm

    return layer_norm(values, values.shape[-1:])


def open_share(matrix: Tensor, tokens: Tokens) -> Tensor:
    """σ(v · x) [batch, n, P], the share of an adapter's output in training, for vectors v [P, d_in]."""
    from torch.nn.functional import linear

    return linear(tokens.x.to(matrix.dtype), matrix).sigmoid()


def _train_all(context: Context, options: Training, folder: Path) -> dict[str, Any]:
    """Train the vectors of all adapters, one adapter after the other, and write the vectors to one file."""
    from lora_retriever.methods.parts.gate_training import MATRICES_FILE, Matrices, train

    records, files = {}, []
    for number, name in enumerate(context.names):
        part = folder / f"{number}"
        part.mkdir(exist_ok=True)
        records[name] = train(context, options, "mixture", open_share, part, name)["losses"]
        files.append(part / MATRICES_FILE)
    Matrices.join(files, folder / MATRICES_FILE)
    return {"losses": records}


METHODS = with_ood(
    Method(
        "phatgoose",
        "every token to the 2 adapters whose trained vectors are nearest to it",
        CITATION,
        Everything(),
        gate=Phatgoose(),
        reads=frozenset({"adapters", "pool", "model"}),
        settings=frozenset({"seed"}),
    )
)
