"""From a pool's samples to an index of its adapters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_retriever.data.rows import PoolEntry
from lora_retriever.retrieval.encoders import Embeddings, Encoder
from lora_retriever.retrieval.index import AdapterIndex


def index_pool(encoder: Encoder, pool: Sequence[PoolEntry], scorer: str) -> AdapterIndex:
    """An index over the inputs of each entry's samples. The scorer can be changed later (`AdapterIndex.rescored`)."""
    texts = [[sample.inputs for sample in entry.sample] for entry in pool]
    names = [entry.model_name for entry in pool]
    return AdapterIndex.from_embeddings(names, encode_samples(encoder, texts), scorer, texts)


def encode_samples(encoder: Encoder, texts: Sequence[Sequence[str]]) -> list[Embeddings]:
    """The embeddings [samples, dim] of each adapter's texts, all encoded together."""
    embeddings = encoder.encode([text for of_adapter in texts for text in of_adapter])
    ends = np.cumsum([len(of_adapter) for of_adapter in texts])
    return np.split(embeddings, ends[:-1])
