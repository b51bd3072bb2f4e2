"""From texts to embeddings by any encoder: the project's encoder, an encoder behind a cache, or a user's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_retriever.retrieval.encoders import Embeddings, Encoder


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    """The embeddings [n, dim] of texts, float32.

    Raises:
        ValueError: the encoder gives something else, as an encoder of a user's own may, or values that are not finite.
    """
    given = encoder.encode(texts)
    try:
        vectors = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the encoder gives {type(given).__name__}, and not rows of numbers ({error})") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or (len(texts) and not vectors.shape[1]):
        raise ValueError(f"the encoder gives shape {vectors.shape} for {len(texts)} texts, and not [texts, dim]")
    if not np.isfinite(vectors).all():
        raise ValueError("the encoder gives NaN or infinite values")
    return vectors


def encode_samples(encoder: Encoder, texts: Sequence[Sequence[str]]) -> list[Embeddings]:
    """The embeddings [samples, dim] of each adapter's texts, all encoded together.

    Raises:
        ValueError: as for `encode_texts`.
    """
    embeddings = encode_texts(encoder, [text for of_adapter in texts for text in of_adapter])
    ends = np.cumsum([len(of_adapter) for of_adapter in texts])
    return np.split(embeddings, ends[:-1])
