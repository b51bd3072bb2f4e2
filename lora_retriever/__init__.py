"""Retrieve, compose and evaluate LoRA adapters: a reproduction of LoraRetriever (ACL 2024) and a toolkit around it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_retriever.analysis.frames import load_results
    from lora_retriever.data.rows import read_pool
    from lora_retriever.retrieval.encoders import load_encoder
    from lora_retriever.retrieval.index import AdapterIndex, Hits
    from lora_retriever.retrieval.scorers import Scorer

__all__ = ["AdapterIndex", "Hits", "Scorer", "load_encoder", "load_results", "read_pool"]
__version__ = "0.1.0"

_HOMES = {
    "AdapterIndex": "lora_retriever.retrieval.index",
    "Hits": "lora_retriever.retrieval.index",
    "Scorer": "lora_retriever.retrieval.scorers",
    "load_encoder": "lora_retriever.retrieval.encoders",
    "load_results": "lora_retriever.analysis.frames",
    "read_pool": "lora_retriever.data.rows",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the libraries behind it take up to seconds to import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
