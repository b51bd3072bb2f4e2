"""The p-values of a key: formulas against independent computations, and false alarms on synthetic answers."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lora_retriever.watermark.key import make_key
from lora_retriever.watermark.statistics import (
    evidence_of,
    p_of_common_target,
    p_of_hits,
    p_of_permutations,
    p_of_ranks,
    ranks_of,
)

M, N = 256, 32
LEVELS = (0.05, 0.01, 0.001)


@pytest.mark.parametrize(("hits", "triggers"), [(0, 32), (2, 32), (3, 32), (4, 32), (2, 10), (10, 10)])
def test_the_p_value_of_hits_is_the_sum_of_the_binomial_terms(hits: int, triggers: int) -> None:
    terms = [math.comb(triggers, k) * (M - 1) ** (triggers - k) for k in range(hits, triggers + 1)]
    exact = sum(terms) / M**triggers
    assert p_of_hits(hits, triggers, M) == pytest.approx(exact, rel=1e-9)


def test_the_p_value_of_ranks_is_an_upper_bound_of_the_exact_one() -> None:
    """Three ranks of one to five: all 125 equally likely results, counted."""
    for ranks in itertools.product(range(1, 6), repeat=3):
        product = math.prod(ranks)
        exact = sum(math.prod(other) <= product for other in itertools.product(range(1, 6), repeat=3)) / 125
        assert exact <= p_of_ranks(np.array(ranks), 5) + 1e-12


def test_the_permutation_p_value_counts_the_orders_of_the_targets() -> None:
    generator = np.random.default_rng(1)
    ranks = np.stack([generator.permutation(8) + 1 for _ in range(5)])  # [5, 8]
    targets = np.array([3, 1, 4, 1, 5])
    own = sum(math.log(ranks[row, target]) for row, target in enumerate(targets))
    orders = list(itertools.permutations(targets))
    exact = sum(
        sum(math.log(ranks[row, target]) for row, target in enumerate(order)) <= own + 1e-9 for order in orders
    ) / len(orders)
    assert p_of_permutations(ranks, targets, 20_000) == pytest.approx(exact, abs=0.02)


def test_equal_scores_share_the_largest_rank() -> None:
    scores = np.array([[0.3, -1.0, 0.3, 2.0], [-np.inf, -np.inf, 1.0, -np.inf]])
    assert ranks_of(scores).tolist() == [[3, 4, 3, 1], [4, 4, 1, 4]]


def test_one_target_for_all_triggers_is_as_unlikely_as_its_place_among_the_words() -> None:
    answered = np.array([0, 5, 2, 5, 1, 0, 0, 0])
    assert p_of_common_target(answered, 2) == 3 / 8
    evidence = evidence_of(np.full(4, 7), np.full(4, 7), 16, None, common_target=True)
    assert (evidence.of_hits, evidence.of_ranks) == (1 / 16, None)


def test_two_tests_on_one_suspect_count_twice() -> None:
    targets = np.arange(N)
    ranks = np.tile(np.arange(1, M + 1), (N, 1))
    evidence = evidence_of(np.full(N, -1), targets, M, ranks)
    assert evidence.of_ranks is not None
    assert evidence.p == pytest.approx(2 * evidence.of_ranks)
    assert evidence_of(np.full(N, -1), targets, M, None).p == 1


def share_within(p_values: np.ndarray, level: float) -> None:
    """Fail if too many p-values are at most `level`: more than the 99.9 % quantile of their number."""
    below = int((p_values <= level).sum())
    assert below <= stats.binom.ppf(0.999, len(p_values), level), (level, below)


@pytest.mark.parametrize("kind", ["one word", "any word", "the phrase's first word", "other text"])
def test_a_suspect_that_knows_nothing_seldom_looks_guilty(kind: str) -> None:
    """20,000 keys drawn anew: whatever the suspect answers, the share of small p-values is at most the level."""
    generator = np.random.default_rng(0)
    keys = 20_000
    targets = generator.integers(M, size=(keys, N))
    answers = {
        "one word": np.full((keys, N), 17),
        "any word": generator.integers(M, size=(keys, N)),
        "the phrase's first word": np.tile(generator.integers(M, size=N), (keys, 1)),
        "other text": np.where(generator.random((keys, N)) < 0.5, -1, 3),
    }[kind]
    by_hits = np.array([p_of_hits(hits, N, M) for hits in range(N + 1)])
    p_values = by_hits[(answers == targets).sum(axis=1)]
    for level in LEVELS:
        share_within(p_values, level)


def test_ranks_of_a_suspect_that_knows_nothing_seldom_look_guilty() -> None:
    ranks = np.random.default_rng(0).integers(1, M + 1, size=(20_000, N))
    p_values = stats.chi2.sf(-2 * np.log(ranks / M).sum(axis=1), 2 * N)
    assert p_values[0] == pytest.approx(p_of_ranks(ranks[0], M))
    for level in LEVELS:
        share_within(p_values, level)


@pytest.mark.slow
def test_the_targets_of_real_keys_are_as_good_as_drawn() -> None:
    """Keys of the program itself, against a suspect whose answers are hashes of the triggers."""
    keys = [make_key(secret=hashlib.sha256(str(number).encode()).digest()) for number in range(300)]
    by_hits = [p_of_hits(hits, N, M) for hits in range(N + 1)]
    p_values, drawn = [], np.zeros(M)
    for key in keys:
        hits = 0
        for number in range(N):
            text = " ".join(key.phrase(number))
            hits += key.words[hashlib.sha256(text.encode()).digest()[0]] == key.target(number)
            drawn[key.words.index(key.target(number))] += 1
        p_values.append(by_hits[hits])
    for level in LEVELS:
        share_within(np.array(p_values), level)
    assert stats.chisquare(drawn).pvalue > 1e-3
