"""The seam of every backend: a backend is given requests and yields their outcomes, in any order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lora_retriever.generation.answer import Answer
    from lora_retriever.generation.batches import Request
    from lora_retriever.generation.generator import Generator
    from peft_composition import Composer, Gate


@dataclass(frozen=True)
class Outcome:
    """What became of some requests, by the requests' ids.

    Attributes:
        answers: the answers.
        failures: why a request has no answer.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def __or__(self, other: Outcome) -> Outcome:
        return Outcome(self.answers | other.answers, self.failures | other.failures)


class Backend(Protocol):
    """Anything that answers requests."""

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes of all requests but those of the ids `done`, each as soon as the backend knows it.

        A run that is started again comes with the same requests, and more of them are done. The last bits of an answer
        may depend on its batch: such a backend always divides *all* requests into the same batches, and skips the
        batches that are wholly done.
        """
        ...

    def generator(self) -> Generator:
        """The model, for methods that look into it (`Method.reads` names "model").

        Raises:
            UserError: the model cannot be loaded, or the backend has none to look into.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds. A closed backend answers nothing."""
        ...
