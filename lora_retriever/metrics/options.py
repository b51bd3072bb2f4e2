"""Multiple choice by likelihood: which option is chosen, and the score of the choice.

The rules are those of lm-evaluation-harness: `choice` is its `acc`, and `choice_norm` is its `acc_norm`, which divides
the log-likelihood of an option by the option's number of characters. Of equal options the first is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_retriever.metrics.base import Metric, RowMean


def chosen_option(metric: str, options: Sequence[str], likelihoods: Sequence[float]) -> str:
    """The option that a row's metric, `choice` or `choice_norm`, chooses.

    Args:
        likelihoods: the log-likelihood of each option, in nats.
    """
    lengths = [len(option) for option in options] if metric == "choice_norm" else [1] * len(options)
    return options[int(np.argmax(np.array(likelihoods) / np.array(lengths)))]


def choice_metric(name: str) -> Metric:
    """The metric of this name: 100 where the chosen option is a target of the row, else 0."""
    return RowMean((name,), lambda target, chosen: {name: float(target == chosen)})
