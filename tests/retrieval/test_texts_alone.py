"""Indexes of texts: with an encoder that the index keeps, or without embeddings where the scorer reads texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import TINY

import lora_retriever
from lora_retriever import AdapterIndex, Scorer
from lora_retriever.data.rows import PoolEntry
from lora_retriever.errors import UserError
from lora_retriever.retrieval.scorers import Linear, Pool, unit

POOL = {
    "french": ["translate the cat to french", "what is dog in french?", "say tea in french"],
    "sum": ["add 3 and 4", "what is 2 + 9?", "7 plus 8 is"],
    "mood": ["is this review good? great film", "is this review good? what a bore", "is this review good? fine"],
}
ASKED = ["translate the bird to french", "add 5 and 6", "is this review good? sad"]


class Letters:
    """An encoder that counts letters, and notes the texts that it was given."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def encode(self, texts: Sequence[str]) -> Any:
        self.given += texts
        return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


@pytest.mark.slow
def test_an_index_without_embeddings_finds_what_one_with_embeddings_finds() -> None:
    texts = list(POOL.values())
    described = AdapterIndex.from_embeddings(list(POOL), [Letters().encode(each) for each in texts], "lexical", texts)
    expected = described.search(Letters().encode(ASKED), 2, ["sum", None, None], ASKED)
    encoder = Letters()
    for index in (AdapterIndex.from_texts(POOL, scorer="lexical"), AdapterIndex.from_texts(POOL, encoder, "lexical")):
        hits = index.search_texts(ASKED, 2, ["sum", None, None])
        assert hits.names == expected.names == index.search(None, 2, ["sum", None, None], ASKED).names
        assert hits.scores == pytest.approx(expected.scores)
        assert [names[0] for names in index.search_texts(ASKED, 1).names] == ["french", "sum", "mood"]
    assert encoder.given == [], "an encoder that is not needed is not asked"


def test_an_index_without_embeddings_is_saved_read_and_changed(tmp_path: Path) -> None:
    index = AdapterIndex.from_texts(POOL, scorer="lexical")
    index.save(tmp_path)
    loaded = AdapterIndex.load(tmp_path)
    assert loaded.search_texts(ASKED, 3).scores == pytest.approx(index.search_texts(ASKED, 3).scores)
    loaded.remove("sum")
    loaded.add("more", None, ["what is 2 + 9?", "7 plus 8 is"])
    assert loaded.search_texts(["7 plus 9 is"], 1).names == [["more"]]
    assert not loaded.has_embeddings


@pytest.mark.slow
def test_hybrid_searches_texts_as_it_searches_embeddings_with_texts(tiny_pool: list[PoolEntry], tmp_path: Path) -> None:
    pool, asked = tiny_pool[:4], [entry.sample[0].inputs + " now" for entry in tiny_pool[:4]]
    encoder = lora_retriever.load_encoder(str(TINY / "encoder"))
    index = AdapterIndex.from_texts(lora_retriever.read_pool(str(TINY / "pool.json")), encoder)
    assert (index.scorer, index.names[:4]) == ("hybrid", [entry.model_name for entry in pool])
    hits = index.search_texts(asked, 3)
    again = index.search(encoder.encode(asked), 3, texts=asked)
    assert hits.names == again.names
    assert hits.scores == pytest.approx(again.scores)
    assert [names[0] for names in hits.names] == index.names[:4]
    index.save(tmp_path)
    assert AdapterIndex.load(tmp_path, encoder).search_texts(asked, 3).names == hits.names
    with pytest.raises(ValueError, match="scorer hybrid reads embeddings, and the index has no encoder; give one"):
        AdapterIndex.load(tmp_path).search_texts(asked, 3)


