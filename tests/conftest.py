"""Fixtures that several tests share: the bundled miniature, and benchmark data that may lie beside the project."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers of pytest-xdist share the cores

import gc
import re
import shutil
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from places import ROOT, TINY

# The process that deals the tests out to the workers of pytest-xdist imports this file, and runs no test. So torch,
# transformers, and modules that import these two, are imported within the functions that use them: the workers start
# about ten seconds sooner.
if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.data.rows import PoolEntry, Row
    from lora_retriever.experiment.profile import Profile

LONGEST = (
    "test_ray_backend.py",
    "test_report_browser.py",
    "test_all_methods.py",
    "test_campaign.py",
    "test_ray_replicas.py",
    "test_learning.py",
    "test_wheel.py",
    "test_loop.py",
    "test_decoding.py",
    "test_report.py",
    "test_marking.py",
    "test_failures.py",
    "test_composition_families.py",
    "test_retriever_training.py",
    "test_doctor.py",
    "test_openai_interface.py",
    "test_endings.py",
    "test_evaluate.py",
    "test_local_backend.py",
    "test_sweep.py",
)
"""The files that take longest come first: when pytest-xdist runs files side by side, no worker waits for them."""


# A shell starts background jobs with SIGINT ignored, and nohup ignores SIGHUP; the tests' processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files in which no test is wanted by its mark: the import of Ray or of a client takes seconds."""
    if collection_path.suffix != ".py":
        return None
    text, wanted = collection_path.read_text(encoding="utf-8"), config.option.markexpr
    of_the_file = re.search(r"^pytestmark = pytest\.mark\.(slow|long)$", text, re.MULTILINE)
    left_out = of_the_file is not None and f"not {of_the_file[1]}" in wanted
    return left_out or (wanted == "long" and "mark.long" not in text) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Exclude the modules and the tests from garbage collection, because they stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures that the tests of a file share use an embedding cache of their own, and never the user's cache.

    This cache is empty at first: the last digits of embeddings depend on the texts that are encoded together.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_RETRIEVER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders that are not there yet."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with an empty cache, so no test depends on texts that other tests encoded."""
    monkeypatch.setenv("LORA_RETRIEVER_CACHE", str(next(caches)))


@pytest.fixture(scope="session")
def tiny() -> Profile:
    """The profile of the bundled miniature."""
    from lora_retriever.experiment.profile import load_profile

    return load_profile("tiny")


@pytest.fixture(scope="session")
def tiny_rows() -> list[Row]:
    from lora_retriever.data.rows import read_rows

    return read_rows(TINY / "test.json")


@pytest.fixture(scope="session")
def tiny_pool() -> list[PoolEntry]:
    from lora_retriever.data.rows import read_pool

    return read_pool(TINY / "pool.json")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the miniature's base model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY / "base")


@pytest.fixture(scope="session")
def paper_runs(tiny: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's eight methods on the first row of every task. Tests read this folder, and never write into it."""
    from tiny_runs import QUIET, made_once

    from lora_retriever.running.evaluate import evaluate

    return made_once(tmp_path_factory, "paper_runs", lambda folder: evaluate(tiny, None, folder, 1, QUIET))


@pytest.fixture(scope="session")
def runs_in_threes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods on two rows of every task in batches of three. Tests read this folder, and never write into it."""
    from tiny_runs import QUIET, made_once, tiny_profile

    from lora_retriever.running.evaluate import evaluate

    profile = tiny_profile(tmp_path_factory.mktemp("threes"), generation={"batch_size": 3})
    names = ["selection", "mixture_ood", "fusion"]
    return made_once(tmp_path_factory, "runs_in_threes", lambda folder: evaluate(profile, names, folder, 2, QUIET))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Each file ends its own browser, because other files use event loops of their own."""
    from browsers import started_browser

    with started_browser() as started:
        yield started


@pytest.fixture(scope="session")
def official() -> Path:
    """The official benchmark data, which the project reads but does not contain."""
    folder = ROOT.parent / "shared" / "official"
    if not folder.is_dir():
        pytest.skip("the official data (../shared/official) is not here")
    return folder


@pytest.fixture(scope="session")
def official_answers(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two runs of answers to the official rows: base and selection."""
    folder = tmp_path_factory.mktemp("official")
    for name in ("base.json", "selection.json"):
        shutil.copy(official / "predictions" / name, folder / name)
    return folder
