"""The index finds the same adapters as a plain loop over the formulas."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from lora_retriever import AdapterIndex
from lora_retriever.retrieval.index import INDEX_FILE
from lora_retriever.retrieval.scorers import SCORERS

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
    """One direction has large noise and no information. The covariance within adapters shows this; the means do not."""
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
    """Fault 8 of the original: equal inputs share the hits and the mask of the last of these inputs."""
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


TEXTS = [
    [f"Is {name}{place} like {name * 2}? no. {place}" for place in range(len(samples))]
    for name, samples in zip(NAMES, POOL, strict=True)
]
QUERY_TEXTS = [f"Is a{place} like bb?" for place in range(len(QUERIES))]


@pytest.mark.long
@pytest.mark.parametrize("scorer", SCORERS)
@given(st.lists(st.sampled_from(NAMES), max_size=12))
@settings(max_examples=15, deadline=None)
def test_adding_and_removing_in_any_order_equals_a_rebuild(scorer: str, toggles: list[str]) -> None:
    """A search after every change uses all parts that are kept up to date step by step."""
    samples = dict(zip(NAMES, POOL, strict=True)) | {"always": POOL[3] + 1}
    texts = dict(zip(NAMES, TEXTS, strict=True)) | {"always": [f"Always {place}!" for place in range(20)]}
    index = AdapterIndex(scorer)
    index.add("always", samples["always"], texts["always"])
    for name in toggles:
        if name in index.names:
            index.remove(name)
        else:
            index.add(name, samples[name], texts[name])
        hits = index.search(QUERIES, len(index.names), texts=QUERY_TEXTS)
        rebuilt = AdapterIndex.from_embeddings(
            index.names, [samples[n] for n in index.names], scorer, [texts[n] for n in index.names]
        ).search(QUERIES, len(index.names), texts=QUERY_TEXTS)
        assert hits.scores == pytest.approx(rebuilt.scores, rel=1e-5, abs=1e-5)
        if scorer != "discriminant":  # its running sums differ by rounding
            assert hits.names == rebuilt.names
            assert np.array_equal(hits.scores, rebuilt.scores)


def test_probabilities_are_a_softmax_over_the_whole_pool() -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL)
    hits = index.search(QUERIES, k=4)
    assert index.temperature is not None
    assert hits.probabilities is not None
    by_hand = np.exp(hits.scores / index.temperature)
    assert hits.probabilities == pytest.approx(by_hand / by_hand.sum(axis=1, keepdims=True))
    assert index.search(QUERIES, k=1).probabilities == pytest.approx(hits.probabilities[:, :1])
    masked = index.search(QUERIES, k=3, exclude=["a"] * 7)
    assert masked.probabilities == pytest.approx(
        np.array([[p / (1 - row[names.index("a")]) for name, p in zip(names, row, strict=True) if name != "a"]
                  for names, row in zip(hits.names, hits.probabilities, strict=True)])
    )  # fmt: skip


@pytest.mark.parametrize("scorer", SCORERS)
def test_samples_that_are_all_alike_give_finite_scores(scorer: str) -> None:
    """If the samples of an adapter are equal, the plain distance to the mean decides, and not rounding."""
    pool, texts = [np.repeat(samples[:1], 4, axis=0) for samples in POOL], [samples[:1] * 4 for samples in TEXTS]
    index = AdapterIndex.from_embeddings(NAMES, pool, scorer, texts)
    own = index.search(np.stack([samples[0] for samples in pool]), 4, texts=[samples[0] for samples in texts])
    assert np.isfinite(own.scores).all()
    if scorer != "mean_ip":
        assert [names[0] for names in own.names] == NAMES


@pytest.mark.slow
def test_what_a_removed_adapter_varied_by_is_forgotten() -> None:
    """Rounding errors stay in the running sum, and must not count as a covariance."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        singles = generator.normal(size=(20, 1, 8)).astype(np.float32)
        index = AdapterIndex("discriminant")
        for place, samples in enumerate(singles):
            index.add(str(place), samples)
        index.search(QUERIES[:, :1].repeat(8, axis=1), 1)
        for place in range(10):
            index.add(f"more {place}", generator.normal(size=(20, 8)).astype(np.float32))
        for place in range(10):
            index.remove(f"more {place}")
        queries = generator.normal(size=(5, 8)).astype(np.float32)
        rebuilt = AdapterIndex.from_embeddings(index.names, list(singles), "discriminant")
        assert index.search(queries, 20).scores == pytest.approx(rebuilt.search(queries, 20).scores, rel=1e-4, abs=1e-4)