class Bad:
    """An encoder that gives a value of the test."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def encode(self, texts: Sequence[str]) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"the encoder gives .*"),
        ([["a"]], "the encoder gives list, and not rows of numbers"),
        (np.ones(9), r"the encoder gives shape \(9,\) for 9 texts, and not \[texts, dim\]"),
        (np.ones((8, 2)), r"the encoder gives shape \(8, 2\) for 9 texts"),
        (np.ones((9, 0)), r"the encoder gives shape \(9, 0\) for 9 texts"),
        (np.full((9, 2), np.nan), "the encoder gives NaN or infinite values"),
    ],
)
def test_an_encoder_that_gives_no_embeddings_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterIndex.from_texts(POOL, Bad(value), "cosine")


def test_what_an_index_lacks_is_named() -> None:
    texts = AdapterIndex.from_texts(POOL, scorer="lexical")
    with pytest.raises(ValueError, match="scorer cosine reads embeddings, which this index does not have"):
        texts.rescored("cosine")
    with pytest.raises(ValueError, match="the index has no embeddings: its scorer reads texts alone"):
        texts.similarity()
    with pytest.raises(ValueError, match="scorer hybrid reads embeddings, and the index has no encoder; give one"):
        AdapterIndex.from_texts(POOL)
    with pytest.raises(ValueError, match="adapter 'a': scorer cosine reads the samples' embeddings; give them as well"):
        AdapterIndex().add("a", None, ["one"])
    with pytest.raises(ValueError, match="scorer cosine reads the queries' embeddings; give them as well"):
        AdapterIndex.from_texts(POOL, Letters(), "cosine").search(None, 1, texts=ASKED)
    with pytest.raises(ValueError, match="adapter 'a': give a list of texts, not one text"):
        AdapterIndex.from_texts({"a": "one text"}, scorer="lexical")
    with pytest.raises(ValueError, match="adapter 'a': embeddings must be"):
        AdapterIndex.from_texts({"a": []}, scorer="lexical")
    assert AdapterIndex.from_texts({}, scorer="lexical").names == []
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        lora_retriever.load_encoder("./nowhere")


# Scorers of one's own


def first(pool: Pool) -> Linear:
    return Linear(unit(np.stack([samples.embeddings[0] for samples in pool.samples])), unit_queries=True)


FIRST = Scorer("first", first, needs_samples=True, weights="cosine")


def test_an_index_takes_a_scorer_of_one_s_own(tmp_path: Path) -> None:
    index = AdapterIndex.from_texts(POOL, Letters(), FIRST)
    hits = index.search_texts(ASKED, 3)
    for row, text in enumerate(ASKED):
        query = Letters().encode([text])[0]
        for name, score in zip(hits.names[row], hits.scores[row], strict=True):
            sample = Letters().encode(POOL[name][:1])[0]
            cosine = query @ sample / np.sqrt((query @ query) * (sample @ sample))
            assert score == pytest.approx(cosine, rel=1e-5)
    assert (index.scorer, index.weight_unit, hits.probabilities) == ("first", 1.0, None)
    index.save(tmp_path)
    assert AdapterIndex.load(tmp_path, Letters(), FIRST).search_texts(ASKED, 3).names == hits.names
    with pytest.raises(ValueError, match="unknown scorer 'first'"):
        AdapterIndex.load(tmp_path)
    with pytest.raises(ValueError, match="its scorer is 'first', not 'cosine'"):
        AdapterIndex.load(tmp_path, scorer="cosine")
    with pytest.raises(ValueError, match="scorer first needs the samples, which a private index does not keep"):
        index.save(tmp_path, private=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cosine"}, "scorer 'cosine': the project has a scorer of this name; name yours otherwise"),
        ({"fit": None}, "a scorer has a name and a function that fits it, not 'first' and None"),
        ({"weights": "scores"}, r"scorer first: weights is 'scores' \(known: cosine, probability\)"),
        ({"needs_embeddings": False}, "scorer first: it reads neither texts nor embeddings"),
    ],
)
def test_a_wrong_scorer_is_refused_by_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterIndex(Scorer(**{"name": "first", "fit": first, **fields}))
