"""An index that is changed while it is searched: the quick change, the new fit, and adapters that are hidden."""

from __future__ import annotations

import numpy as np
import pytest

from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.retrieval.scorers import SCORERS, Changeable

DRAW = np.random.default_rng(0)
WORDS = ["red", "blue", "translate", "the", "sentence", "into", "premise", "does", "follow", "answer", "question", "of"]
NAMES = [f"a{number}" for number in range(12)]
CENTRES = DRAW.normal(size=(len(NAMES) + 1, 16))
SAMPLES = [centre + 0.3 * DRAW.normal(size=(6, 16)) for centre in CENTRES]
TEXTS = [
    [f"{WORDS[n % 12]} {WORDS[(n * 5 + i) % 12]} {WORDS[n % 7]} {n}" for i in range(6)] for n in range(len(SAMPLES))
]
QUERIES, ASKED = np.concatenate([samples[:1] for samples in SAMPLES]), [texts[0] + "?" for texts in TEXTS]


def index_of(places: list[int], scorer: str) -> AdapterIndex:
    index = AdapterIndex(scorer)
    for place in places:
        index.add(f"a{place}", SAMPLES[place], TEXTS[place])
    index.prepare()
    return index


def found(index: AdapterIndex, k: int = 12) -> tuple[list[list[str]], np.ndarray]:
    hits = index.search(QUERIES, k, texts=ASKED)
    return hits.names, np.asarray(hits.scores)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", SCORERS)
def test_a_quick_change_finds_what_a_new_index_finds(scorer: str) -> None:
    old = index_of(list(range(12)), scorer)
    before = found(old)
    assert isinstance(SCORERS[scorer].fit(old._pool), Changeable)  # otherwise a change would need a new fit
    grown = old.with_adapter("a12", SAMPLES[12], TEXTS[12])
    shrunk = grown.without_adapter("a0")
    names, scores = found(shrunk)
    new = index_of(list(range(1, 13)), scorer)
    assert [best[0] for best in names[1:]] == [best[0] for best in found(new)[0][1:]]  # a0, the first, is gone
    if scorer in ("mean_ip", "cosine", "nearest"):  # adapters share no part
        np.testing.assert_allclose(scores, found(new)[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found(shrunk.refitted())[1], found(new)[1], rtol=1e-3, atol=1e-4)
    again = found(old)
    assert again[0] == before[0] and (again[1] == before[1]).all()  # the old index is searched meanwhile
    assert shrunk.search(QUERIES, 2, texts=ASKED).probabilities is not None


@pytest.mark.slow
@pytest.mark.parametrize("large", [1, 4096])
def test_hidden_adapters_are_never_found(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_retriever.retrieval.searching.LARGE", large)  # 1: faiss searches
    index = index_of(list(range(12)), "cosine")
    exclude = ["a3", None] * 6 + ["a1"]
    hits = index.hiding({"a1", "a2", "nobody"}).search(QUERIES, 9, exclude, ASKED)
    scores = index.search(QUERIES, 12, texts=ASKED)
    for row, (names, all_names) in enumerate(zip(hits.names, scores.names, strict=True)):
        assert names == [name for name in all_names if name not in ("a1", "a2", exclude[row])][:9]
    with pytest.raises(ValueError, match="k must be 1 to 10"):
        index.hiding({"a1", "a2"}).search(QUERIES, 11, texts=ASKED)
