"""The log of an experiment: one JSON line for each trial, so that a campaign goes on where it stopped."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lora_retriever
from lora_retriever.files import hash_path, write_json

PACKAGES = ("torch", "transformers", "safetensors", "hypothesis")
FIGURES = "figures.json"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        key: what was tried; a campaign that is started again does not try this key again.
        kind: the group of trials to which the trial belongs.
        problems: the promises that were broken. Empty: all promises held.
        facts: numbers that are added up, such as kills.
    """

    key: str
    kind: str
    problems: list[str]
    facts: dict[str, float]


class Log:
    """The trials of one experiment, in `OUT/EXPERIMENT.jsonl`. Trials of other code are moved to another file."""

    def __init__(self, out: Path, experiment: str) -> None:
        self.experiment = experiment
        self.out = out
        self._path = out / f"{experiment}.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        code = hash_path(Path(lora_retriever.__file__).parent)
        self.trials: dict[str, Trial] = {}
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
        if lines and json.loads(lines[0]).get("code") == code:
            trials = {trial.key: trial for trial in map(_trial, lines[1:])}
            self.trials = {key: trial for key, trial in trials.items() if not trial.problems}  # the others again
            return
        if lines:
            os.replace(self._path, self._path.with_suffix(f".{json.loads(lines[0]).get('code', '')[:12]}.jsonl"))
        self._write({"experiment": experiment, "code": code, **machine()})

    def add(self, key: str, kind: str, problems: list[str], **facts: float) -> Trial:
        """Note a trial."""
        trial = self.trials[key] = Trial(key, kind, problems, facts)
        self._write(trial.__dict__)
        for problem in problems:
            print(f"PROBLEM {self.experiment} {key}: {problem}", flush=True)
        return trial

    def missing(self, keys: list[str]) -> Iterator[str]:
        """The keys that were not tried yet."""
        return (key for key in keys if key not in self.trials)

    def figures(self) -> dict[str, Any]:
        """Numbers of trials by kind, and every problem."""
        kinds: dict[str, Counter[str]] = {}
        for trial in self.trials.values():
            counts = kinds.setdefault(trial.kind, Counter())
            counts["trials"] += 1
            counts["trials with problems"] += bool(trial.problems)
            for name, number in trial.facts.items():
                counts[name] += number  # type: ignore[assignment]
        problems = {trial.key: trial.problems for trial in self.trials.values() if trial.problems}
        rounded = {kind: {name: round(n, 1) for name, n in counts.items()} for kind, counts in kinds.items()}
        return {"kinds": rounded, "problems": problems}

    def save(self) -> dict[str, Any]:
        """Write the figures into `OUT/figures.json` beside those of other experiments, and return them."""
        path = self.out / FIGURES
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        figures = self.figures()
        write_json(path, {**known, self.experiment: {**machine(), **figures}})
        return figures

    def _write(self, content: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


def machine() -> dict[str, Any]:
    """When and where something was measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "versions": {package: version(package) for package in PACKAGES},
    }


def _trial(line: str) -> Trial:
    return Trial(**json.loads(line))
