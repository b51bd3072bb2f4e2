"""The interface of every backend: a backend is given requests and yields their outcomes, in any order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lora_retriever.errors import UserError, one_line_of

if TYPE_CHECKING:
    from lora_retriever.generation.answer import Answer
    from lora_retriever.generation.batches import Request
    from lora_retriever.generation.generator import Generator
    from peft_composition import Composer, Gate

BROKEN_DEVICE = ("device-side assert", "illegal memory access", "unspecified launch failure", "CUDA error: misaligned")
"""Messages after which a CUDA device computes nothing more in this process."""


@dataclass(frozen=True)
class Outcome:
    """The answers and the failures of some requests, by the requests' ids.

    Attributes:
        answers: the answers.
        failures: why a request has no answer, in one line.
        tracebacks: where an unexpected error was raised; some failures have one.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    tracebacks: dict[int, str] = field(default_factory=dict, compare=False)

    def __or__(self, other: Outcome) -> Outcome:
        return Outcome(self.answers | other.answers, self.failures | other.failures, self.tracebacks | other.tracebacks)


class BackendError(UserError):
    """A backend that can answer nothing more: its device or its cluster failed. The answers so far are good."""


def is_broken_device(error: BaseException) -> bool:
    """Whether an error says that a CUDA device computes nothing more in this process.

    Every error of an accelerator but a lack of memory leaves the device broken.
    """
    import torch

    from lora_retriever.generation.batches import ran_out_of_memory

    if isinstance(error, torch.AcceleratorError) and not ran_out_of_memory(error):
        return True
    return any(words in str(error) for words in BROKEN_DEVICE)


def broken_device(error: BaseException) -> BackendError:
    """The message for such an error."""
    return BackendError(
        f"the device failed ({one_line_of(error)}) and computes nothing more in this process; the rows done so far are "
        "on disk. Start the same command again"
    )


class Backend(Protocol):
    """Anything that answers requests."""

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes of all requests whose ids are not in `done`, each as soon as the backend has the outcome.

        When a run is started again, `requests` is the same, and `done` has more ids. If the last bits of an answer
        depend on the answer's batch, the backend always divides *all* requests into the same batches, and skips the
        batches that are wholly done.

        Raises:
            BackendError: nothing more can be answered.
        """
        ...

    def generator(self) -> Generator:
        """The model, for methods that look into it (`Method.reads` names "model").

        Raises:
            UserError: the model cannot be loaded, or the backend has no model to look into.
        """
        ...

    def close(self) -> None:
        """Free the backend's memory and processes. A closed backend answers nothing."""
        ...
