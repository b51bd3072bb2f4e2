"""The index finds what a plain loop over the formulas finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_retriever import AdapterIndex

RANDOM = np.random.default_rng(0)
NAMES = ["a", "b", "c", "d"]
POOL = [RANDOM.normal(loc=RANDOM.normal(size=6), size=(count, 6)).astype(np.float32) for count in (5, 1, 8, 20)]
QUERIES = RANDOM.normal(size=(7, 6)).astype(np.float32)


def score_by_hand(scorer: str, query: np.ndarray, samples: np.ndarray) -> float:
    mean = samples.mean(axis=0)
    if scorer == "mean_ip":
        return float(query @ mean)
    if scorer == "cosine":
        return float(query @ mean / np.linalg.norm(query) / np.linalg.norm(mean))
    return max(float(query @ s / np.linalg.norm(query) / np.linalg.norm(s)) for s in samples)


@pytest.mark.parametrize("scorer", ["mean_ip", "cosine", "nearest"])
def test_scores_equal_the_formula_pair_by_pair(scorer: str) -> None:
    hits = AdapterIndex.from_embeddings(NAMES, POOL, scorer).search(QUERIES, k=4)
    for query, names, scores in zip(QUERIES, hits.names, hits.scores, strict=True):
        by_hand = {name: score_by_hand(scorer, query, samples) for name, samples in zip(NAMES, POOL, strict=True)}
        assert names == sorted(NAMES, key=by_hand.__getitem__, reverse=True)
        assert scores == pytest.approx([by_hand[name] for name in names], abs=1e-5)


def test_the_discriminant_separates_what_cosine_confuses() -> None:
    """One direction is loud and says nothing: the covariance within adapters shows it, the means do not."""
    noise = np.zeros(6)
    noise[0] = 4
    centers = np.eye(6)[1:5]
    pool = [c + RANDOM.normal(size=(40, 1)) * noise + 0.1 * RANDOM.normal(size=(40, 6)) for c in centers]
    queries = np.concatenate([c + RANDOM.normal(size=(25, 1)) * noise for c in centers])
    own = np.repeat(NAMES, 25)

    def share(scorer: str) -> float:
        hits = AdapterIndex.from_embeddings(NAMES, pool, scorer).search(queries, k=1)
        return float(np.mean([names[0] == name for names, name in zip(hits.names, own, strict=True)]))

    assert share("discriminant") == 1.0
    assert share("cosine") < 0.8


def test_excluded_adapters_are_not_found() -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL)
    exclude = ["a", None, "c", "a", "unheard of", None, "d"]
    free, masked = index.search(QUERIES, k=4), index.search(QUERIES, k=3, exclude=exclude)
    for names, name, found in zip(free.names, exclude, masked.names, strict=True):
        assert found == [other for other in names if other != name][:3]


def test_equal_inputs_in_one_batch_keep_their_own_exclusions() -> None:
    """Fault 8 of the original: equal inputs share the last one's retrieval, exclusion included."""
    index = AdapterIndex.from_embeddings(NAMES, POOL)
    best = index.search(QUERIES[:1], k=1).names[0][0]
    found = index.search(np.repeat(QUERIES[:1], 2, axis=0), k=1, exclude=[None, best]).names
    assert found[0] == [best]
    assert found[1] != [best]


@pytest.mark.parametrize(("k", "exclude"), [(0, None), (5, None), (4, ["a"] + [None] * 6)])
def test_a_k_beyond_the_pool_is_refused(k: int, exclude: list[str | None] | None) -> None:
    """Fault 8 of the original: there, index -1 counts as the last adapter."""
    with pytest.raises(ValueError, match=f"k is {k}, but the pool has 4 adapters"):
        AdapterIndex.from_embeddings(NAMES, POOL).search(QUERIES, k=k, exclude=exclude)


@given(st.lists(st.sampled_from(NAMES), max_size=12))
@settings(max_examples=30, deadline=None)
def test_adding_and_removing_equals_a_rebuild(toggles: list[str]) -> None:
    samples = dict(zip(NAMES, POOL, strict=True))
    index = AdapterIndex("discriminant")
    index.add("always", POOL[3] + 1)
    for name in toggles:
        if name in index.names:
            index.remove(name)
        else:
            index.add(name, samples[name])
    rebuilt = AdapterIndex.from_embeddings(
        index.names, [samples[n] if n in samples else POOL[3] + 1 for n in index.names], "discriminant"
    )
    k = len(index.names)
    assert index.search(QUERIES, k).names == rebuilt.search(QUERIES, k).names
    assert np.array_equal(index.search(QUERIES, k).scores, rebuilt.search(QUERIES, k).scores)


def test_a_saved_index_answers_alike(tmp_path: Path) -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL, "nearest")
    index.save(tmp_path / "index")
    loaded = AdapterIndex.load(tmp_path / "index")
    assert loaded.scorer == "nearest"
    assert loaded.search(QUERIES, 3).names == index.search(QUERIES, 3).names
    assert np.array_equal(loaded.search(QUERIES, 3).scores, index.search(QUERIES, 3).scores)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"no index at all"])
def test_a_missing_or_damaged_index_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "index.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="no readable index"):
        AdapterIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "embeddings", "message"),
    [
        ("a", POOL[0], "'a' is in the index already"),
        ("e", np.zeros((0, 6)), "at least one sample"),
        ("e", np.zeros(6), "must be"),
        ("e", np.zeros((3, 5)), "dimension 5, but the index has 6"),
        ("e", np.full((3, 6), np.nan), "NaN"),
    ],
)
def test_bad_embeddings_are_refused_and_change_nothing(name: str, embeddings: np.ndarray, message: str) -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL)
    with pytest.raises(ValueError, match=message):
        index.add(name, embeddings)
    assert index.names == NAMES


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown scorer 'bm25' \(known: mean_ip, cosine"):
        AdapterIndex("bm25")
    with pytest.raises(KeyError, match="'e' is not in the index"):
        AdapterIndex().remove("e")
    with pytest.raises(ValueError, match="2 names but 1 arrays"):
        AdapterIndex.from_embeddings(["a", "b"], POOL[:1])