def test_odd_texts_are_no_trouble(tmp_path: Path) -> None:
    index = AdapterIndex.from_embeddings(["a", "b"], POOL[:2], "hybrid", [[""] * 5, [""]])
    assert np.isfinite(index.search(QUERIES, 2, texts=[""] * 7).scores).all()
    assert index.search(QUERIES[:0], 2, texts=[]).names == []
    with pytest.raises(ValueError, match="nothing tells adapters apart"):
        AdapterIndex.from_embeddings(["a", "b"], POOL[:2], "lexical", [[""] * 5, [""]]).search(
            QUERIES, 1, texts=[""] * 7
        )
    torn = AdapterIndex.from_embeddings(["a", "b"], POOL[:2], "hybrid", [["half a \ud83d sign"] * 5, ["é"]])
    torn.save(tmp_path)
    loaded = AdapterIndex.load(tmp_path)
    texts = ["half a \ud83d sign"] * 7
    assert np.array_equal(loaded.search(QUERIES, 2, texts=texts).scores, torn.search(QUERIES, 2, texts=texts).scores)


def test_without_samples_to_spare_there_are_no_probabilities() -> None:
    index = AdapterIndex.from_embeddings(NAMES, [samples[:1] for samples in POOL])
    assert index.temperature is None
    assert index.search(QUERIES, k=1).probabilities is None


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["mean_ip", "cosine", "discriminant"])
def test_a_large_pool_is_searched_as_exactly_as_a_small_one(scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    pool = generator.normal(size=(300, 3, 16)).astype(np.float32)
    names = [f"adapter {place}" for place in range(300)]
    queries = generator.normal(size=(20, 16)).astype(np.float32)
    exclude = [names[place] for place in range(20)]
    index = AdapterIndex.from_embeddings(names, list(pool), scorer)
    plain, masked = index.search(queries, 5), index.search(queries, 5, exclude)
    monkeypatch.setattr("lora_retriever.retrieval.searching.LARGE", 100)
    monkeypatch.setattr("lora_retriever.retrieval.searching.RIVALS", 300)
    for expected, found in ((plain, index.search(queries, 5)), (masked, index.search(queries, 5, exclude))):
        assert found.names == expected.names
        assert found.scores == pytest.approx(expected.scores, rel=1e-4, abs=1e-4)
        assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-3)


def test_a_saved_index_answers_alike(tmp_path: Path) -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL, "nearest")
    index.save(tmp_path / "index")
    loaded = AdapterIndex.load(tmp_path / "index")
    assert loaded.scorer == "nearest"
    assert loaded.search(QUERIES, 3).names == index.search(QUERIES, 3).names
    assert np.array_equal(loaded.search(QUERIES, 3).scores, index.search(QUERIES, 3).scores)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.safetensors"]


@pytest.mark.parametrize("scorer", ["lexical", "hybrid"])
def test_a_saved_index_keeps_the_texts_where_the_scorer_reads_them(tmp_path: Path, scorer: str) -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL, scorer, TEXTS)
    index.save(tmp_path)
    found = AdapterIndex.load(tmp_path).search(QUERIES, 3, texts=QUERY_TEXTS)
    assert found.names == index.search(QUERIES, 3, texts=QUERY_TEXTS).names


@pytest.mark.parametrize("scorer", ["mean_ip", "cosine", "discriminant"])
def test_a_private_index_keeps_no_sample_and_answers_alike(tmp_path: Path, scorer: str) -> None:
    with pytest.raises(ValueError, match="adapter 'b' has a single sample, which a private index would give away"):
        AdapterIndex.from_embeddings(NAMES, POOL, scorer).save(tmp_path, private=True)
    pool = [POOL[0], POOL[1].repeat(2, axis=0) + np.eye(2, 6, dtype=np.float32), *POOL[2:]]
    texts = [TEXTS[0], TEXTS[1] * 2, *TEXTS[2:]]
    index = AdapterIndex.from_embeddings(NAMES, pool, scorer, texts)
    index.save(tmp_path, private=True)
    content = (tmp_path / "index.safetensors").read_bytes()
    assert b"like" not in content
    assert POOL[3][0].tobytes() not in content
    loaded, expected = AdapterIndex.load(tmp_path), index.search(QUERIES, 4)
    found = loaded.search(QUERIES, 4)
    assert found.names == expected.names
    assert found.scores == pytest.approx(expected.scores, rel=1e-6)
    assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-6)
    again = loaded.rescored(scorer).search(QUERIES, 4)
    assert again.probabilities == pytest.approx(found.probabilities)
    loaded.remove("a")
    loaded.add("e", POOL[0])
    loaded.save(tmp_path)  # stays private
    assert AdapterIndex.load(tmp_path).names == ["b", "c", "d", "e"]
    with pytest.raises(ValueError, match="nearest needs the samples, which a private index does not keep"):
        loaded.rescored("nearest")
    for name in ("b", "c", "d"):
        loaded.remove(name)
    loaded.add("a", POOL[3])
    rebuilt = AdapterIndex.from_embeddings(["e", "a"], [POOL[0], POOL[3]], scorer)  # without the private part
    assert loaded.search(QUERIES, 2).scores == pytest.approx(rebuilt.search(QUERIES, 2).scores, rel=1e-6)
    assert loaded.temperature == pytest.approx(rebuilt.temperature, rel=1e-6)


