"""Answers found by what they depend on, so that no prompt is answered twice under one composition.

Configurations share many rows: `selection` and `best_selection` agree wherever the own adapter is found, and masking an
adapter that was not retrieved changes nothing. The runs in a results folder are the store; no other copy is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_retriever.generation.answer import Answer
from lora_retriever.running.run_file import Line, read_lines

# Of a run's configuration, what decides an answer beside its prompt and composition.
CONDITIONS = ("base", "dtype", "device", "backend")
# Of its `generation`, what bears on the size of batches alone.
BATCHING = ("batch_size", "batch_tokens")
# The modes that agree on a single adapter of weight 1; a merge may trim it.
INTERCHANGEABLE = ("mixture", "fusion")


class AnswerCache:
    """The answers of a results folder by their key; `versions` are those that an earlier run must have been made by."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        self._versions = dict(versions)
        self._answers: dict[str, Answer] = {}

    def find(self, key: str) -> Answer | None:
        """The answer of this key, if it is known."""
        return self._answers.get(key)

    def learn(self, configuration: Mapping[str, Any], lines: Sequence[Line]) -> None:
        """Remember the answers of a run. Under a gate, what a row records is not what the gate was offered."""
        if configuration["method"]["gate"] is not None:
            return
        for line in lines:
            key = answer_key(configuration, line["inputs"], dict(zip(line["adapters"], line["weights"], strict=True)))
            self._answers[key] = Answer(line["predicted_answer"], line["generated_tokens"])

    def learn_folder(self, results: Path) -> None:
        """Remember the answers of all runs in a folder; what is unreadable is passed over."""
        for meta_path in sorted(results.glob("*.meta.json")):
            name = meta_path.name.removesuffix(".meta.json")
            try:
                meta = json.loads(meta_path.read_text(encoding="utf-8"))
                if meta["versions"] == self._versions:
                    self.learn(meta["configuration"], list(read_lines(results, name).values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue


def answer_key(configuration: Mapping[str, Any], inputs: str, weights: Mapping[str, float]) -> str:
    """The hash of all that an answer depends on, adapters by the hashes of their files.

    The order of adapters does not count; nor does the mode where there are none, or one of weight 1, as fusion and
    mixture agree there.
    """
    hashes = configuration.get("adapters", {})
    composition = sorted((hashes[name], weight) for name, weight in weights.items())
    mode, gate = configuration["method"]["mode"], configuration["method"]["gate"]
    names: list[str] = []
    if mode not in INTERCHANGEABLE or gate is not None:
        names = sorted(weights)  # DARE draws by an adapter's name, a gate may go by it
    elif not composition or [weight for _, weight in composition] == [1]:
        mode = None
    generation = {name: value for name, value in configuration["generation"].items() if name not in BATCHING}
    content = [
        {name: configuration.get(name) for name in CONDITIONS},
        generation,
        inputs,
        mode,
        gate,
        names,
        composition,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
