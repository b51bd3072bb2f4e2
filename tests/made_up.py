"""Things that a test makes up: a method's view of rows and a pool without an encoder, and a tiny T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from tokenizers_made import unigram
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

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
    """The context of `rows`, whose embeddings are `queries` [rows, dim], with the adapters and the scorer of `index`.

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
    """A stand-in for the model: a test fails if a method asks for the model."""
    raise AssertionError("there is no model to look into")


def tiny_t5(folder: Path, kind: str = "t5") -> PreTrainedModel:
    """A tiny random base of a kind of T5, with a tokenizer like T5's, written to `folder`."""
    tokenizer = unigram()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, initializer_factor=3.0,
        decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    model.generation_config.decoder_start_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return model
