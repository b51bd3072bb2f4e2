"""Known answers by the hash of everything that the answers depend on, so that no prompt is answered twice under the
same composition.

Runs share many answers: `selection` and `best_selection` agree on every row whose own adapter is retrieved, and masking
changes nothing where the own adapter is not retrieved. The answers are read from the runs of the results folder; there
is no other copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_retriever.files import read_bytes
from lora_retriever.generation.answer import Answer
from lora_retriever.running.run_file import Line, read_lines

CONDITIONS = ("base", "dtype", "device", "backend")
"""Fields of a configuration that decide an answer beside the prompt and the composition."""
BATCHING = ("batch_size", "batch_tokens")
"""Fields of a configuration's `generation` that decide the size of batches only."""
INTERCHANGEABLE = ("mixture", "fusion")
"""The modes that compose a single adapter of weight 1 in the same way. A merge may trim such an adapter."""


class AnswerCache:
    """The answers of a results folder, by their keys."""

    def __init__(self, versions: Mapping[str, str], code: Mapping[str, str] | None = None) -> None:
        """Begin with no answers.

        Args:
            versions: the versions of packages by which a run must have been made.
            code: the hashes of the source files by which a run must have been answered, by the files' names.
        """
        self._versions = dict(versions)
        self._code = dict(code or {})
        self._answers: dict[str, Answer] = {}

    def find(self, key: str) -> Answer | None:
        """The answer of this key; None: the answer is not known."""
        return self._answers.get(key)

    def learn(self, configuration: Mapping[str, Any], lines: Sequence[Line]) -> None:
        """Remember the answers of a run. Under a gate nothing is remembered: a row then records other weights."""
        if configuration["method"]["gate"] is not None:
            return
        for line in lines:
            if "stages" in line:
                self._learn_stages(configuration, line["stages"])
                continue
            weights = dict(zip(line["adapters"], line["weights"], strict=True))
            key = answer_key(configuration, line["inputs"], weights, line.get("options"), line.get("task", ""))
            likelihoods = tuple(line["likelihoods"]) if "likelihoods" in line else None
            self._answers[key] = Answer(line["predicted_answer"], line["generated_tokens"], likelihoods=likelihoods)

    def _learn_stages(self, configuration: Mapping[str, Any], stages: Sequence[Sequence[Line]]) -> None:
        """Remember the texts that answered the questions of a procedure."""
        for reply in (reply for stage in stages for reply in stage if "answer" in reply):
            weights = dict(zip(reply["adapters"], reply["weights"], strict=True))
            key = answer_key(configuration, reply["inputs"], weights)
            self._answers[key] = Answer(reply["answer"], reply["generated_tokens"])

    def learn_folder(self, results: Path) -> None:
        """Remember the answers of all runs in a folder that the same code and packages made.

        Runs that keep the answers of earlier code, and unreadable files, are passed over.
        """
        for meta_path in sorted(results.glob("*.meta.json")):
            name = meta_path.name.removesuffix(".meta.json")
            try:
                meta = json.loads(read_bytes(meta_path))
                code = meta.get("code", {})
                same_code = code.get("files", {}).items() >= self._code.items() and not code.get("kept")
                if meta["versions"] == self._versions and same_code:
                    self.learn(meta["configuration"], list(read_lines(results, name).values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue


def answer_key(
    configuration: Mapping[str, Any],
    inputs: str,
    weights: Mapping[str, float],
    options: Sequence[str] | None = None,
    task: str = "",
) -> str:
    """The hash of everything that an answer depends on. Adapters count by the hashes of their files.

    The order of the adapters does not count. The mode does not count if there are no adapters, or one adapter of
    weight 1 under fusion or mixture: the two modes then compose the same.

    Args:
        options: the options of the row. None: the row is answered by decoding.
        task: the task of the row, which decides the examples in the row's prompt.
    """
    hashes = configuration.get("adapters", {})
    composition = sorted((hashes[name], weight) for name, weight in weights.items())
    mode, gate = configuration["method"]["mode"], configuration["method"]["gate"]
    names: list[str] = []
    if mode not in INTERCHANGEABLE or gate is not None:
        names = sorted(weights)  # DARE draws by the name of an adapter, and a gate may use names
    elif not composition or [weight for _, weight in composition] == [1]:
        mode = None
    generation = {name: value for name, value in configuration["generation"].items() if name not in BATCHING}
    examples = [configuration.get("pool"), task] if generation.get("shots") else None
    content = [
        {name: configuration.get(name) for name in CONDITIONS},
        examples,
        generation,
        inputs,
        options,
        mode,
        gate,
        names,
        composition,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
