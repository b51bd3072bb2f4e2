"""The backend of this process: one base model answers batch after batch. A batch that fails is halved."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise

from lora_retriever.backends.base import Outcome, broken_device, is_broken_device
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.batches import Halving, Request, plan_batches, ran_out_of_memory, unfinished
from lora_retriever.generation.composition import adapters_of
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import load_generator
from peft_composition import Composer, CompositionError, Gate


class LocalBackend:
    """Answers with a model in this process."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._halving: Halving[Request, Outcome] = Halving(failed_row)

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes, batch by batch. While a batch is computed, the adapters of the next one are read from disk.

        Raises:
            BackendError: the device is broken, and can compute nothing more in this process.
        """
        batches = unfinished(plan_batches(requests, self._generator.settings), done)
        for batch, following in pairwise([*batches, []]):
            now, then = (adapters_of([request.composition for request in requests]) for requests in (batch, following))
            self._generator.model.prefetch([*now, *then])
            yield self.answer(batch, mode, gate)

    def answer(self, batch: Sequence[Request], mode: str | Composer, gate: Gate | None = None) -> Outcome:
        """The outcome of one batch. A batch that fails is halved, down to the rows that cannot be answered.

        So a row that cannot be answered, whatever its error, costs no other row of the batch.

        Raises:
            BackendError: the device is broken, and can compute nothing more in this process.
        """
        together = partial(self._answered_together, mode=mode, gate=gate)
        outcome = Outcome()
        for _, result in self._halving.results(batch, together):
            outcome |= result
        return outcome

    def generator(self) -> Generator:
        """The model of this process."""
        return self._generator

    def close(self) -> None:
        """Nothing to do: the model is freed with this object."""

    def _answered_together(self, piece: Sequence[Request], mode: str | Composer, gate: Gate | None) -> Outcome:
        answers = self._generator.answer(
            [request.prompt for request in piece], [request.composition for request in piece], mode, gate
        )
        return Outcome({request.id: answer for request, answer in zip(piece, answers, strict=True)})


def failed_row(piece: Sequence[Request], error: Exception) -> Outcome | None:
    """The failure of a single row, or None for a piece that is still to be halved.

    Raises:
        BackendError: the error says that the device is broken.
    """
    if is_broken_device(error):
        raise broken_device(error) from error
    if len(piece) > 1:
        return None
    foreseen = isinstance(error, UserError | CompositionError) or ran_out_of_memory(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    tracebacks = {} if foreseen else {piece[0].id: "".join(traceback.format_exception(error))}
    return Outcome(failures={piece[0].id: reason}, tracebacks=tracebacks)


def load(profile: Profile, benchmark: Benchmark) -> LocalBackend:
    """The local backend of a profile.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    return LocalBackend(load_generator(model_source(profile, benchmark)))