def test_scorers_that_need_more_than_they_get_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scorer nearest needs the samples.*try discriminant, mean_ip, cosine"):
        AdapterIndex.from_embeddings(NAMES, POOL, "nearest").save(tmp_path, private=True)
    with pytest.raises(ValueError, match="adapter 'a': scorer hybrid reads the samples' texts"):
        AdapterIndex.from_embeddings(NAMES, POOL, "hybrid")
    with pytest.raises(ValueError, match="scorer hybrid reads the queries' texts"):
        AdapterIndex.from_embeddings(NAMES, POOL, "hybrid", TEXTS).search(QUERIES, 1)
    with pytest.raises(ValueError, match="adapter 'a': 5 embeddings but 1 texts"):
        AdapterIndex("hybrid").add("a", POOL[0], ["one"])
    with pytest.raises(ValueError, match="scorer hybrid reads the samples' texts, which this index does not know"):
        AdapterIndex.from_embeddings(NAMES, POOL).rescored("hybrid")
    with pytest.raises(ValueError, match="the index is empty"):
        _ = AdapterIndex().temperature


def test_a_crash_in_the_middle_of_saving_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AdapterIndex.from_embeddings(NAMES[:2], POOL[:2]).save(tmp_path)

    def cut(file: int) -> None:
        os.ftruncate(file, os.fstat(file).st_size // 2)
        raise OSError("the power went")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(OSError, match="the power went"):
        AdapterIndex.from_embeddings(NAMES, POOL).save(tmp_path)
    assert AdapterIndex.load(tmp_path).names == NAMES[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"no index at all"])
def test_a_missing_or_damaged_index_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "index.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="no readable index"):
        AdapterIndex.load(tmp_path)


@pytest.mark.slow
def test_what_a_killed_save_left_behind_is_gone_after_the_next(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        AdapterIndex.from_embeddings(NAMES, POOL).save(tmp_path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".index.safetensors.")
    AdapterIndex.from_embeddings(NAMES, POOL).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_FILE]


# Files that hold no sound index


