"""From a pool's samples to an index, and how often that finds the input's own adapter: the paper's table 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_retriever.data import PoolEntry, Row
from lora_retriever.encoders import Embeddings, Encoder
from lora_retriever.index import AdapterIndex

CUTS = (1, 3, 5, 8)


def index_pool(encoder: Encoder, pool: Sequence[PoolEntry], scorer: str) -> AdapterIndex:
    """An index over the inputs of every entry's samples, all encoded in one go."""
    embeddings = encoder.encode([sample.inputs for entry in pool for sample in entry.sample])  # [all samples, dim]
    index, start = AdapterIndex(scorer), 0
    for entry in pool:
        index.add(entry.model_name, embeddings[start : start + len(entry.sample)])
        start += len(entry.sample)
    return index


def top_k_shares(index: AdapterIndex, rows: Sequence[Row], queries: Embeddings) -> dict[str, float | None]:
    """Percent of rows whose own task's adapter is among the best k; None where the pool has fewer than k."""
    available = [k for k in CUTS if k <= len(index.names)]
    hits = index.search(queries, k=max(available))
    found = {
        k: sum(row.task in names[:k] for row, names in zip(rows, hits.names, strict=True)) / len(rows)
        for k in available
    }
    return {f"top{k}": round(100 * found[k], 2) if k in found else None for k in CUTS}


def report(index: AdapterIndex, scorers: Sequence[str], rows: Sequence[Row], queries: Embeddings) -> dict[str, Any]:
    """The shares of several scorers over one pool, as `lora-retriever retrieval` writes them."""
    return {
        "rows": len(rows),
        "scorers": {scorer: top_k_shares(index.rescored(scorer), rows, queries) for scorer in scorers},
    }
