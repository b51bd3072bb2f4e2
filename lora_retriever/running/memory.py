"""How much memory an evaluation takes, from a model's shape alone; docs/performance.md has the formulas and measures.

peak = weights + resident adapters + keys and values + the batch's pairs + activations of the prefill
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """What of a decoder-only model's configuration its memory depends on. Widths are numbers of values."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the content of a config.json.

        Raises:
            KeyError: the configuration does not name one of these as Llama's does.
        """
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
        )

    @property
    def widths(self) -> dict[str, int]:
        """d_in + d_out of the linear modules of a layer, by the names that Llama gives them."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": self.hidden + queries,
            "k_proj": self.hidden + keys,
            "v_proj": self.hidden + keys,
            "o_proj": queries + self.hidden,
            "gate_proj": self.hidden + self.intermediate,
            "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by what they are for."""

    weights: int
    adapters: int
    cache: int
    pairs: int
    activations: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.adapters + self.cache + self.pairs + self.activations


def low_rank_bytes(shape: ModelShape, rank: int, targets: Sequence[str], value_bytes: int) -> int:
    """A's and B's of this rank on all layers: those of one adapter, or of one row's pair."""
    return shape.layers * rank * sum(shape.widths[target] for target in targets) * value_bytes


def predicted_memory(
    shape: ModelShape,
    parameters: int,
    *,
    value_bytes: int,
    rows: int,
    length: int,
    new_tokens: int,
    adapters: int,
    rank: int,
    targets: Sequence[str],
    pair_rank: int,
) -> MemoryUse:
    """The peak of answering one batch.

    Args:
        value_bytes: of a value in the base's dtype: 4 or 2.
        rows, length: of the batch, with padding.
        adapters, rank: those resident, and their rank; their stacks grow by doubling, the empty slot included.
        pair_rank: R of a row's pair: k times `rank` for a mixture, `rank` for a fusion.
    """
    slots = 1 << adapters.bit_length() if adapters else 0
    per_position = 2 * shape.layers * shape.kv_heads * shape.head_width  # a key and a value in every layer
    # At the widest place of a layer, its MLP: gate and up, the product of both; the residual and the normed input.
    widest = 3 * shape.intermediate + 2 * shape.hidden
    return MemoryUse(
        weights=parameters * value_bytes,
        adapters=slots * low_rank_bytes(shape, rank, targets, value_bytes),
        cache=per_position * rows * (length + new_tokens) * value_bytes,
        pairs=rows * low_rank_bytes(shape, pair_rank, targets, value_bytes),
        activations=(widest * rows * length + rows * shape.vocabulary) * value_bytes,
    )
