"""Functions for methods that read calibrated probabilities: a search, and the probability that the own adapter is in
the pool at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_retriever.errors import UserError
from lora_retriever.methods.parts.top_k import recorded

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.index import Hits
    from lora_retriever.retrieval.scorers import Array


def search_with_presence(method: str, context: Context, wanted: int) -> tuple[Hits, Array, Array]:
    """The hits of each row, their calibrated probabilities [rows, found], and the presence [rows].

    Args:
        method: the method's name, for messages.
        wanted: number of adapters that the method may use.

    Raises:
        UserError: the pool is too small, or the scorer cannot leave a sample out.
    """
    try:
        hits = context.search(min(recorded(wanted, context), context.available))
        presence = context.index().presence(hits)  # [rows]
    except ValueError as error:
        raise UserError(f"method {method}: {error}") from error
    if hits.probabilities is None or presence is None:
        raise UserError(f"method {method}: scorer {context.scorer} cannot leave a sample of this pool out")
    return hits, hits.probabilities, presence
