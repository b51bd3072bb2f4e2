"""Things that a test makes up: a method's view of rows and a pool without an encoder, and a small T5."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from places import TINY
from rich.console import Console
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

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
    resources._indexes[index.scorer] = index
    return Context(resources, profile, reading_everything(masked))


def reading_everything(masked: bool = False) -> Declaration:
    """The declaration of a method that may read everything."""
    return Declaration("everything", masked, frozenset(get_args(Reads)), frozenset(get_args(Settings)))


def no_model() -> Generator:
    """In place of a model, where none may be asked for."""
    raise AssertionError("there is no model to look into")


def tiny_t5(folder: Path) -> PreTrainedModel:
    """A small T5 with the miniature's tokenizer, written to `folder`."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 566, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "base" / name, folder / name)
    return model
