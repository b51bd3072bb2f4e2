"""`LivePool`: the adapters that can be asked for now, and the search for adapters. The pool changes while requests run.

A `Snapshot` is the pool at one moment. A request works with one snapshot from its beginning to its end, so a change of
the pool never changes a request that has begun.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread

import numpy as np

from lora_retriever.data.rows import PoolEntry
from lora_retriever.log import LOG
from lora_retriever.retrieval.encoders import Embeddings, Encoder
from lora_retriever.retrieval.encoding import encode_texts
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.retrieval.scorers import Scorer

REMEMBERED = 4096
"""Number of inputs whose embeddings are remembered in memory."""


class QueryEncoder:
    """The encoder of inputs, with the embeddings of the latest inputs in memory. No text is written to disk."""

    def __init__(self, load: Callable[[], Encoder]) -> None:
        """`load` gives the encoder, when the first text is encoded."""
        self._load = load
        self._encoder: Encoder | None = None
        self._known: OrderedDict[str, Embeddings] = OrderedDict()
        self._lock = Lock()

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings [n, dim] of texts, float32.

        Raises:
            ValueError: the encoder gives no embeddings.
            UserError: the encoder cannot be loaded, or fails on a text.
        """
        with self._lock:
            missing = list(dict.fromkeys(text for text in texts if text not in self._known))
            if missing:
                if self._encoder is None:
                    self._encoder = self._load()
                self._known.update(zip(missing, encode_texts(self._encoder, missing), strict=True))
            found = np.stack([self._known[text] for text in texts])
            for text in texts:
                self._known.move_to_end(text)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return found


@dataclass(frozen=True)
class Snapshot:
    """The pool at one moment.

    Attributes:
        entries: the adapters with their domains and samples, by name.
        indexes: the index of each scorer that was asked for, by the scorer's name.
    """

    entries: Mapping[str, PoolEntry]
    indexes: dict[str, AdapterIndex] = field(default_factory=dict)

    @property
    def domains(self) -> dict[str, str]:
        """The domain of each adapter."""
        return {name: entry.domain for name, entry in self.entries.items()}


class LivePool:
    """The pool of a server. Changes replace the snapshot. A request that runs keeps the snapshot with which the request
    began."""

    def __init__(
        self,
        entries: Sequence[PoolEntry],
        find_scorer: Callable[[str], Scorer],
        encode: Callable[[Sequence[str]], Embeddings],
    ) -> None:
        """`encode` gives the embeddings of samples' texts, if a scorer reads embeddings."""
        self._find_scorer = find_scorer
        self._encode = encode
        self._current = Snapshot({entry.model_name: entry for entry in entries})
        self._samples: dict[str, Embeddings] = {}  # the embeddings [samples, dim] of adapters that were needed
        self._changing = Lock()
        self._refitting: Thread | None = None
        self._stale = False

    @property
    def current(self) -> Snapshot:
        """The pool now."""
        return self._current

    def index(self, snapshot: Snapshot, scorer: str) -> AdapterIndex:
        """The index of a snapshot under a scorer, fitted now if nobody has asked for the scorer before.

        Raises:
            ValueError: the pool is empty, or the scorer cannot be fitted.
            UserError: the scorer is unknown, or the encoder fails.
        """
        if scorer not in snapshot.indexes:
            with self._changing:
                if scorer not in snapshot.indexes:
                    snapshot.indexes[scorer] = self._fitted(snapshot, scorer)
        return snapshot.indexes[scorer]

    def add(self, entry: PoolEntry) -> None:
        """Add an adapter. Searches that run go on with the pool as it was.

        Raises:
            ValueError: the name is taken, or the samples cannot be encoded.
            UserError: the encoder fails.
        """
        with self._changing:
            now, name = self._current, entry.model_name
            if name in now.entries:
                raise ValueError(f"adapter {name!r} is in the pool already; remove it first, or take another name")
            self._samples.pop(name, None)  # a removed adapter may have had this name
            indexes = {
                scorer: index.with_adapter(name, *self._described(entry, index.needs_embeddings))
                for scorer, index in now.indexes.items()
            }
            self._replace(Snapshot({**now.entries, name: entry}, indexes))

    def remove(self, name: str) -> None:
        """Take an adapter out. Searches that run go on with the pool as it was.

        Raises:
            KeyError: the pool has no such adapter.
        """
        with self._changing:
            now = self._current
            if name not in now.entries:
                raise KeyError(name)
            entries = {other: entry for other, entry in now.entries.items() if other != name}
            indexes = {scorer: index.without_adapter(name) for scorer, index in now.indexes.items()} if entries else {}
            self._samples.pop(name, None)
            self._replace(Snapshot(entries, indexes))

    def wait(self) -> None:
        """Return once all indexes are fitted to the present pool."""
        while (thread := self._refitting) is not None:
            thread.join()

    def _fitted(self, snapshot: Snapshot, scorer: str) -> AdapterIndex:
        rule = self._find_scorer(scorer)
        index = AdapterIndex(rule)
        if rule.needs_embeddings:  # all missing embeddings in one batch
            missing = [entry for name, entry in snapshot.entries.items() if name not in self._samples]
            texts = [[sample.inputs for sample in entry.sample] for entry in missing]
            ends = np.cumsum([len(of) for of in texts])
            if missing:
                embeddings = np.split(self._encode([text for of in texts for text in of]), ends[:-1])
                self._samples.update(zip((entry.model_name for entry in missing), embeddings, strict=True))
        for name, entry in snapshot.entries.items():
            index.add(name, *self._described(entry, rule.needs_embeddings))
        index.prepare()
        return index

    def _described(self, entry: PoolEntry, encoded: bool) -> tuple[Embeddings | None, list[str]]:
        """The embeddings of an adapter's samples, if embeddings are needed, and the samples' texts."""
        texts = [sample.inputs for sample in entry.sample]
        if not encoded:
            return None, texts
        if entry.model_name not in self._samples:
            self._samples[entry.model_name] = self._encode(texts)
        return self._samples[entry.model_name], texts

    def _replace(self, snapshot: Snapshot) -> None:
        """Make a snapshot current, and fit its indexes anew in the background. The caller holds the lock."""
        self._current, self._stale = snapshot, True
        if self._refitting is None and snapshot.indexes:
            self._refitting = Thread(target=self._refit, name="refit", daemon=True)
            self._refitting.start()

    def _refit(self) -> None:
        """Fit the indexes of the current snapshot anew, until the pool has not changed meanwhile."""
        while True:
            with self._changing:
                if not self._stale or not self._current.indexes:
                    self._refitting = None
                    return
                snapshot, self._stale = self._current, False
            try:
                fitted = {scorer: index.refitted() for scorer, index in list(snapshot.indexes.items())}
            except Exception:  # the quick indexes stay in use
                LOG.exception("the indexes could not be fitted anew")
                continue
            with self._changing:
                if self._current is snapshot:
                    snapshot.indexes.update(fitted)
