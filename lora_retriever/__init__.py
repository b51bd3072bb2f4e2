"""Retrieve, compose and evaluate LoRA adapters: a reproduction of LoraRetriever (ACL 2024) and a toolkit around it."""

from typing import TYPE_CHECKING, Any

from lora_retriever.index import AdapterIndex, Hits

if TYPE_CHECKING:
    from lora_retriever.records import load_results

__all__ = ["AdapterIndex", "Hits", "load_results"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_results` when it is first asked for: pandas and the scoring libraries take seconds to import."""
    if name == "load_results":
        from lora_retriever.records import load_results

        return load_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
