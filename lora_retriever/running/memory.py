"""The memory that an evaluation needs, predicted from the shape of the model. docs/performance.md has the measurements.

peak = model weights + resident adapters + keys and values + pairs + rows that join + activations + other uses

While prompts are read, the keys, values and pairs of their rows exist twice: as new tensors, and in the memory of the
batch. The last term counts the encoder, the tokenizer, CUDA's context, and the memory that torch's allocator keeps
unused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_retriever.generation.shape import shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


GIB = 1 << 30
CONTEXT = GIB // 2
"""Memory that CUDA itself takes on a GPU, about, in bytes: its context and the workspaces of its libraries."""
UNUSED = 1 / 10
"""Share of the batch's memory that torch's allocator keeps unused on a GPU.

This share is an assumption, which nobody has measured.
"""
TOKENIZER = 1270
"""Memory of a tokenizer for each token of its vocabulary, in bytes, in the host's memory. Measured with Gemma 3's."""


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
        """The shape from the numbers of a configuration, which have Llama's names.

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
        """The shape from a loaded configuration of any family.

        Raises:
            UserError: the configuration does not tell one of the numbers.
        """
        return cls.of_config(shape_of(config))

    @property
    def widths(self) -> dict[str, int]:
        """d_in + d_out of the linear modules of a layer, by Llama's names of the modules."""
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
    joining: int
    activations: int

    @property
    def batch(self) -> int:
        """The memory of the batch, without the model and the adapters."""
        return self.cache + self.pairs + self.joining + self.activations

    @property
    def total(self) -> int:
        """The peak, without the other uses beside the model (`beside`)."""
        return self.weights + self.adapters + self.batch


def size_text(size: int) -> str:
    """A size in bytes as a short text: 143 MiB, 1.45 GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"


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
    read_tokens: int,
    kept_tokens: int,
    adapters: int,
    rank: int,
    targets: Sequence[str],
    pair_rank: int,
) -> MemoryUse:
    """The peak of the memory while rows join a full batch.

    Args:
        value_bytes: size of a value of the base's dtype, in bytes: 4 or 2.
        rows: number of rows of the batch.
        length: length of its prompts with padding, in tokens.
        read_tokens: maximum number of prompt tokens that are read at once.
        kept_tokens: number of tokens of beginnings that are kept for prompts to come.
        adapters: number of adapters in memory. Their stacks grow by doubling, and one more slot is empty.
        rank: rank of these adapters.
        pair_rank: rank R of a row's pair: k times `rank` for a mixture, `rank` for a fusion.
    """
    slots = 1 << adapters.bit_length() if adapters else 0
    per_position = 2 * shape.layers * shape.kv_heads * shape.head_width  # a key and a value in every layer
    joining = min(rows * length, max(length, read_tokens))  # tokens that are read at once
    pair = low_rank_bytes(shape, pair_rank, targets, value_bytes)
    # The MLP is the widest part of a layer: gate, up and their product, the residual, and the normalized input.
    widest = 3 * shape.intermediate + 2 * shape.hidden
    return MemoryUse(
        weights=parameters * value_bytes,
        adapters=slots * low_rank_bytes(shape, rank, targets, value_bytes),
        cache=per_position * rows * (length + new_tokens) * value_bytes,
        pairs=rows * pair,
        joining=per_position * (joining + kept_tokens) * value_bytes + joining * pair // length,
        activations=(widest * joining + rows * shape.vocabulary) * value_bytes,
    )


def beside(used: MemoryUse, shape: ModelShape, device: str, encoder: int) -> dict[str, int]:
    """The other uses of the device's memory beside the model, in bytes, by name.

    On a GPU, the encoder's memory is freed before the base is loaded, so only the memory that the encoder needs beyond
    the model's memory counts. On a CPU, the encoder stays.

    Args:
        encoder: size of the encoder's model weights, in bytes; 0 without an encoder.
    """
    if device == "cpu":
        return {"encoder": encoder, "tokenizer": TOKENIZER * shape.vocabulary}
    return {
        "encoder": max(0, encoder - used.total),
        "context": CONTEXT,
        "unused": int(UNUSED * used.batch),
    }
