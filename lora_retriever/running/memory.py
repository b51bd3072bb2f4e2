"""The memory that an evaluation needs, predicted from the shape of the model. docs/performance.md has the measurements.

peak = weights + resident adapters + keys and values + the batch's pairs + activations of the prefill
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_retriever.generation.shape import shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder-only model's configuration that decide its memory. Widths are numbers of values."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape by a configuration's numbers, under the names that Llama uses.

        Raises:
            KeyError: a number is missing.
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

    @classmethod
    def of_model(cls, config: PretrainedConfig) -> ModelShape:
        """The shape by a loaded configuration of any family.

        Raises:
            UserError: the configuration does not tell one of the numbers.
        """
        return cls.of_config(shape_of(config))

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
    """Bytes of memory, by their use."""

    weights: int
    adapters: int
    cache: int
    pairs: int
    activations: int

    @property
    def total(self) -> int:
        """The peak, in bytes."""
        return self.weights + self.adapters + self.cache + self.pairs + self.activations


def low_rank_bytes(shape: ModelShape, rank: int, targets: Sequence[str], value_bytes: int) -> int:
    """The size of all A and B of one rank on all layers, in bytes: of one adapter, or of the pair of one row."""
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
    """The peak of the memory while one batch is answered.

    Args:
        value_bytes: size of a value of the base's dtype, in bytes: 4 or 2.
        rows: number of rows of the batch.
        length: length of its prompts with padding, in tokens.
        adapters: number of adapters in memory. Their stacks grow by doubling, and one more slot is empty.
        rank: rank of these adapters.
        pair_rank: rank R of a row's pair: k times `rank` for a mixture, `rank` for a fusion.
    """
    slots = 1 << adapters.bit_length() if adapters else 0
    per_position = 2 * shape.layers * shape.kv_heads * shape.head_width  # a key and a value in every layer
    # The MLP is the widest part of a layer: gate, up and their product, the residual, and the normalized input.
    widest = 3 * shape.intermediate + 2 * shape.hidden
    return MemoryUse(
        weights=parameters * value_bytes,
        adapters=slots * low_rank_bytes(shape, rank, targets, value_bytes),
        cache=per_position * rows * (length + new_tokens) * value_bytes,
        pairs=rows * low_rank_bytes(shape, pair_rank, targets, value_bytes),
        activations=(widest * rows * length + rows * shape.vocabulary) * value_bytes,
    )
