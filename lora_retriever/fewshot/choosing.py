"""Which adapters LoraHub's weights are learned for: drawn at random, retrieved for the examples, or best alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lora_retriever.data.rows import PoolEntry, Sample
from lora_retriever.errors import UserError
from lora_retriever.generation.generator import Generator
from lora_retriever.methods.parts.lorahub_weights import answer_loss, draw_adapters
from lora_retriever.retrieval.encoders import Embeddings, Encoder
from lora_retriever.retrieval.encoding import encode_samples, encode_texts

CHOICES = ("random", "retrieved", "loss")


class Nearest:
    """Adapters by the similarity of texts to the samples of the adapters' pool entries.

    The similarity is the cosine between the text and the mean of the adapter's embedded samples, each of length 1.
    """

    def __init__(self, encoder: Encoder, pool: Sequence[PoolEntry], names: Sequence[str]) -> None:
        """Encode the pool.

        Raises:
            UserError: the pool has no entry for one of the adapters `names`.
        """
        samples = {entry.model_name: entry.sample for entry in pool}
        if missing := [name for name in names if name not in samples]:
            raise UserError(f"--pool: has no samples of the adapter {missing[0]!r}, which retrieval needs")
        self._names = list(names)
        self._encoder = encoder
        encoded = encode_samples(encoder, [[sample.inputs for sample in samples[name]] for name in names])
        self._means = _unit(np.stack([_unit(vectors).mean(axis=0) for vectors in encoded]))  # [adapters, dim]

    def of_each(self, texts: Sequence[str], count: int, without: str | None = None) -> list[list[str]]:
        """The `count` nearest adapters of each text, best first, without the adapter `without`."""
        scores = _unit(encode_texts(self._encoder, texts)) @ self._means.T  # [texts, adapters]
        return [[name for name in self._ordered(row) if name != without][:count] for row in scores]

    def of_all(self, texts: Sequence[str]) -> list[str]:
        """All adapters by their mean similarity to texts of one task, best first."""
        return self._ordered((_unit(encode_texts(self._encoder, texts)) @ self._means.T).mean(axis=0))

    def _ordered(self, scores: Embeddings) -> list[str]:
        return [self._names[position] for position in np.argsort(-scores, kind="stable")]


def losses_alone(generator: Generator, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
    """The loss of the samples' answers under each adapter alone with a weight of 1, in nats.

    Raises:
        UserError: a loss is NaN or infinite, or as for `answer_loss`.
    """
    losses = {}
    for name in names:
        loss = answer_loss(generator.model, generator.tokenizer, [name], samples, generator.settings)([1.0])
        if not math.isfinite(loss):
            raise UserError(
                f"adapter {name!r}: the loss of the examples is NaN or infinite with this adapter alone; leave the "
                "adapter out, or look at its weights and its scaling (lora_alpha)"
            )
        losses[name] = loss
    return losses


def choose(
    kind: str,
    names: Sequence[str],
    count: int,
    seed: int,
    samples: Sequence[Sample],
    nearest: Nearest | None = None,
    losses: Mapping[str, float] | None = None,
) -> list[str]:
    """The adapters of one draw.

    Args:
        kind: a name of `CHOICES`: `random` draws with the seed, `retrieved` needs `nearest`, `loss` needs `losses`.
        samples: the examples of the task.
    """
    if kind == "random":
        return draw_adapters(names, count, seed)
    if kind == "retrieved":
        assert nearest is not None
        ordered = nearest.of_all([sample.inputs for sample in samples])
        return [name for name in ordered if name in names][:count]
    assert losses is not None
    return sorted(names, key=lambda name: losses[name])[:count]


def _unit(vectors: Embeddings) -> Embeddings:
    """The vectors [..., dim] with a length of 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
