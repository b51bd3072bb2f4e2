"""Embeddings kept on disk: a text that was encoded once is not encoded again, nor is the encoder loaded for it.

One SQLite file for all encoders, `embeddings.sqlite` in `$LORA_RETRIEVER_CACHE`, or else in `~/.cache/lora-retriever`.
A key is the SHA-256 of all that a vector depends on, the text among it; no text is stored. A vector comes back bit by
bit as it was stored, checked by a checksum. The cache never stops a run: where it cannot be read or written, texts are
encoded as if there were none, and one line says so.

The file has SQLite's rollback journal and not its write-ahead log, which does not work on network file systems, where
the homes of clusters lie. All access goes through a lock file, so that a damaged file can be replaced safely.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lora_retriever.files import cache_folder
from lora_retriever.retrieval.encoders import Embeddings, Encoder

GIB = 1 << 30
STORED_AT_ONCE = 1024  # texts; what an interrupted encoding loses at most
PACKAGES = ("torch", "transformers", "sentence-transformers")
CHECKSUM_BYTES = 4

SCHEMA = [
    "CREATE TABLE embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL, used INTEGER NOT NULL)",
    "CREATE INDEX by_use ON embeddings (used)",
]
DELETE_OLDEST = """
DELETE FROM embeddings WHERE rowid IN (
    SELECT rowid FROM embeddings ORDER BY used, rowid LIMIT (SELECT 1 + count(*) / 32 FROM embeddings)
)
"""

Result = TypeVar("Result")


def cached(
    load: Callable[[], Encoder], encoder_hash: str, layout: str, instruction: str, device: str = "cpu"
) -> CachedEncoder:
    """The encoder that `load` loads, behind the user's cache.

    Args:
        encoder_hash: `files.hash_path` of the encoder's folder; it stands for its name and its revision.
    """
    depends_on = {
        "encoder": encoder_hash,
        "layout": layout,
        "instruction": instruction,
        "device": device.partition(":")[0],  # cuda:1 computes as cuda:0 does
        "versions": {package: version(package) for package in PACKAGES},
    }
    return CachedEncoder(load, EmbeddingCache(cache_folder()), depends_on)


class CachedEncoder:
    """An encoder behind a cache; it is loaded when a text is missing there."""

    def __init__(self, load: Callable[[], Encoder], cache: EmbeddingCache, depends_on: Mapping[str, Any]) -> None:
        self._load = load
        self._cache = cache
        self._prefix = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).digest()

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, in their order; float32.

        The batch that a text is padded in moves its vector by rounding (about 1e-7). What is missing is therefore
        encoded in an order of its own: the same texts missing give the same bits, also after an interruption.
        """
        stripped = [text.strip() for text in texts]
        keys = {text: self._key(text) for text in stripped}
        vectors = self._cache.read(list(keys.values()))
        missing = sorted((text for text in keys if keys[text] not in vectors), key=lambda text: (-len(text), text))
        for start in range(0, len(missing), STORED_AT_ONCE):
            part = missing[start : start + STORED_AT_ONCE]
            encoded = dict(zip([keys[text] for text in part], self._encoder.encode(part), strict=True))
            self._cache.write(encoded)
            vectors |= encoded
        return np.array([vectors[keys[text]] for text in stripped], dtype=np.float32)

    @cached_property
    def _encoder(self) -> Encoder:
        return self._load()

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(self._prefix + text.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """Vectors by key in one SQLite file that processes share. Beyond `max_bytes` the longest unused go."""

    def __init__(self, folder: Path, max_bytes: int = GIB) -> None:
        self.path = folder / "embeddings.sqlite"
        self.max_bytes = max_bytes
        self._warned = False

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Embeddings]:
        """The vectors [dim] of those keys that are there; from now on they count as just used."""
        nothing: dict[bytes, Embeddings] = {}
        vectors = self._in_transaction(lambda database: _select(database, keys), nothing)
        if vectors:  # in a transaction of its own: a full disk can still be read
            self._in_transaction(lambda database: _mark_used(database, vectors), None)
        return vectors

    def write(self, vectors: Mapping[bytes, Embeddings]) -> None:
        """Store vectors [dim]; a key that is there keeps what it has."""
        self._in_transaction(lambda database: _insert(database, vectors, self.max_bytes), None)

    def _in_transaction(self, action: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """What `action` returns, or `otherwise` and one warning where the file cannot be used."""
        try:
            with self._locked():
                try:
                    return self._attempt(action)
                except sqlite3.OperationalError:  # no space, no permission: the file itself is sound
                    raise
                except sqlite3.DatabaseError as error:
                    self._put_aside(str(error))
                    return self._attempt(action)
        except (OSError, sqlite3.Error) as error:
            if not self._warned:
                _warn(f"{self.path} cannot be used, so texts may be encoded again ({error})")
            self._warned = True
            return otherwise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _attempt(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        with closing(sqlite3.connect(self.path)) as database, database:
            database.text_factory = bytes  # what should be text may be damaged
            schema = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")]
            if not schema:
                database.executescript(f"PRAGMA auto_vacuum = full; BEGIN; {'; '.join(SCHEMA)}; COMMIT")
            elif schema != [statement.encode() for statement in SCHEMA]:
                raise sqlite3.DatabaseError("it holds other tables")
            return action(database)

    def _put_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.aside")
        for suffix in ("", "-journal", "-wal", "-shm"):
            if Path(f"{self.path}{suffix}").exists():
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        _warn(f"{self.path} was not usable ({reason}); it is now {aside}, and a new one is begun")


def _select(database: sqlite3.Connection, keys: Iterable[bytes]) -> dict[bytes, Embeddings]:
    vectors = {}
    for key in keys:
        row = database.execute("SELECT vector FROM embeddings WHERE key = ?", [key]).fetchone()
        if row:
            vectors[key] = _unpacked(key, row[0])
    return vectors


def _mark_used(database: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    now = time.time_ns()
    database.executemany("UPDATE embeddings SET used = ? WHERE key = ?", [(now, key) for key in keys])


def _insert(database: sqlite3.Connection, vectors: Mapping[bytes, Embeddings], max_bytes: int) -> None:
    now = time.time_ns()
    rows = [(key, _packed(key, vector), now) for key, vector in vectors.items()]
    database.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)", rows)
    while _bytes_in_use(database) > max_bytes and database.execute(DELETE_OLDEST).rowcount:
        pass


def _packed(key: bytes, vector: Embeddings) -> bytes:
    """A vector and the checksum of it and its key: SQLite notices a damaged page, not a damaged value."""
    content = vector.astype("<f4").tobytes()
    return content + zlib.crc32(key + content).to_bytes(CHECKSUM_BYTES, "little")


def _unpacked(key: bytes, stored: object) -> Embeddings:
    if not isinstance(stored, bytes):
        raise sqlite3.DatabaseError("a vector has another type")
    content, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    if zlib.crc32(key + content).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise sqlite3.DatabaseError("a vector's checksum is wrong")
    return np.frombuffer(content, dtype="<f4")


def _bytes_in_use(database: sqlite3.Connection) -> int:
    pages, free, size = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _warn(message: str) -> None:
    print(f"lora-retriever: embedding cache: {message}", file=sys.stderr)
