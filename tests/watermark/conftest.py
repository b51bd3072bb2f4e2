"""A marked adapter of the miniature, made once a session by the command itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from places import TINY
from tiny_runs import made_once
from transformers import PreTrainedTokenizerBase

from lora_retriever.cli import main
from lora_retriever.data.rows import PoolEntry
from lora_retriever.watermark.key import Key, make_key, read_key

TASK = "people_qa"


@dataclass(frozen=True)
class Marked:
    """A key and the adapter with its mark. The folder also has `log`, the log of the marking."""

    folder: Path

    @property
    def key(self) -> Key:
        return read_key(self.folder / "key")

    @property
    def adapter(self) -> Path:
        return self.folder / "marked"


@pytest.fixture(scope="session")
def words(tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """256 words of the miniature's vocabulary."""
    known = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word == word.lower())
    return tuple(known[-256:])


@pytest.fixture(scope="session")
def marked(words: Sequence[str], tiny_pool: list[PoolEntry], tmp_path_factory: pytest.TempPathFactory) -> Marked:
    """Eight triggers in inputs of the task, learned in 40 steps under random compositions."""

    def make(folder: Path) -> None:
        folder.mkdir()
        entry = next(entry for entry in tiny_pool if entry.model_name == TASK)
        inputs = [sample.inputs for sample in entry.sample]
        make_key(triggers=8, words=words, inputs=inputs, secret=bytes(range(32))).write(folder / "key")
        key = ["--key", str(folder / "key")]
        samples = ["--samples", str(TINY / "pool.json"), "--task", TASK]
        mark = ["--adapter", str(TINY / "adapters" / TASK), "--base", str(TINY / "base"), *samples]
        mark += ["--passes", "40", "--mark-rate", "5e-3", "--max-tokens", "128", "--examples", "2"]
        mark += ["--compose-with", str(TINY / "adapters"), "--out", str(folder / "marked")]
        assert main(["watermark", "embed", *key, *mark, "--log-file", str(folder / "log"), "--device", "cpu"]) == 0

    return Marked(made_once(tmp_path_factory, "marked", make))
