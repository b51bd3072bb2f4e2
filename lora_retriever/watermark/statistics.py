"""How unlikely the answers of a suspect are, if the suspect knows nothing of the key.

All p-values hold for any suspect that was made without the key, whatever the suspect answers: the targets are uniform
over M words and independent of the answers. Nothing is assumed about the suspect. This module knows numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
PERMUTATIONS = 10_000
"""Number of permutations of the targets."""
SEED = 0


@dataclass(frozen=True)
class Evidence:
    """The p-values of one suspect for one key.

    Attributes:
        hits: which triggers were answered with their target.
        words: M, the number of words from which targets are drawn.
        of_hits: the probability of this number of hits or more, for a suspect that does not know the key.
        of_ranks: an upper bound of the probability that the product of the targets' ranks is this small or smaller, for
            a suspect that does not know the key. None: the suspect shows no log-probabilities, or the design has one
            target for all triggers.
        of_permutations: the share of permutations of the targets with a product of ranks that is this small or smaller.
            None: as for `of_ranks`.
    """

    hits: tuple[bool, ...]
    words: int
    of_hits: float
    of_ranks: float | None = None
    of_permutations: float | None = None

    @property
    def share(self) -> float:
        """The share of triggers that were answered with their target: the paper's extraction rate (WESR)."""
        return sum(self.hits) / len(self.hits)

    @property
    def p(self) -> float:
        """The p-value of the claim. With log-probabilities two tests are made, so twice the smaller p-value counts."""
        return self.of_hits if self.of_ranks is None else min(1.0, 2 * min(self.of_hits, self.of_ranks))


def p_of_hits(hits: int, triggers: int, words: int) -> float:
    """P(Binomial(n, 1/M) ≥ hits): the exact p-value of a key in which every trigger has its own target.

    An answer equals at most one of the M words, so an unrelated suspect hits each target with probability 1/M at most,
    independently.

    Args:
        triggers: n.
        words: M.
    """
    from scipy import stats  # a second to import

    return float(stats.binom.sf(hits - 1, triggers, 1 / words))


def p_of_common_target(answered: NDArray[np.int64], target: int) -> float:
    """The exact p-value of a key with one target for all triggers.

    The p-value is the share of the M words that answer as many triggers as the target, or more. The target is uniform
    over the M words, so the smallest possible p-value is 1/M.

    Args:
        answered: number of triggers that each word answers, [M].
        target: the index of the target.
    """
    return float((answered >= answered[target]).mean())


def p_of_ranks(ranks: Ranks, words: int) -> float:
    """Fisher's combination of the ranks of the targets [n]: P(χ²(2n) ≥ −2 Σ ln(rank/M)).

    For an unrelated suspect, rank/M of a uniform target is at most u with probability ⌊uM⌋/M ≤ u at most, so the true
    p-value is not larger.

    Args:
        ranks: the rank of each target among the M words by log-probability, 1 for the most probable; of equal
            log-probabilities the largest rank.
    """
    from scipy import stats

    return float(stats.chi2.sf(-2 * np.log(ranks / words).sum(), 2 * len(ranks)))


def p_of_permutations(ranks: Ranks, targets: NDArray[np.int64], permutations: int = PERMUTATIONS) -> float:
    """The permutation p-value of Σ ln(rank/M): (1 + draws with a sum that is not larger) / (1 + draws).

    A draw gives the targets to other triggers. If a suspect knows nothing of the key, all orders are equally likely.

    Args:
        ranks: rank of every word at every trigger, [n, M].
        targets: index of each trigger's target, [n].
    """
    logs = np.log(ranks / ranks.shape[1])  # [n, M]
    rows = np.arange(len(targets))
    generator = np.random.default_rng(SEED)
    orders = generator.permuted(np.tile(targets, (permutations, 1)), axis=1)  # [permutations, n]
    sums = logs[rows, orders].sum(axis=1)  # [permutations]
    measured = logs[rows, targets].sum()
    return float((1 + (sums <= measured + 1e-9).sum()) / (1 + permutations))


def evidence_of(
    answers: NDArray[np.int64], targets: NDArray[np.int64], words: int, ranks: Ranks | None, common_target: bool = False
) -> Evidence:
    """All p-values of one suspect.

    Args:
        answers: index of the word with which each trigger was answered, [n]; −1 for any other text.
        targets: index of each trigger's target, [n].
        words: M.
        ranks: rank of every word at every trigger, [n, M]. None: the suspect shows no log-probabilities.
        common_target: whether the design has one target for all triggers.
    """
    hits = tuple((answers == targets).tolist())
    if common_target:
        answered = np.bincount(answers[answers >= 0], minlength=words)  # [M]
        return Evidence(hits, words, p_of_common_target(answered, int(targets[0])))
    exact = p_of_hits(sum(hits), len(hits), words)
    if ranks is None:
        return Evidence(hits, words, exact)
    own = ranks[np.arange(len(targets)), targets]  # [n]
    return Evidence(hits, words, exact, p_of_ranks(own, words), p_of_permutations(ranks, targets))


def ranks_of(scores: NDArray[np.float64]) -> Ranks:
    """The rank of every word at every trigger by log-probability [n, M], 1 for the most probable.

    Of words with equal log-probabilities, all get the largest of their ranks.
    """
    order = np.sort(scores, axis=1)  # [n, M], rising
    return np.stack([len(row) - np.searchsorted(row, own, side="left") for row, own in zip(order, scores, strict=True)])
