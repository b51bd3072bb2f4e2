"""`Job`: a prompt to continue under a composition. `WaitingRow`: a job with its tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.sampling import Sampling
from lora_retriever.generation.text import TextStream

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.generation.limits import Limits
    from lora_retriever.generation.settings import GenerationSection
    from peft_composition import ComposableModel, Composer, Gate


Kind = tuple[str, tuple[tuple[str, float], ...]]
"""The key of a mode, and the adapters with their weights."""


class Decoder(Protocol):
    """Everything that the loop needs to continue prompts. A `Generator` has all these attributes.

    Attributes:
        model: the base model with its adapters.
        limits: the limits of the base.
        tokenizer: makes the texts in which stop texts are looked for.
        settings: `batch_size` and `share_prefix` count.
        eos_ids: the EOS tokens.
        pad_id: the padding token.
        prompt_end: the tokens after every prompt that the encoder of an encoder-decoder base reads.
    """

    model: ComposableModel
    limits: Limits
    tokenizer: PreTrainedTokenizerBase
    settings: GenerationSection
    eos_ids: list[int]
    pad_id: int
    prompt_end: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """A prompt to continue.

    Attributes:
        prompt: token ids, at least one.
        composition: the adapters and their weights.
        mode: the rule by which the adapters are composed.
        gate: weighs the adapters by token. None: no gate.
        scored: number of tokens at the end of the prompt whose log-probabilities are told.
        continues: whether the text goes on with the prompt's text, so that a space at the border belongs to the text.
        trims: whether white space around the text is left out before stop texts are looked for.
        alone: the job is read and decoded in a batch of its own.
    """

    prompt: Sequence[int]
    composition: Composition
    mode: str | Composer
    sampling: Sampling
    gate: Gate | None = None
    scored: int = 0
    continues: bool = False
    trims: bool = False
    alone: bool = False

    def text_stream(self, tokenizer: PreTrainedTokenizerBase) -> TextStream:
        """The text that the new tokens make, up to the first stop text; empty at first."""
        before = self.prompt if self.continues else ()
        return TextStream(tokenizer, self.sampling.stop, before, self.trims)


@dataclass
class WaitingRow:
    """A job, waiting or in the batch, with its tokens so far."""

    id: int
    job: Job
    draw: torch.Generator | None
    text: TextStream | None  # the text that is searched for stop texts
    tokens: list[int] = field(default_factory=list)
    told: bool = False  # whether the scored tokens of the prompt have been told

    @cached_property
    def kind(self) -> Kind:
        """A key that is equal for all rows that are composed alike."""
        return kind_of(self.job)

    @property
    def ids(self) -> list[int]:
        """The tokens to read: the prompt, and the tokens that were decoded before the row had to leave the batch."""
        return [*self.job.prompt, *self.tokens]

    @property
    def most(self) -> int:
        """Maximum number of tokens of the row."""
        return len(self.job.prompt) + self.job.sampling.max_new_tokens

    @property
    def still(self) -> int:
        """Maximum number of tokens that the row may still get."""
        return self.job.sampling.max_new_tokens - len(self.tokens)


def kind_of(job: Job) -> Kind:
    """A key that is equal for all jobs that are composed alike, whatever the order of their adapters."""
    weights = job.composition.weights
    return mode_key(job), tuple(sorted((name, weight) for name, weight in weights.items() if weight))


def mode_key(job: Job) -> str:
    """A text that is equal for the jobs whose adapters are composed alike. Without adapters every mode is alike."""
    if job.gate is None and not any(job.composition.weights.values()):
        return ""
    return job.mode if isinstance(job.mode, str) else f"{type(job.mode).__name__} {job.mode!r} {id(job.mode)}"
