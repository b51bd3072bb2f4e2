"""A method's view of rows and a pool whose embeddings a test chooses, instead of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from lora_retriever.data.rows import PoolEntry, Row, Sample
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.generator import Generator
from lora_retriever.methods.context import Context, Declaration, Reads, Resources, Settings
from lora_retriever.retrieval.encoders import Embeddings
from lora_retriever.retrieval.index import AdapterIndex


def made_up_context(
    profile: Profile,
    rows: Sequence[Row],
    index: AdapterIndex,
    queries: Embeddings,
    masked: bool = False,
    **settings: Any,
) -> Context:
    """The context of `rows` with the embeddings `queries` [rows, dim] before the adapters and the scorer of `index`.

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
    return Context(resources, profile, reading_everything(masked))


def reading_everything(masked: bool = False) -> Declaration:
    """The declaration of a method that may read everything."""
    return Declaration("everything", masked, frozenset(get_args(Reads)), frozenset(get_args(Settings)))


def no_model() -> Generator:
    """In place of a model, where none may be asked for."""
    raise AssertionError("there is no model to look into")