def parts_of(private: bool, scorer: str = "discriminant") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a saved index of three adapters, as `save` writes them."""
    pool = [POOL[0], POOL[2], POOL[3]]
    with tempfile.TemporaryDirectory() as folder:
        AdapterIndex.from_embeddings(["a", "c", "d"], pool, scorer, [TEXTS[0], *TEXTS[2:]]).save(folder, private)
        with safe_open(Path(folder) / "index.safetensors", framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def written(folder: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Path:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / INDEX_FILE, metadata)
    return folder


def changed(array: np.ndarray, at: tuple[int, ...], value: float) -> np.ndarray:
    copy = array.copy()
    copy[at] = value
    return copy


DEEP = "[" * 100_000 + "]" * 100_000
PRIVATE, PRIVATE_WORDS = parts_of(private=True)
PLAIN, PLAIN_WORDS = parts_of(private=False, scorer="hybrid")
MEANS, SCATTER, SAMPLES = PRIVATE["means"], PRIVATE["scatter"], PLAIN["samples"]
UNSOUND_PRIVATE: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "NaN in a mean": ({"means": changed(MEANS, (1, 2), np.nan)}, "means: NaN"),
    "infinite mean": ({"means": MEANS.astype(np.float64) * 1e300}, "means: NaN"),
    "gigantic mean": ({"means": MEANS * 1e20}, "means: values beyond"),
    "a mean less": ({"means": MEANS[:2]}, "3 adapters but means of shape"),
    "flat means": ({"means": MEANS.ravel()}, "means is of type F32 and shape"),
    "means of whole numbers": ({"means": MEANS.astype(int)}, "means is of type I64"),
    "NaN in the scatter": ({"scatter": changed(SCATTER, (0, 0), np.nan)}, "NaN"),
    "small scatter": ({"scatter": SCATTER[:5, :5]}, "scatter has shape .5, 5."),
    "lopsided scatter": ({"scatter": changed(SCATTER, (0, 1), 99)}, "symmetric"),
    "negative scatter": ({"scatter": -SCATTER}, "has a negative eigenvalue"),
    "a count of 0": ({"counts": np.array([5, 0, 20])}, "counts of samples from 1 on"),
    "a count of 2^62": ({"counts": np.array([5, 8, 1 << 62])}, "counts of samples"),
    "two counts": ({"counts": np.array([5, 8])}, "3 adapters do not have 2 counts"),
}
UNSOUND_PLAIN: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "NaN in a sample": ({"samples": changed(SAMPLES, (6, 0), np.nan)}, "'c': NaN"),
    "a sample less": ({"samples": SAMPLES[1:]}, "count 33 samples, but the file holds 32"),
    "a sample of nobody": ({"counts": np.array([5, 8, 19])}, "count 32 samples, but the file holds 33"),
    "texts of a number": ({"texts": np.frombuffer(b"[1]", np.uint8)}, "texts: not a list of texts"),
    "one text": ({"texts": np.frombuffer(b'["a"]', np.uint8)}, "1 texts but 33 samples"),
    "deep texts": ({"texts": np.frombuffer(DEEP.encode(), np.uint8)}, "recursion"),
    "no UTF-8": ({"texts": np.frombuffer(b"\xff", np.uint8)}, "can't decode byte"),
}
UNSOUND_WORDS: dict[str, tuple[dict[str, str], str]] = {
    "names that are numbers": ({"names": "[1, 2, 3]"}, "names: not a list of texts"),
    "names that are null": ({"names": "null"}, "names: not a list of texts"),
    "one name twice": ({"names": '["a", "a", "d"]'}, "an adapter is named twice"),
    "a name more": ({"names": '["a", "b", "c", "d"]'}, "4 adapters do not have 3 counts"),
    "deep names": ({"names": DEEP}, "recursion"),
    "a long number": ({"names": "9" * 5000}, "digits"),
    "unknown scorer": ({"scorer": "bm25"}, "unknown scorer 'bm25'"),
    "a scorer of samples": ({"scorer": "nearest"}, "scorer nearest needs the samples"),
    "NaN constant": ({"constants": '{"shrinkage": NaN}'}, "shrinkage is not a finite number"),
    "long constant": ({"constants": '{"a": 1' + "0" * 400 + "}"}, "too large"),
    "true constant": ({"constants": '{"temperature": true}'}, "temperature is not a finite"),
    "negative temperature": ({"constants": '{"temperature": -1}'}, "-1 is not positive"),
    "shrinkage of 2": ({"constants": '{"shrinkage": 2}'}, "2 is not between 0 and 1"),
    "listed constants": ({"constants": "[]"}, "constants: not an object"),
}


def refused(folder: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{folder}/index.safetensors: no readable index .*{reason}"):
        AdapterIndex.load(written(folder, tensors, metadata))


@pytest.mark.parametrize("fault", [*UNSOUND_PRIVATE, *UNSOUND_PLAIN, *UNSOUND_WORDS])
def test_an_unsound_index_is_refused_with_its_file_and_the_reason(tmp_path: Path, fault: str) -> None:
    if fault in UNSOUND_PRIVATE:
        tensors, reason = UNSOUND_PRIVATE[fault]
        refused(tmp_path, {**PRIVATE, **tensors}, PRIVATE_WORDS, reason)
    elif fault in UNSOUND_PLAIN:
        tensors, reason = UNSOUND_PLAIN[fault]
        refused(tmp_path, {**PLAIN, **tensors}, PLAIN_WORDS, reason)
    else:
        words, reason = UNSOUND_WORDS[fault]
        refused(tmp_path, PRIVATE, {**PRIVATE_WORDS, **words}, reason)


def test_an_index_that_lacks_a_part_is_refused_with_the_parts_name(tmp_path: Path) -> None:
    for name in ("scatter", "counts"):
        refused(tmp_path, {n: t for n, t in PRIVATE.items() if n != name}, PRIVATE_WORDS, f"'{name}' is missing")
    for name in ("names", "scorer", "constants"):
        refused(tmp_path, PRIVATE, {n: t for n, t in PRIVATE_WORDS.items() if n != name}, f"'{name}' is missing")
    for name, reason in (("samples", "'samples' is missing"), ("texts", "reads the samples' texts")):
        refused(tmp_path, {n: t for n, t in PLAIN.items() if n != name}, PLAIN_WORDS, reason)


def test_the_parts_that_unsound_files_are_made_of_are_sound(tmp_path: Path) -> None:
    for tensors, words in ((PRIVATE, PRIVATE_WORDS), (PLAIN, PLAIN_WORDS)):
        assert AdapterIndex.load(written(tmp_path, tensors, words)).names == ["a", "c", "d"]
    more = {**PLAIN, "of another version": np.zeros(3)}
    assert AdapterIndex.load(written(tmp_path, more, PLAIN_WORDS)).names == ["a", "c", "d"]


@pytest.mark.parametrize("head", [1 << 62, 99_000_000, 7])
def test_a_header_that_is_longer_than_the_file_is_refused(tmp_path: Path, head: int) -> None:
    (tmp_path / INDEX_FILE).write_bytes(head.to_bytes(8, "little") + b'{"a": ' + b" " * 100)
    with pytest.raises(ValueError, match="no readable index"):
        AdapterIndex.load(tmp_path)


def test_a_pipe_is_no_index_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / INDEX_FILE)
    with pytest.raises(ValueError, match=r"no readable index \(there is no such file"):
        AdapterIndex.load(tmp_path)
    with pytest.raises(ValueError, match="no readable index"):
        AdapterIndex.load(str(tmp_path / ("x" * 5000)))


@pytest.mark.parametrize("scorer", SCORERS)
def test_an_empty_index_can_be_saved_and_loaded(tmp_path: Path, scorer: str) -> None:
    AdapterIndex(scorer).save(tmp_path)
    assert AdapterIndex.load(tmp_path).names == []


def is_usable(index: AdapterIndex) -> bool:
    """Whether a search finds every adapter with a finite score."""
    if not index.names:
        return True
    dim = index._pool.dim
    assert dim is not None
    hits = index.search(np.ones((2, dim), np.float32), len(index.names), texts=["a b c", "d"])
    return bool(np.isfinite(hits.scores).all()) and sorted(hits.names[0]) == sorted(index.names)


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False])
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_bytes_changed_anywhere_are_refused_or_leave_a_usable_index(private: bool, data: st.DataObject) -> None:
    tensors, metadata = (PRIVATE, PRIVATE_WORDS) if private else (PLAIN, PLAIN_WORDS)
    content = bytearray(save(tensors, metadata))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 400))
        content[min(at, len(content) - 1)] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / INDEX_FILE).write_bytes(content)
        try:
            index = AdapterIndex.load(folder)
        except ValueError as error:
            assert str(error).startswith(f"{folder}/index.safetensors: no readable index (")
        else:
            assert is_usable(index)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.long
@given(
    names=JSON | st.lists(st.text(max_size=3), min_size=2, max_size=4),
    constants=JSON | st.dictionaries(st.sampled_from(["temperature", "shrinkage", "x"]), JSON, max_size=3),
    scorer=st.sampled_from([*SCORERS, "", "bm25"]),
    shape=st.tuples(st.integers(0, 4), st.integers(0, 3)),
    counts=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=4),
    value=st.floats(width=32),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_parts_are_refused_or_make_a_usable_index(
    names: object, constants: object, scorer: str, shape: tuple[int, int], counts: list[int], value: float
) -> None:
    metadata = {"names": json.dumps(names), "constants": json.dumps(constants), "scorer": scorer}
    rows, counted = np.full(shape, value, np.float32), np.array(counts, dtype=np.int64)
    for tensors in (
        {"means": rows, "counts": counted, "scatter": np.full((shape[1], shape[1]), value, np.float64)},
        {"samples": rows, "counts": counted},
    ):
        with tempfile.TemporaryDirectory() as folder:
            try:
                index = AdapterIndex.load(written(Path(folder), tensors, metadata))
            except ValueError as error:
                assert str(error).startswith(f"{folder}/index.safetensors: no readable index (")
            else:
                assert is_usable(index)


def test_names_must_be_texts_and_embeddings_numbers() -> None:
    with pytest.raises(ValueError, match="an adapter's name must be a text, not 5"):
        AdapterIndex().add(5, POOL[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapter 'a': embeddings must be rows of numbers"):
        AdapterIndex().add("a", [["x", 1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapter 'a': values beyond 1e"):
        AdapterIndex().add("a", np.full((2, 3), 1e16))


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
    with pytest.raises(ValueError, match=r"unknown scorer 'bm25' \(known: .*cosine"):
        AdapterIndex("bm25")
    with pytest.raises(KeyError, match="'e' is not in the index"):
        AdapterIndex().remove("e")
    with pytest.raises(ValueError, match="2 names but 1 arrays"):
        AdapterIndex.from_embeddings(["a", "b"], POOL[:1])
