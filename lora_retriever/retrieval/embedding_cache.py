"""Embeddings kept on disk: a text that was encoded once is not encoded again, and does not need the encoder.

All encoders share one SQLite file: `embeddings.sqlite` in `$LORA_RETRIEVER_CACHE`, or else in
`~/.cache/lora-retriever`. An entry's key is the SHA-256 of everything that the vector depends on, the text included; no
text is stored. A vector comes back with the bits that were stored, checked by a checksum. The cache never stops a run:
if the file cannot be read, written or locked, texts are encoded as if there were no cache, and one line says so.

The file uses SQLite's rollback journal. SQLite's write-ahead log does not work on network file systems, where the home
folders of clusters lie. All access goes through a lock file, so that a damaged file can be replaced safely.
"""

from __future__ import annotations

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
from filelock import FileLock

from lora_retriever.escaping import for_terminal
from lora_retriever.files import cache_folder
from lora_retriever.retrieval.encoders import Embeddings, Encoder, SentenceEncoder

GIB = 1 << 30
LOCK_SECONDS = 30  # Maximum time to wait for other processes, in seconds.
STORED_AT_ONCE = 1024  # Maximum number of texts that an interrupted encoding loses.
ENCODING = 2  # Raised whenever `SentenceEncoder` begins to give other vectors for the same text.
PACKAGES = ("torch", "transformers", "sentence-transformers")
CHECKSUM_BYTES = 4
VALUE_BYTES = 4  # size of a float32, in bytes

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
        encoder_hash: `files.hash_path` of the encoder's folder, which identifies its name and its revision.
    """
    depends_on = {
        "encoding": ENCODING,
        "encoder": encoder_hash,
        "layout": layout,
        "instruction": instruction,
        "device": device.partition(":")[0],  # cuda:1 computes the same as cuda:0
        "versions": {package: version(package) for package in PACKAGES},
    }
    return CachedEncoder(load, EmbeddingCache(cache_folder()), depends_on)


class CachedEncoder:
    """An encoder behind a cache. The encoder is loaded when a text is not in the cache."""

    def __init__(self, load: Callable[[], Encoder], cache: EmbeddingCache, depends_on: Mapping[str, Any]) -> None:
        self._load = load
        self._cache = cache
        self._prefix = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).digest()
        self._dim_key = hashlib.sha256(self._prefix + b"\xff dim").digest()  # no text in UTF-8 has the byte ff

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, in their order; float32.

        The batch in which a text is padded changes its vector by rounding (about 1e-7). The missing texts are therefore
        encoded in a fixed order: the same missing texts give the same bits, also after an interruption.
        """
        stripped = [text.strip() for text in texts]
        keys = {text: self._key(text) for text in stripped}
        vectors = self._known(list(keys.values()))
        missing = sorted((text for text in keys if keys[text] not in vectors), key=lambda text: (-len(text), text))
        if missing and isinstance(self._encoder, SentenceEncoder):
            self._encoder.report_truncated(missing)
        for start in range(0, len(missing), STORED_AT_ONCE):
            part = missing[start : start + STORED_AT_ONCE]
            encoded = dict(zip([keys[text] for text in part], self._encoder.encode(part), strict=True))
            dim = np.array([len(next(iter(encoded.values())))], dtype=np.float32)
            self._cache.write({**encoded, self._dim_key: dim})
            vectors |= encoded
        return np.array([vectors[keys[text]] for text in stripped], dtype=np.float32)

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Embeddings]:
        """The cached vectors [dim] of these keys. Entries of another dimension than the encoder's are removed.

        An entry beside the vectors states the dimension. Without this entry, no key counts as known.
        """
        vectors = self._cache.read([self._dim_key, *keys])
        dim = vectors.pop(self._dim_key, None)
        wrong = [key for key, vector in vectors.items() if dim is None or [len(vector)] != dim.tolist()]
        if wrong:
            self._cache.remove([self._dim_key, *wrong])
        return {key: vector for key, vector in vectors.items() if key not in set(wrong)}

    @cached_property
    def _encoder(self) -> Encoder:
        return self._load()

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(self._prefix + text.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """Vectors by key in one SQLite file for all processes. Beyond `max_bytes`, the least recently used are removed."""

    def __init__(self, folder: Path, max_bytes: int = GIB) -> None:
        self.path = folder / "embeddings.sqlite"
        self.max_bytes = max_bytes
        self._warned = False
        self._given_up = False

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Embeddings]:
        """The vectors [dim] of the keys that the file has. These vectors now count as the most recently used.

        An entry that holds NaN or no whole number of values is removed and counts as missing.
        """
        nothing: dict[bytes, Embeddings | None] = {}
        found = self._in_transaction(lambda database: _select(database, keys), nothing)
        vectors = {key: vector for key, vector in found.items() if vector is not None}
        if vectors:  # a transaction of its own, because a full disk can still be read
            self._in_transaction(lambda database: _mark_used(database, vectors), None)
        self.remove([key for key, vector in found.items() if vector is None])
        return vectors

    def write(self, vectors: Mapping[bytes, Embeddings]) -> None:
        """Store vectors [dim]. A key that is already there keeps its vector."""
        self._in_transaction(lambda database: _insert(database, vectors, self.max_bytes), None)

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove the entries of some keys."""
        if keys:
            self._in_transaction(lambda database: _delete(database, keys), None)

    def _in_transaction(self, action: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """The result of `action`, or `otherwise` and one line on standard error if the file cannot be used."""
        if self._given_up:
            return otherwise
        try:
            with self._locked():
                try:
                    return _attempt(self.path, action)
                except sqlite3.OperationalError:  # no space, no permission: the file itself is sound
                    raise
                except sqlite3.DatabaseError as error:
                    _put_aside(self.path, str(error))
                    return _attempt(self.path, action)
        except (OSError, sqlite3.Error) as error:
            self._given_up = isinstance(error, TimeoutError)  # do not wait for the lock a second time
            if not self._warned:
                _warn(
                    f"{self.path} cannot be used, so texts may be encoded again ({error}); LORA_RETRIEVER_CACHE "
                    "may name another folder"
                )
            self._warned = True
            return otherwise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from using the file.

        Raises:
            OSError: the folder cannot be written or has no locks, or `.lock` is a link, which is never followed.
            TimeoutError: another process held the lock for `LOCK_SECONDS`.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Locks of flock end with their process. `fallback_to_soft` would leave a file behind a killed process.
        with FileLock(self.path.parent / ".lock", timeout=LOCK_SECONDS, fallback_to_soft=False):
            yield


def _attempt(path: Path, action: Callable[[sqlite3.Connection], Result]) -> Result:
    with closing(sqlite3.connect(path)) as database, database:
        database.text_factory = bytes  # a damaged file may have other values in place of text
        schema = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")]
        if not schema:
            database.executescript(f"PRAGMA auto_vacuum = full; BEGIN; {'; '.join(SCHEMA)}; COMMIT")
        elif schema != [statement.encode() for statement in SCHEMA]:
            raise sqlite3.DatabaseError("it holds other tables")
        return action(database)


def _put_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.aside")
    for suffix in ("", "-journal", "-wal", "-shm"):
        if Path(f"{path}{suffix}").exists():
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    _warn(f"{path} was not usable ({reason}); it is now {aside}, and a new one is begun")


def _select(database: sqlite3.Connection, keys: Iterable[bytes]) -> dict[bytes, Embeddings | None]:
    """The vectors of the keys that are there; None for an entry that is no vector of finite numbers."""
    vectors = {}
    for key in keys:
        row = database.execute("SELECT vector FROM embeddings WHERE key = ?", [key]).fetchone()
        if row:
            vectors[key] = _unpacked(key, row[0])
    return vectors


def _mark_used(database: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    now = time.time_ns()
    database.executemany("UPDATE embeddings SET used = ? WHERE key = ?", [(now, key) for key in keys])


def _delete(database: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    database.executemany("DELETE FROM embeddings WHERE key = ?", [(key,) for key in keys])


def _insert(database: sqlite3.Connection, vectors: Mapping[bytes, Embeddings], max_bytes: int) -> None:
    now = time.time_ns()
    rows = [(key, _packed(key, vector), now) for key, vector in vectors.items()]
    database.executemany(
        "INSERT INTO embeddings VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET used = excluded.used", rows
    )
    while _bytes_in_use(database) > max_bytes and database.execute(DELETE_OLDEST).rowcount:
        pass


def _packed(key: bytes, vector: Embeddings) -> bytes:
    """A vector, and a checksum of its key and its bytes: SQLite notices a damaged page, but not a damaged value."""
    content = vector.astype("<f4").tobytes()
    return content + zlib.crc32(key + content).to_bytes(CHECKSUM_BYTES, "little")


def _unpacked(key: bytes, stored: object) -> Embeddings | None:
    if not isinstance(stored, bytes):
        raise sqlite3.DatabaseError("a vector has another type")
    content, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    if zlib.crc32(key + content).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise sqlite3.DatabaseError("a vector's checksum is wrong")
    if not content or len(content) % VALUE_BYTES:
        return None
    vector = np.frombuffer(content, dtype="<f4")
    return vector if np.isfinite(vector).all() else None


def _bytes_in_use(database: sqlite3.Connection) -> int:
    pages, free, size = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _warn(message: str) -> None:
    print(for_terminal(f"lora-retriever: embedding cache: {message}"), file=sys.stderr)
