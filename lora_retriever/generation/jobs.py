"""`Job`: a prompt to continue under a composition; and a job with what it has got so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.sampling import Sampling

if TYPE_CHECKING:
    import torch

    from peft_composition import Composer, Gate


@dataclass(frozen=True)
class Job:
    """A prompt to continue.

    Attributes:
        prompt: token ids, at least one.
        composition: the adapters and their weights.
        mode: the rule by which they are composed.
        gate: weighs the adapters by token. None: no gate.
        scored: number of tokens at the end of the prompt whose log-probabilities are told.
        alone: the job is read and decoded in a batch of its own.
    """

    prompt: Sequence[int]
    composition: Composition
    mode: str | Composer
    sampling: Sampling
    gate: Gate | None = None
    scored: int = 0
    alone: bool = False


@dataclass
class WaitingRow:
    """A job, waiting or in the batch, with what it has got so far."""

    id: int
    job: Job
    draw: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    told: bool = False  # whether the scored tokens of the prompt have been told

    @property
    def ids(self) -> list[int]:
        """The tokens that are read: the prompt, and what was decoded before the row had to give its place up."""
        return [*self.job.prompt, *self.tokens]

    @property
    def most(self) -> int:
        """Maximum number of tokens of the row."""
        return len(self.job.prompt) + self.job.sampling.max_new_tokens

    @property
    def still(self) -> int:
        """Maximum number of tokens that the row may still get."""
        return self.job.sampling.max_new_tokens - len(self.tokens)


def mode_key(job: Job) -> str:
    """A text that is equal for the jobs whose adapters are composed alike. Without adapters every mode is alike."""
    if job.gate is None and not any(job.composition.weights.values()):
        return ""
    return job.mode if isinstance(job.mode, str) else f"{type(job.mode).__name__} {job.mode!r} {id(job.mode)}"
