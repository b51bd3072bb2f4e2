"""Retrieve, compose and evaluate LoRA adapters: a reproduction of LoraRetriever (ACL 2024) and a toolkit around it."""

from lora_retriever.index import AdapterIndex, Hits

__all__ = ["AdapterIndex", "Hits"]
__version__ = "0.1.0"
