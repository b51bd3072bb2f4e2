"""Backends: what answers a benchmark's prompts. A profile names one in a line: `backend: local`.

A backend is given requests and gives their outcomes as they come, in batches of its own choosing and in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lora_retriever.benchmark import Benchmark
from lora_retriever.generation import Answer
from lora_retriever.methods.base import Composition
from lora_retriever.profile import Profile
from lora_retriever.prompt import Prompt
from peft_composition import Composer, Gate


@dataclass(frozen=True)
class Request:
    """A prompt to be answered under a composition. `id` is its row's."""

    id: int
    prompt: Prompt
    composition: Composition


@dataclass(frozen=True)
class Outcome:
    """What became of some requests, by id: their answers, or why they have none."""

    answers: dict[int, Answer] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def __or__(self, other: Outcome) -> Outcome:
        return Outcome(self.answers | other.answers, self.failures | other.failures)


class Backend(Protocol):
    """Anything that answers requests."""

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes of all requests but those of the ids `done`, each as soon as it is known.

        A run that is started again comes with the same requests and more of them done: a backend whose answers depend
        on the batch in their last bits makes the same batches of all requests, and skips those wholly done.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds; it answers nothing any more."""
        ...


def load_backend(profile: Profile, benchmark: Benchmark) -> Backend:
    """The backend that a profile names, with the base model and the adapters loaded.

    Raises:
        UserError: it cannot be loaded; for an extra that is not installed, the message says how to install it.
    """
    # Each is imported only where it is used: vLLM and Ray are extras.
    if profile.backend == "vllm":
        from lora_retriever.backends.vllm import load_vllm

        return load_vllm(profile, benchmark)
    if profile.backend == "ray":
        from lora_retriever.backends.ray import load_ray

        return load_ray(profile, benchmark)
    from lora_retriever.backends.local import load_local

    return load_local(profile, benchmark)
