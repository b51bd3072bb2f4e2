"""What the tests of methods share: a method's view of an evaluation of the bundled miniature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lora_retriever.benchmark import Benchmark, open_benchmark
from lora_retriever.generation import Generator, load_generator
from lora_retriever.profile import Profile
from lora_retriever.setting import Resources, Setting

SettingOf = Callable[..., Setting]


@pytest.fixture(scope="session")
def benchmark(tiny: Profile) -> Benchmark:
    """The miniature with two rows of every task."""
    return open_benchmark(tiny, 2)


@pytest.fixture(scope="session")
def generator(tiny: Profile, benchmark: Benchmark) -> Generator:
    """The miniature's base model with its adapters."""
    return load_generator(benchmark.base, benchmark.adapters, tiny.generation, tiny.torch_dtype, "cpu")


@pytest.fixture
def setting_of(tiny: Profile, benchmark: Benchmark, generator: Generator, tmp_path: Path) -> SettingOf:
    """Makes settings: `setting_of(masked=True, rows=benchmark.rows[:5], seed=1)`; all share a results folder."""

    def make(masked: bool = False, results: Path = tmp_path, rows: object = None, **settings: object) -> Setting:
        profile = tiny.replaced(settings, "the test")
        shown = benchmark if rows is None else replace(benchmark, rows=rows)
        resources = Resources(profile, shown, results, Console(quiet=True), lambda: generator)
        return Setting(resources, profile, masked)

    return make
