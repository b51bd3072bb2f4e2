"""Fixtures of the tests of methods: a method's view of an evaluation of the bundled miniature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import reading_everything
from tiny_runs import QUIET

from lora_retriever.experiment.benchmark import Benchmark, model_source, open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import load_generator
from lora_retriever.methods.context import Context, Resources

ContextOf = Callable[..., Context]


@pytest.fixture(scope="session")
def benchmark(tiny: Profile) -> Benchmark:
    """The miniature with two rows of every task."""
    return open_benchmark(tiny, 2)


@pytest.fixture(scope="session")
def generator(tiny: Profile, benchmark: Benchmark) -> Generator:
    """The miniature's base model with its adapters."""
    return load_generator(model_source(tiny, benchmark))


@pytest.fixture
def context_of(tiny: Profile, benchmark: Benchmark, generator: Generator, tmp_path: Path) -> ContextOf:
    """Makes contexts: `context_of(masked=True, rows=benchmark.rows[:5], seed=1)`; all share a results folder."""

    def make(masked: bool = False, results: Path = tmp_path, rows: object = None, **settings: object) -> Context:
        profile = tiny.replaced(settings, "the test")
        shown = benchmark if rows is None else replace(benchmark, rows=rows)
        resources = Resources(profile, shown, results, QUIET, lambda: generator)
        return Context(resources, profile, reading_everything(masked))

    return make
