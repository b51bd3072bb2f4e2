"""Scorers against plain computations: dense matrices, and a new fit for every sample that is left out."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_retriever import AdapterIndex
from lora_retriever.retrieval.pool import AdapterPool
from lora_retriever.retrieval.scorers import SCORERS, HeldOut, Samples
from lora_retriever.retrieval.scorers import texts as texts_scorers
from lora_retriever.retrieval.scorers.base import HELD_OUT, spared, unit
from lora_retriever.retrieval.scorers.discriminant import SHRINKAGES, WITHOUT_SAMPLES, Statistics, leave_out
from lora_retriever.retrieval.scorers.neighbours import NEIGHBOURS, best_means
from lora_retriever.retrieval.scorers.texts import shape, texts_alone

Vectors = NDArray[np.float64]
RANDOM = np.random.default_rng(0)
NAMES = ["dart", "rte", "sst2"]
TEXTS = [
    ["Write a text: (Ostia, country, Velan)", "Write a text: (Mara, age, 31)", "Write a text: (Toll, size, big)"],
    [
        "The sea is calm. Does it follow that the sea is wild? yes or no",
        "Ann ran. Does it follow that Ann ran? yes or no",
    ],
    ["what a dull film .", "a joy to watch !", "dull , dull , dull", "I loved it ."],
]
POOL = [RANDOM.normal(loc=RANDOM.normal(size=5), size=(len(texts), 5)).astype(np.float32) for texts in TEXTS]
QUERIES = RANDOM.normal(size=(4, 5)).astype(np.float32)
QUERY_TEXTS = [
    "Write a text: (Bo, age, 7)",
    "Bo ate. Does it follow that Bo is full?",
    "a dull joy .",
    "write a text: zzz",
]


def pool_of(arrays: list[NDArray[np.float32]], texts: list[list[str]] | None = None) -> AdapterPool:
    pool = AdapterPool()
    for number, array in enumerate(arrays):
        pool.add(str(number), Samples(array, None if texts is None else tuple(texts[number])))
    return pool


def discriminant_by_hand(pool: list[Vectors], query: Vectors, shrinkage: float, level: float | None = None) -> Vectors:
    """x'C⁻¹μ − ½ μ'C⁻¹μ of every adapter, by dense matrices and a loop over samples."""
    means = [samples.mean(axis=0) for samples in pool]
    within = np.zeros((len(query), len(query)))
    for samples, mean in zip(pool, means, strict=True):
        for sample in samples:
            within += np.outer(sample - mean, sample - mean)
    within /= sum(map(len, pool))
    level = np.trace(within) / len(query) if level is None else level
    inverse = np.linalg.inv((1 - shrinkage) * within + shrinkage * level * np.eye(len(query)))
    return np.array([query @ inverse @ mean - mean @ inverse @ mean / 2 for mean in means])


def test_the_discriminant_equals_its_formula() -> None:
    pool = pool_of(POOL)
    fitted = SCORERS["discriminant"].fit(pool)
    exact = [samples.astype(np.float64) for samples in POOL]
    expected = [discriminant_by_hand(exact, q, fitted.constants["shrinkage"]) for q in QUERIES.astype(np.float64)]
    assert fitted.score(Samples(QUERIES)) == pytest.approx(np.array(expected), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("constants", "shrinkage"), [({}, 0.1), ({"shrinkage": 0.4}, 0.4)])
def test_the_discriminant_of_means_alone_has_the_stated_shrinkage(
    constants: dict[str, float], shrinkage: float
) -> None:
    known, exact = pool_of(POOL), [samples.astype(np.float64) for samples in POOL]
    pool = AdapterPool.of_means(NAMES, known.means, known.counts, known.scatter)
    pool.constants = constants
    expected = [discriminant_by_hand(exact, query, shrinkage) for query in QUERIES.astype(np.float64)]
    assert SCORERS["discriminant"].fit(pool).score(Samples(QUERIES)) == pytest.approx(np.array(expected), rel=1e-3)


@pytest.mark.parametrize("shrinkage", [0.05, 0.3, 0.9])
def test_samples_left_out_in_one_formula_equal_a_refit_for_each(shrinkage: float) -> None:
    pool, exact = pool_of(POOL), [samples.astype(np.float64) for samples in POOL]
    own, places = spared(pool.counts)
    samples = np.concatenate(exact)[places]
    level = float(np.trace(pool.scatter)) / len(samples) / 5
    statistics = Statistics(np.stack([array.mean(axis=0) for array in exact]), pool.counts, pool.scatter)
    found = dict(leave_out(statistics, samples, own))[shrinkage]
    row = 0
    for adapter, array in enumerate(exact):
        for place in range(len(array)):
            refit = [np.delete(other, place, axis=0) if o == adapter else other for o, other in enumerate(exact)]
            expected = discriminant_by_hand(refit, array[place], shrinkage, level)
            assert found.scores[row] == pytest.approx(expected, rel=1e-6, abs=1e-8)
            row += 1


@pytest.mark.parametrize("scorer", ["mean_ip", "cosine", "nearest", "knn"])
def test_held_out_scores_equal_an_index_without_the_sample(scorer: str) -> None:
    fitted = SCORERS[scorer].fit(pool_of(POOL))
    held_out, row = fitted.held_out(), 0
    assert held_out is not None
    for adapter, array in enumerate(POOL):
        for place in range(len(array)):
            others = [np.delete(other, place, axis=0) if o == adapter else other for o, other in enumerate(POOL)]
            refit = SCORERS[scorer].fit(pool_of(others))
            if scorer == "knn":
                refit = type(fitted)(refit.samples, refit.counts, fitted.k)  # type: ignore[attr-defined,call-arg]
            assert held_out.own[row] == adapter
            assert held_out.scores[row] == pytest.approx(refit.score(Samples(array[place : place + 1]))[0], abs=1e-5)
            row += 1


def test_knn_is_the_mean_of_the_nearest() -> None:
    fitted = SCORERS["knn"].fit(pool_of(POOL))
    k = int(fitted.constants["neighbours"])
    for query, scores in zip(QUERIES, fitted.score(Samples(QUERIES)), strict=True):
        for samples, score in zip(POOL, scores, strict=True):
            cosines = sorted(
                (float(query @ s / np.linalg.norm(query) / np.linalg.norm(s)) for s in samples), reverse=True
            )
            assert score == pytest.approx(np.mean(cosines[:k]), abs=1e-5)


@pytest.mark.slow
def test_the_number_of_neighbours_is_the_one_that_finds_most_held_out_samples() -> None:
    """By a loop over samples. The samples are noisy, so a single neighbour says little about the adapter."""
    generator = np.random.default_rng(11)
    pool = [(center + 1.5 * generator.normal(size=(14, 6))).astype(np.float32) for center in np.eye(6)[:4]]
    units = [[sample / np.linalg.norm(sample) for sample in array] for array in pool]
    hits = dict.fromkeys(NEIGHBOURS, 0)
    for k in NEIGHBOURS:
        for adapter, array in enumerate(units):
            for left_out, query in enumerate(array):
                scores = []
                for other, samples in enumerate(units):
                    cosines = [float(query @ s) for at, s in enumerate(samples) if (other, at) != (adapter, left_out)]
                    best = sorted(cosines, reverse=True)[:k]
                    scores.append(sum(best) / len(best))
                hits[k] += scores.index(max(scores)) == adapter
    most = max(hits.values())
    assert hits[1] < most, "the data must not be right by the first of the numbers"
    assert SCORERS["knn"].fit(pool_of(pool)).constants["neighbours"] == next(k for k in NEIGHBOURS if hits[k] == most)


def test_of_numbers_of_neighbours_that_find_as_much_the_smallest_counts() -> None:
    generator = np.random.default_rng(12)
    pool = [(10 * center + generator.normal(size=(8, 6))).astype(np.float32) for center in np.eye(6)[:3]]
    assert SCORERS["knn"].fit(pool_of(pool)).constants == {"neighbours": 1}


def test_scorers_of_texts_need_samples() -> None:
    assert {name for name, scorer in SCORERS.items() if scorer.needs_texts} == {"lexical", "hybrid", "joint"}
    needing = {name for name, scorer in SCORERS.items() if scorer.needs_samples}
    assert needing == {"nearest", "knn", "lexical", "hybrid", "joint"}


@pytest.mark.slow
def test_joint_adds_the_standardised_scores_of_cosine_and_hybrid() -> None:
    pool, queries = pool_of(POOL, TEXTS), Samples(QUERIES, tuple(QUERY_TEXTS))
    fitted = SCORERS["joint"].fit(pool)
    expected, held_out = 0, 0
    for name in ("cosine", "hybrid"):
        part = SCORERS[name].fit(pool)
        found = part.held_out()
        assert found is not None
        expected = expected + np.array([(row - np.mean(row)) / np.std(row) for row in part.score(queries)])
        held_out = held_out + np.array([(row - np.mean(row)) / np.std(row) for row in found.scores])
    assert fitted.score(queries) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    left_out = fitted.held_out()
    assert left_out is not None
    assert left_out.scores == pytest.approx(held_out, rel=1e-4, abs=1e-4)
    assert SCORERS["joint"].fit(pool_of([samples[:1] for samples in POOL], [t[:1] for t in TEXTS])).held_out() is None


@pytest.mark.parametrize("scorer", ["mean_ip", "cosine", "discriminant"])
def test_a_pool_without_samples_has_none_to_leave_out(scorer: str) -> None:
    known = pool_of(POOL)
    pool = AdapterPool.of_means(NAMES, known.means, known.counts, known.scatter)
    assert SCORERS[scorer].fit(pool).held_out() is None


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_the_highest_similarities_are_averaged_and_unknown_ones_left_out(k: int) -> None:
    similarities = RANDOM.normal(size=(3, 8))
    similarities[[0, 1, 1], [2, 4, 6]] = np.nan
    (found,) = best_means(similarities, np.array([1, 3, 4]), [k])
    for row, values in enumerate(similarities):
        for adapter, part in enumerate((values[:1], values[1:4], values[4:])):
            highest = sorted((value for value in part if not math.isnan(value)), reverse=True)[:k]
            assert found[row, adapter] == pytest.approx(sum(highest) / len(highest))


def test_a_pool_of_single_samples_leaves_none_out() -> None:
    pool = pool_of([samples[:1] for samples in POOL])
    assert SCORERS["nearest"].fit(pool).held_out() is None
    assert SCORERS["knn"].fit(pool).held_out() is None
    assert SCORERS["knn"].fit(pool).constants == {"neighbours": NEIGHBOURS[0]}
    assert SCORERS["discriminant"].fit(pool).constants == {"shrinkage": WITHOUT_SAMPLES}


def test_without_samples_the_discriminant_has_the_shrinkage_that_was_recorded() -> None:
    pool = pool_of(POOL)
    for constants, shrinkage in (({}, WITHOUT_SAMPLES), ({"shrinkage": 0.3}, 0.3)):
        known = SimpleNamespace(
            means=pool.means, counts=pool.counts, scatter=pool.scatter, has_samples=False, constants=constants
        )
        assert SCORERS["discriminant"].fit(known).constants == {"shrinkage": shrinkage}  # type: ignore[arg-type]


def test_vectors_are_divided_by_their_length_and_zeros_stay() -> None:
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])).tolist() == [[0.6, 0.8], [0, 0], [0, 1]]
    assert unit(np.array([3.0, 4.0])).tolist() == [0.6, 0.8]


@pytest.mark.parametrize("scorer", ["lexical", "hybrid"])
def test_scores_do_not_depend_on_the_size_of_blocks(scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = Samples(QUERIES, tuple(QUERY_TEXTS))
    expected = SCORERS[scorer].fit(pool_of(POOL, TEXTS)).score(queries)
    monkeypatch.setattr(texts_scorers, "BLOCK", 2)
    assert SCORERS[scorer].fit(pool_of(POOL, TEXTS)).score(queries) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_space_of_a_large_pool_is_spanned_by_some_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are taken at even distances, and contain the first and the last."""
    monkeypatch.setattr(texts_scorers, "LANDMARKS", 4)
    fitted = texts_scorers.lexical(pool_of(POOL, TEXTS))
    every = [text for texts in TEXTS for text in texts]
    for view, landmarks in fitted.space.views:
        chosen = view.vectors(Samples(np.zeros((4, 1)), tuple(every[place] for place in (0, 2, 5, 8))))
        assert landmarks.toarray() == pytest.approx(chosen.toarray(), rel=1e-12)


