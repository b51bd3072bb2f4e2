"""`Answer`: the answer to one prompt, and how a gate weighed the adapters for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class GateUse:
    """How a gate weighed the adapters of one row.

    Attributes:
        weights: the mean weight of each adapter over the row's tokens (prompt and answer) and over modules.
        entropy: the mean entropy of a token's weights, scaled to sum 1, in nats.
    """

    weights: dict[str, float]
    entropy: float


def mean_use(uses: Sequence[GateUse]) -> GateUse | None:
    """The mean of the uses of a gate in several texts of one row. None: no text was read under a gate."""
    if not uses:
        return None
    names = dict.fromkeys(name for use in uses for name in use.weights)
    weights = {name: fmean(use.weights.get(name, 0.0) for use in uses) for name in names}
    return GateUse({name: round(w, 6) for name, w in weights.items()}, round(fmean(use.entropy for use in uses), 6))


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        text: the answer itself.
        generated_tokens: how many tokens the model made for the answer, the EOS token included.
        gate: how the gate weighed the adapters. None: the composition has no gate.
        likelihoods: the log-likelihood of each option of the row, in nats. The text is then empty: the metric of the
            row chooses an option. None: the row has no options.
    """

    text: str
    generated_tokens: int
    gate: GateUse | None = None
    likelihoods: tuple[float, ...] | None = None


def chosen_option(metric: str, options: Sequence[str], likelihoods: Sequence[float]) -> str:
    """The option that a row's metric, `choice` or `choice_norm`, chooses. Of equal options the first is chosen.

    The rules are those of lm-evaluation-harness: `choice` is its `acc`, and `choice_norm` is its `acc_norm`, which
    divides the log-likelihood of an option by the option's number of characters.

    Args:
        likelihoods: the log-likelihood of each option, in nats.
    """
    lengths = [len(option) if metric == "choice_norm" else 1 for option in options]
    values = [likelihood / length for likelihood, length in zip(likelihoods, lengths, strict=True)]
    return options[values.index(max(values))]
