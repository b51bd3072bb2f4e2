"""The cache gives back exactly the embeddings that were encoded, also with other users of the file and after damage."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from made_up import no_model
from places import TINY
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_runs import QUIET
from tokenizers import Tokenizer

from lora_retriever.cli import main
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import INSTRUCTION, Profile
from lora_retriever.files import cache_folder, hash_path
from lora_retriever.methods import context as setting_module
from lora_retriever.methods import registered
from lora_retriever.methods.context import Resources
from lora_retriever.retrieval import embedding_cache
from lora_retriever.retrieval.embedding_cache import CachedEncoder, EmbeddingCache, cached
from lora_retriever.retrieval.encoders import Embeddings, SentenceEncoder, load_encoder
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import configuration

DIM = 384
TEXTS = ["where does Karl live ?", "x", "a review of the film \n", "x ", "Жил-был кот 🐈"]


def vector_of(text: str) -> Embeddings:
    """Any float32 numbers except NaN, equal for equal texts."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def with_nan(vector: Embeddings) -> Embeddings:
    changed = vector.copy()
    changed[2] = np.nan
    return changed


class CountingEncoder:
    """An encoder that remembers the texts that it encoded."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Embeddings:
        self.asked += texts
        return np.stack([vector_of(text) for text in texts])


def no_encoder() -> SentenceEncoder:
    raise AssertionError("everything is in the cache, so nothing need be loaded")


def through(cache: EmbeddingCache, encoder: CountingEncoder | None = None) -> CachedEncoder:
    """The encoder behind a cache. Without `encoder`, every text must be in the cache."""
    return CachedEncoder((lambda: encoder) if encoder else no_encoder, cache, {"encoder": "counting"})


def entries(texts: Sequence[str]) -> dict[bytes, Embeddings]:
    return {hashlib.sha256(text.encode()).digest(): vector_of(text) for text in texts}


def same_bits(one: Embeddings, other: Embeddings) -> bool:
    return one.dtype == other.dtype == np.float32 and one.shape == other.shape and one.tobytes() == other.tobytes()


# Hits and misses


@pytest.mark.slow
def test_vectors_come_back_bit_by_bit_and_nothing_is_loaded_for_them() -> None:
    load = partial(load_encoder, TINY / "encoder", "auto", INSTRUCTION)
    described = (hash_path(TINY / "encoder"), "auto", INSTRUCTION)
    first = cached(load, *described).encode(TEXTS)
    assert same_bits(first, load().encode(TEXTS))
    assert same_bits(first, cached(no_encoder, *described).encode(TEXTS))


def test_only_what_is_missing_is_encoded_and_that_once(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    through(EmbeddingCache(tmp_path), encoder).encode(["a", " b\n"])
    assert sorted(encoder.asked) == ["a", "b"]
    vectors = through(EmbeddingCache(tmp_path), encoder).encode(["c", "b", "d", "a", "c", " c"])
    assert sorted(encoder.asked) == ["a", "b", "c", "d"]
    assert same_bits(vectors, np.stack([vector_of(text) for text in ["c", "b", "d", "a", "c", "c"]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        {"encoder_hash": "other files"},
        {"layout": "instructor"},
        {"instruction": "Represent the sentence: "},
        {"device": "cuda:0"},
    ],
)
def test_another_configuration_has_vectors_of_its_own(other: dict[str, str]) -> None:
    described = {"encoder_hash": "files", "layout": "auto", "instruction": "", "device": "cpu"}
    encoder = CountingEncoder()
    cached(lambda: encoder, **described).encode(["a"])
    cached(lambda: encoder, **{**described, **other}).encode(["a"])
    assert encoder.asked == ["a", "a"]
    cached(no_encoder, **{**described, **other}).encode(["a"])


def test_another_version_of_the_libraries_encodes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CountingEncoder()
    for release in ("1.0", "1.1"):
        monkeypatch.setattr(embedding_cache, "version", lambda package, release=release: release)
        cached(lambda: encoder, "files", "auto", "").encode(["a"])
    assert encoder.asked == ["a", "a"]


@pytest.mark.slow
def test_the_order_of_the_texts_does_not_change_a_bit(tiny_texts: list[str], tmp_path: Path) -> None:
    encoder = load_encoder(TINY / "encoder", instruction=INSTRUCTION, batch_size=4)
    shuffled = random.Random(0).sample(tiny_texts, len(tiny_texts))
    for name, texts in (("one", tiny_texts), ("other", shuffled)):
        CachedEncoder(lambda: encoder, EmbeddingCache(tmp_path / name), {}).encode(texts)
    found = [
        CachedEncoder(no_encoder, EmbeddingCache(tmp_path / name), {}).encode(tiny_texts) for name in ("one", "other")
    ]
    assert same_bits(*found)


@pytest.mark.slow
def test_a_cache_that_holds_a_part_moves_vectors_by_rounding_only(tiny_texts: list[str], tmp_path: Path) -> None:
    encoder = load_encoder(TINY / "encoder", instruction=INSTRUCTION, batch_size=4)
    partly = CachedEncoder(lambda: encoder, EmbeddingCache(tmp_path), {})
    partly.encode(tiny_texts[::3])
    one_by_one = np.concatenate([encoder.encode([text]) for text in tiny_texts])
    assert np.abs(partly.encode(tiny_texts) - one_by_one).max() < 1e-6


def test_an_interrupted_encoding_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "STORED_AT_ONCE", 4)
    texts = ["x" * n for n in range(1, 11)]
    encoder = CountingEncoder()
    encode, calls = encoder.encode, iter(range(100))

    def stopping(part: Sequence[str]) -> Embeddings:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return encode(part)

    monkeypatch.setattr(encoder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        through(EmbeddingCache(tmp_path), encoder).encode(texts)
    assert len(encoder.asked) == 8
    through(EmbeddingCache(tmp_path), encoder).encode(texts)
    assert sorted(encoder.asked) == texts


def test_no_text_is_stored(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    through(cache, CountingEncoder()).encode(["the patient's name is Karl"])
    content = cache.path.read_bytes()
    assert vector_of("the patient's name is Karl").tobytes()[:64] in content
    assert b"Karl" not in content


# Encoding itself


@pytest.mark.slow
def test_a_text_that_comes_twice_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(TINY / "encoder")
    encode, asked = encoder.model.encode, []

    def counted(texts: list[str], **settings: Any) -> Any:
        asked.extend(texts)
        return encode(texts, **settings)

    monkeypatch.setattr(encoder.model, "encode", counted)
    vectors = encoder.encode(TEXTS)
    assert sorted(asked) == sorted({text.strip() for text in TEXTS})
    assert same_bits(vectors[1], vectors[3])


def test_an_encoder_without_a_transformer_is_used_as_well() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "encoder" / "tokenizer.json"))
    weights = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 8)).astype(np.float32)
    encoder = SentenceEncoder(SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]))
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = tokenizer.encode(text.strip(), add_special_tokens=False).ids
        assert np.abs(vector - weights[ids].mean(axis=0)).max() < 1e-6


# Several processes


def write_all(folder: Path, texts: Sequence[str], rounds: int = 1) -> None:
    cache = EmbeddingCache(folder)
    for _ in range(rounds):
        for start in range(0, len(texts), 5):
            cache.write(entries(texts[start : start + 5]))
            cache.read(list(entries(texts[:5])))


def start(target: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def is_sound(cache: EmbeddingCache) -> bool:
    with sqlite3.connect(cache.path) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(100)]
    shares = [texts[:60], texts[30:], texts[::-1]]
    processes = [start(write_all, tmp_path, share) for share in shares]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    cache = EmbeddingCache(tmp_path)
    found = cache.read(list(entries(texts)))
    assert found.keys() == entries(texts).keys()
    assert all(same_bits(found[key], vector) for key, vector in entries(texts).items())
    assert is_sound(cache)
    assert not list(tmp_path.glob("*.aside"))


@pytest.mark.long
def test_a_process_that_is_killed_leaves_a_sound_file(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(200)]
    for pause in (0.05, 0.1, 0.2):
        process = start(write_all, tmp_path, texts, 1000)
        time.sleep(pause)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cache = EmbeddingCache(tmp_path)
        found = cache.read(list(entries(texts)))
        assert all(same_bits(found[key], entries(texts)[key]) for key in found)
        cache.write(entries(texts[:1]))
        assert is_sound(cache)
    assert not list(tmp_path.glob("*.aside"))


# Size


@pytest.mark.slow
def test_the_file_stays_within_its_bound_and_the_longest_unused_go(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, max_bytes=300_000)
    (favourite,) = entries(["favourite"])
    cache.write(entries(["favourite"]))
    for n in range(30):
        cache.write(entries([f"{n}/{i}" for i in range(10)]))
        assert cache.path.stat().st_size <= 300_000
        assert favourite in cache.read([favourite])
    assert cache.path.stat().st_size > 200_000
    last, first = (list(entries([f"{n}/{i}" for i in range(10)])) for n in (29, 0))
    assert len(cache.read(last)) == 10
    assert not cache.read(first)


def test_more_than_fits_is_encoded_all_the_same(tmp_path: Path) -> None:
    cache, texts = EmbeddingCache(tmp_path, max_bytes=50_000), [f"text {n}" for n in range(100)]
    vectors = through(cache, CountingEncoder()).encode(texts)
    assert same_bits(vectors, np.stack([vector_of(text) for text in texts]))
    assert cache.path.stat().st_size <= 50_000


# Damage, and places that cannot be used


def flip_a_vectors_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(vector_of("text 7").tobytes()[:64]) + 5] ^= 1
    path.write_bytes(content)


def replace_by_another_programs(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE embeddings (id INTEGER, name TEXT)")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_text("my notes\n" * 100),
    "half a file": lambda path: os.truncate(path, path.stat().st_size // 2 + 17),
    "one bit of one vector": flip_a_vectors_byte,
    "another program's": replace_by_another_programs,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_or_foreign_is_put_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    texts = [f"text {n}" for n in range(40)]
    cache, expected = EmbeddingCache(tmp_path), np.stack([vector_of(text) for text in texts])
    through(cache, CountingEncoder()).encode(texts)
    DAMAGES[damage](cache.path)
    spoilt = cache.path.read_bytes()

    assert same_bits(through(cache, CountingEncoder()).encode(texts), expected)
    message = capsys.readouterr().err
    assert message.startswith(f"lora-retriever: embedding cache: {cache.path} was not usable (")
    assert message.endswith(f"it is now {cache.path}.aside, and a new one is begun\n")
    assert (tmp_path / "embeddings.sqlite.aside").read_bytes() == spoilt
    assert same_bits(through(cache).encode(texts), expected)


@pytest.mark.slow
def test_wherever_a_file_is_damaged_the_vectors_are_right(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(12)]
    cache, expected = EmbeddingCache(tmp_path), np.stack([vector_of(text) for text in texts])
    through(cache, CountingEncoder()).encode(texts)
    sound = cache.path.read_bytes()
    chance = random.Random(0)
    for place in [*range(0, 100, 4), *(chance.randrange(len(sound)) for _ in range(50))]:  # header and anywhere
        cache.path.write_bytes(sound[:place] + bytes([chance.randrange(256)]) + sound[place + 1 :])
        for _ in range(2):
            assert same_bits(through(cache, CountingEncoder()).encode(texts), expected), place
    cache.path.unlink()


@pytest.mark.parametrize("place", ["below a file", "in the file's stead a folder", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_means_no_cache_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    folder = {"/proc/nowhere": Path("/proc/nowhere"), "below a file": tmp_path / "file" / "cache"}.get(place, tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "embeddings.sqlite").mkdir()
    encoder = CountingEncoder()
    through_it = through(EmbeddingCache(folder), encoder)
    for _ in range(2):
        assert same_bits(through_it.encode(["a"]), vector_of("a")[None])
    assert encoder.asked == ["a", "a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder}/embeddings.sqlite cannot be used, so texts may be encoded again (" in line


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = EmbeddingCache(tmp_path)
    through(cache, CountingEncoder()).encode(["a"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cache.path.stat().st_size, limits[1]))
    try:
        texts = [f"text {n}" for n in range(40)]
        vectors = through(cache, CountingEncoder()).encode(texts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same_bits(vectors, np.stack([vector_of(text) for text in texts]))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert same_bits(through(cache).encode(["a"]), vector_of("a")[None])
    assert is_sound(cache)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a file by a second opening of the file."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
def test_a_lock_that_stays_held_is_waited_for_once_and_then_there_is_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "LOCK_SECONDS", 0.3)
    encoder = CountingEncoder()
    through_it = through(EmbeddingCache(tmp_path), encoder)
    locks: list[Path] = []

    def counted(path: Path, **options: Any) -> FileLock:
        locks.append(path)
        return FileLock(path, **options)

    monkeypatch.setattr(embedding_cache, "FileLock", counted)
    with held(tmp_path / ".lock"):
        for _ in range(3):
            assert same_bits(through_it.encode(["a"]), vector_of("a")[None])
    assert encoder.asked == ["a"] * 3
    assert locks == [tmp_path / ".lock"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be used, so texts may be encoded again (" in line
    assert same_bits(through(EmbeddingCache(tmp_path), encoder).encode(["b"]), vector_of("b")[None])
    assert same_bits(through(EmbeddingCache(tmp_path)).encode(["b"]), vector_of("b")[None])


@pytest.mark.parametrize("content", [None, "mine\n"])
def test_a_lock_file_that_is_a_link_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    target, folder = tmp_path / "my notes", tmp_path / "cache"
    folder.mkdir()
    if content is not None:
        target.write_text(content)
    (folder / ".lock").symlink_to(target)
    assert same_bits(through(EmbeddingCache(folder), CountingEncoder()).encode(["a"]), vector_of("a")[None])
    assert (target.read_text() if target.exists() else None) == content
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_file_system_without_locks_means_no_cache_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    encoder = CountingEncoder()
    through_it = through(EmbeddingCache(tmp_path), encoder)
    for _ in range(2):
        assert same_bits(through_it.encode(["a"]), vector_of("a")[None])
    assert encoder.asked == ["a", "a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in line


@pytest.mark.parametrize("place", [None, "~nosuchuser/cache"])
def test_without_a_home_there_is_no_cache_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("LORA_RETRIEVER_CACHE")
    if place:
        monkeypatch.setenv("LORA_RETRIEVER_CACHE", place)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    encoder = CountingEncoder()
    through_it = cached(lambda: encoder, "files", "auto", "")
    for _ in range(2):
        assert same_bits(through_it.encode(["a"]), vector_of("a")[None])
    (line,) = capsys.readouterr().err.splitlines()
    assert "no-home/embeddings.sqlite cannot be used, so texts may be encoded again (" in line
    assert line.endswith("LORA_RETRIEVER_CACHE may name another folder")


def forge(path: Path, text: str, stored: bytes) -> None:
    """Put other bytes, with a right checksum, into the entry of a text."""
    stored_before = vector_of(text).tobytes()
    with sqlite3.connect(path) as database:
        (key,) = (
            key for key, vector in database.execute("SELECT key, vector FROM embeddings")
            if vector.startswith(stored_before)
        )  # fmt: skip
        checksum = zlib.crc32(key + stored).to_bytes(4, "little")
        database.execute("UPDATE embeddings SET vector = ? WHERE key = ?", [stored + checksum, key])


FORGED = {
    "NaN": with_nan(vector_of("text 3")).tobytes(),
    "shorter": vector_of("text 3")[:7].tobytes(),
    "longer": np.ones(2 * DIM, dtype=np.float32).tobytes(),
    "empty": b"",
    "half a number": vector_of("text 3").tobytes()[:-2],
}


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("asked", [["text 3"], [f"text {n}" for n in range(6)]])
def test_an_entry_that_is_no_vector_of_the_encoder_is_encoded_again_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forged: str, asked: list[str]
) -> None:
    cache = EmbeddingCache(tmp_path)
    through(cache, CountingEncoder()).encode([f"text {n}" for n in range(6)])
    forge(cache.path, "text 3", FORGED[forged])
    encoder, expected = CountingEncoder(), np.stack([vector_of(text) for text in asked])
    assert same_bits(through(cache, encoder).encode(asked), expected)
    assert encoder.asked == ["text 3"]
    assert same_bits(through(cache).encode(asked), expected)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_texts_longer_than_the_encoder_takes_are_counted_once_for_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding_cache, "STORED_AT_ONCE", 2)
    model = load_encoder(TINY / "encoder").model
    model.max_seq_length = 5
    capsys.readouterr()
    CachedEncoder(lambda: SentenceEncoder(model), EmbeddingCache(tmp_path), {}).encode(["a " * n for n in range(1, 12)])
    (line,) = capsys.readouterr().err.splitlines()
    assert " of 11 texts are longer than the 5 tokens" in line


# Where it is used


@pytest.fixture
def tiny_texts(tiny_rows: list[Any]) -> list[str]:
    return list(dict.fromkeys(row.inputs for row in tiny_rows[::12]))


@pytest.mark.slow
def test_the_second_start_of_an_evaluation_encodes_nothing(
    tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tiny, ["selection"], tmp_path / "first", 1, QUIET)
    monkeypatch.delattr(SentenceEncoder, "encode")
    monkeypatch.setattr(setting_module, "load_encoder", no_encoder)
    evaluate(tiny, ["selection"], tmp_path / "second", 1, QUIET)
    first, second = ((tmp_path / name / "selection.jsonl").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.slow
def test_a_profile_may_do_without_the_cache_and_stays_the_same_run(tiny: Profile, tmp_path: Path) -> None:
    without = tiny.model_copy(update={"encoder": tiny.encoder.model_copy(update={"cache": False})})
    benchmark = open_benchmark(tiny, limit=1)
    _, queries = Resources(without, benchmark, tmp_path, QUIET, no_model).embeddings
    assert len(queries) == len(benchmark.rows)
    assert not (cache_folder() / "embeddings.sqlite").exists()
    first, second = (configuration(profile, benchmark, registered()["selection"]) for profile in (tiny, without))
    assert first == second


@pytest.mark.long
def test_retrieval_and_index_use_the_cache_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ["--pool", str(TINY / "pool.json"), "--encoder", str(TINY / "encoder")]
    retrieval = ["retrieval", *encoder, "--inputs", str(TINY / "test.json"), "--scorer", "cosine"]
    assert main([*retrieval, "--json", str(tmp_path / "without.json"), "--no-cache"]) == 0
    assert main(["index", *encoder, "--out", str(tmp_path / "without"), "--no-cache"]) == 0
    assert not (cache_folder() / "embeddings.sqlite").exists()
    assert main([*retrieval, "--json", str(tmp_path / "first.json")]) == 0
    monkeypatch.delattr(SentenceEncoder, "encode")
    assert main([*retrieval, "--json", str(tmp_path / "second.json")]) == 0
    assert main(["index", *encoder, "--out", str(tmp_path / "index")]) == 0
    figures = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("without", "first", "second")]
    assert figures[0] == figures[1] == figures[2]


def test_the_cache_lies_in_the_users_home_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_RETRIEVER_CACHE", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LORA_RETRIEVER_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "lora-retriever"
