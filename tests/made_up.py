"""A method's view of rows and a pool whose embeddings a test chooses, instead of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_retriever.benchmark import Benchmark
from lora_retriever.data import PoolEntry, Row, Sample
from lora_retriever.encoders import Embeddings
from lora_retriever.generation import Generator
from lora_retriever.index import AdapterIndex
from lora_retriever.profile import Profile
from lora_retriever.setting import Resources, Setting


def made_up_setting(
    profile: Profile,
    rows: Sequence[Row],
    index: AdapterIndex,
    queries: Embeddings,
    masked: bool = False,
    **settings: Any,
) -> Setting:
    """The setting of `rows` with the embeddings `queries` [rows, dim] before the adapters and the scorer of `index`.

    There is no model, and nothing may be learned.

    Args:
        settings: such as `k` and `temperature`, in place of the profile's.
    """
    nowhere = Path("nowhere")
    sample = Sample(inputs="unread", targets="unread")
    pool = [PoolEntry(model_name=name, domain="unread", sample=(sample,)) for name in index.names]
    benchmark = Benchmark(list(rows), None, pool, nowhere, nowhere, {}, {})
    profile = profile.replaced({"scorer": index.scorer, **settings}, "the test")
    resources = Resources(profile, benchmark, nowhere, Console(quiet=True), no_model)
    resources.embeddings = index, queries
    return Setting(resources, profile, masked)


def no_model() -> Generator:
    """In place of a model, where none may be asked for."""
    raise AssertionError("there is no model to look into")