def tf_idf(
    texts: list[str], fitted_on: list[str], grams: dict[str, Counter[str]], min_df: int
) -> list[dict[str, float]]:
    """Unit vectors (1 + ln tf) (1 + ln((1 + n)/(1 + df))) as dictionaries, from the formula."""
    df = Counter(gram for text in fitted_on for gram in grams[text])
    vectors = []
    for text in texts:
        weights = {
            gram: (1 + math.log(count)) * (1 + math.log((1 + len(fitted_on)) / (1 + df[gram])))
            for gram, count in grams[text].items()
            if df[gram] >= min_df
        }
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        vectors.append({gram: weight / length for gram, weight in weights.items()})
    return vectors


def grams_of(tokens: list[str], low: int, high: int) -> Counter[str]:
    return Counter(" ".join(tokens[i : i + n]) for n in range(low, high + 1) for i in range(len(tokens) - n + 1))


def tokens_of(text: str) -> list[str]:
    tokens, word = [], ""
    for character in text + " ":
        if character.isalnum() or character == "_":
            word += character
            continue
        tokens += [word] if word else []
        tokens += [character] if not character.isspace() else []
        word = ""
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2, 1024])
def test_hybrid_is_the_discriminant_on_all_views_side_by_side(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Explicit vectors of words, phrases, form and meaning, each of length ½, then dense matrices."""
    monkeypatch.setattr("lora_retriever.retrieval.scorers.texts.BLOCK", block)
    every = [text for texts in TEXTS for text in texts]
    asked = [*every, *QUERY_TEXTS]
    words = {text: grams_of(tokens_of(text.lower()), 1, 3) for text in asked}
    phrases = {text: grams_of(tokens_of(text), 2, 6) for text in asked}
    forms = {
        text: Counter(shape(text)[i : i + n] for n in range(2, 6) for i in range(len(shape(text)) - n + 1))
        for text in asked
    }
    views = [tf_idf(asked, every, grams, rarest) for grams, rarest in ((words, 1), (phrases, 2), (forms, 1))]
    columns = [sorted({gram for vector in view for gram in vector}) for view in views]
    dense = [
        np.array([[v.get(gram, 0.0) for gram in names] for v in view])
        for view, names in zip(views, columns, strict=True)
    ]
    embeddings = np.concatenate([*POOL, QUERIES]).astype(np.float64)
    dense.append(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    joined = np.concatenate(dense, axis=1) / 2  # [texts, features]: four views, so squares of ¼
    pool = np.split(joined[: len(every)], np.cumsum([len(texts) for texts in TEXTS])[:-1])
    index = AdapterIndex.from_embeddings(NAMES, POOL, "hybrid", TEXTS)
    hits = index.search(QUERIES, 3, texts=QUERY_TEXTS)
    shrinkage = index._fitted().fitted.constants["shrinkage"]
    # The level is taken per dimension of the space that the samples span.
    span = np.linalg.matrix_rank(joined[: len(every)])
    deviations = sum(float(((samples - samples.mean(axis=0)) ** 2).sum()) for samples in pool)
    for row, query in enumerate(joined[len(every) :]):
        scores = discriminant_by_hand(pool, query, shrinkage, deviations / len(every) / span)
        expected = dict(zip(NAMES, scores, strict=True))
        found = dict(zip(hits.names[row], hits.scores[row], strict=True))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", SCORERS)
def test_no_query_can_influence_another_or_a_constant(scorer: str) -> None:
    """Constants are chosen on the pool alone. Constants and scores do not depend on other queries."""
    index = AdapterIndex.from_embeddings(NAMES, POOL, scorer, TEXTS)
    together = index.search(QUERIES, 3, texts=QUERY_TEXTS)
    temperature, constants = index.temperature, dict(index._fitted().fitted.constants)
    for row in reversed(range(4)):
        fresh = AdapterIndex.from_embeddings(NAMES, POOL, scorer, TEXTS)
        alone = fresh.search(QUERIES[row : row + 1], 3, texts=QUERY_TEXTS[row : row + 1])
        assert alone.names[0] == together.names[row]
        assert alone.scores[0] == pytest.approx(together.scores[row], rel=1e-5, abs=1e-5)
        assert fresh.temperature == temperature
        assert fresh._fitted().fitted.constants == constants


def test_shape_keeps_the_form_and_drops_the_words() -> None:
    assert shape("Étude No 12: (Ostia, 3.5)\n- yes") == "aa Aa 0: (Aa, 0.0)\n- a".replace("aa", "a", 1)
    assert len(texts_alone()) == 3


def test_of_a_large_pool_a_bounded_number_is_left_out_and_single_samples_never() -> None:
    own, places = spared(np.array([1, 3, 5000]))
    assert len(places) == HELD_OUT
    assert 0 not in own
    assert places[0] == 1
    assert places[-1] == 5003
    assert len(spared(np.full(3000, 2))[0]) == 1333  # four million scores of 3000 adapters
    assert len(spared(np.full(60_000, 2))[0]) == 100


@pytest.mark.parametrize(("scores", "left_out"), [(5000, 500), (500, 100), (10**9, 2000)])
def test_the_number_of_held_out_scores_is_bounded(monkeypatch: pytest.MonkeyPatch, scores: int, left_out: int) -> None:
    """The number is the maximum number of scores divided by the 10 adapters, but at least 100 and at most 2,000."""
    monkeypatch.setattr("lora_retriever.retrieval.scorers.base.HELD_OUT_SCORES", scores)
    own, positions = spared(np.full(10, 300))
    assert len(own) == len(positions) == left_out
    assert (own == positions // 300).all()
    assert len(set(positions.tolist())) == left_out


def test_all_samples_are_left_out_while_there_are_few() -> None:
    own, positions = spared(np.array([2, 1, 3]))
    assert own.tolist() == [0, 0, 2, 2, 2]
    assert positions.tolist() == [0, 1, 3, 4, 5]
    for samples in (HELD_OUT - 1, HELD_OUT):
        assert spared(np.array([samples]))[1].tolist() == list(range(samples))


def test_the_shrinkage_is_the_one_that_finds_most_held_out_samples() -> None:
    pool = pool_of(POOL)
    own, places = spared(pool.counts)
    statistics = Statistics(pool.means.astype(np.float64), pool.counts, pool.scatter)
    found: dict[float, HeldOut] = dict(leave_out(statistics, np.concatenate(POOL).astype(np.float64)[places], own))
    hits = [int((found[s].scores.argmax(axis=1) == own).sum()) for s in SHRINKAGES]
    assert SCORERS["discriminant"].fit(pool).constants["shrinkage"] == SHRINKAGES[int(np.argmax(hits))]


# The pool's statistics


def scatter_by_hand(arrays: list[NDArray[np.float32]]) -> Vectors:
    """Σ (x − μ)(x − μ)', by a loop over samples."""
    total = np.zeros((arrays[0].shape[1],) * 2)
    for array in arrays:
        mean = array.astype(np.float64).mean(axis=0)
        for sample in array.astype(np.float64):
            total += np.outer(sample - mean, sample - mean)
    return total


@pytest.mark.parametrize("together", [1, 2, 3, 256])
def test_the_scatter_is_the_sum_over_all_samples(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr("lora_retriever.retrieval.pool.TOGETHER", together)
    assert pool_of(POOL).scatter == pytest.approx(scatter_by_hand(POOL), rel=1e-12)


def test_means_and_scatter_follow_every_change() -> None:
    pool = pool_of(POOL[:2])
    for change in ("read", "add", "remove"):
        if change == "add":
            pool.add("2", Samples(POOL[2]))
        elif change == "remove":
            pool.remove("0")
        arrays = {"read": POOL[:2], "add": POOL, "remove": POOL[1:]}[change]
        assert pool.scatter == pytest.approx(scatter_by_hand(arrays), rel=1e-9)
        assert pool.means == pytest.approx(np.stack([array.mean(axis=0) for array in arrays]))
        assert pool.counts.tolist() == [len(array) for array in arrays]


def test_an_emptied_pool_has_no_memory() -> None:
    pool = pool_of(POOL[:1])
    assert pool.scatter.shape == (5, 5)
    pool.remove("0")
    wide = RANDOM.normal(size=(4, 7)).astype(np.float32)
    pool.add("wide", Samples(wide))
    assert pool.scatter == pytest.approx(scatter_by_hand([wide]))
    assert pool.means.shape == (1, 7)


def test_a_copy_of_a_pool_changes_alone() -> None:
    pool = pool_of(POOL)
    scatter = pool.scatter.copy()
    copy = pool.copy()
    copy.remove("0")
    copy.add("new", Samples(POOL[0] * 2))
    assert pool.names == ["0", "1", "2"]
    assert np.array_equal(pool.scatter, scatter)
    assert copy.names == ["1", "2", "new"]


def test_a_private_pool_forgets_its_constants_with_its_last_private_adapter() -> None:
    known = pool_of(POOL)
    pool = AdapterPool.of_means(["a", "b"], known.means[:2], known.counts[:2], known.scatter)
    pool.constants = {"shrinkage": 0.3}
    pool.add("c", Samples(POOL[2]))
    pool.remove("a")
    assert pool.constants == {"shrinkage": 0.3}
    assert pool.scatter == pytest.approx(known.scatter + scatter_by_hand(POOL[2:]))
    pool.remove("b")
    assert pool.constants == {}
    assert pool.scatter == pytest.approx(scatter_by_hand(POOL[2:]))


def test_a_vector_of_zeros_stays_and_others_get_length_1(recwarn: pytest.WarningsRecorder) -> None:
    assert unit(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(np.array([[0, 0], [0.6, 0.8]]))
    assert not recwarn.list
