"""Runs on the bundled miniature: their profiles, their lines, and folders of runs that are answered once a session."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from places import TINY
from rich.console import Console

from lora_retriever.experiment.profile import PROFILES, Profile, load_profile
from lora_retriever.generation.loop import Event, Loop

QUIET = Console(file=io.StringIO())


def write_profile(folder: Path, **changes: Any) -> str:
    """Write the bundled miniature's profile with some changes, like a user's file. Returns the file's path.

    Args:
        changes: fields of the profile. Settings of `generation` that are not named keep their values.
    """
    content = yaml.safe_load((PROFILES / "tiny.yaml").read_text())
    generation = {**content["generation"], **changes.pop("generation", {})}
    path = folder / "mine.yaml"
    text = yaml.safe_dump({**content, "generation": generation, **changes})
    path.write_text(text.replace("./tiny/", f"{TINY}/"))
    return str(path)


def tiny_profile(folder: Path, **changes: Any) -> Profile:
    """The profile of `write_profile`."""
    return load_profile(write_profile(folder, **changes))


def lines_of(results: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's file."""
    return [json.loads(line) for line in (results / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def answers_of(results: Path, name: str) -> list[str]:
    """The answers of a run, in the order of its file."""
    return [line["predicted_answer"] for line in lines_of(results, name)]


def before_reading(patch: pytest.MonkeyPatch, act: Callable[[list[list[int]]], object]) -> None:
    """Call `act` with the token ids of the prompts that the model is about to read."""
    read = Loop._read

    def watched(self: Loop, joining: Sequence[Any]) -> list[Event]:
        act([list(row.job.prompt) for row in joining])
        return read(self, joining)

    patch.setattr(Loop, "_read", watched)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one worker of pytest-xdist makes, and all workers of the session read.

    No test may write into the folder: a test that goes on with its runs copies the folder first. The runs begin with an
    empty cache of embeddings, as every test does: the last digits of embeddings depend on the texts that are encoded
    together.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LORA_RETRIEVER_CACHE", str(folder.with_suffix(".cache")))
                make(unfinished)
            unfinished.rename(folder)
    return folder
