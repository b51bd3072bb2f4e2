"""The backend of this process: one base model answers windows of rows, which join the batch as others end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing

from lora_retriever.backends.base import Outcome, broken_device, is_broken_device
from lora_retriever.backends.failures import failed_row
from lora_retriever.backends.options import by_kind, scored
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.batches import Request, plan_windows, unfinished
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import load_generator
from lora_retriever.generation.loop import Job, Loop
from lora_retriever.generation.sampling import Sampling
from peft_composition import Composer, Gate


class LocalBackend:
    """Answers with a model in this process."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        # maximum number of rows of the last window's batch: smaller than in the settings if memory has run out
        self._room: int | None = None

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes, each as soon as the row has ended. A window that is not wholly done is answered anew.

        Raises:
            BackendError: the device is broken, and can compute nothing more in this process.
        """
        for window in unfinished(plan_windows(requests, self._generator.settings), done):
            yield from self._answered(window, mode, gate)

    def answer(self, batch: Sequence[Request], mode: str | Composer, gate: Gate | None = None) -> Outcome:
        """The outcome of some requests. A row that cannot be answered, whatever its error, costs no other row.

        Raises:
            BackendError: the device is broken, and can compute nothing more in this process.
        """
        outcome = Outcome()
        for result in self._answered(batch, mode, gate):
            outcome |= result
        return outcome

    def generator(self) -> Generator:
        """The model of this process."""
        return self._generator

    def close(self) -> None:
        """Nothing to do: the model is freed with this object."""

    def _answered(self, window: Sequence[Request], mode: str | Composer, gate: Gate | None) -> Iterator[Outcome]:
        """The outcomes of a window: rows are decoded, and rows with options are scored."""
        decoded, with_options = by_kind(window)
        if decoded:
            yield from self._decoded(decoded, mode, gate)
        yield from scored(self._generator, with_options, mode, gate)

    def _decoded(self, window: Sequence[Request], mode: str | Composer, gate: Gate | None) -> Iterator[Outcome]:
        """The outcomes of rows that are decoded. Rows join the batch in the window's order as others end."""
        settings = self._generator.settings
        longest = max(len(request.prompt.token_ids) for request in window)
        loop = Loop(
            self._generator,
            settings.tokens_held(longest),
            read_tokens=settings.tokens_read(longest),
            steps=0,  # nobody waits for the next token: the batch is filled before a token is decoded
            room=self._room,
            is_fatal=is_broken_device,
        )
        asked: dict[int, Request] = {}
        sampling = Sampling(settings.max_new_tokens)
        with closing(loop):
            for request in window:
                try:
                    id = loop.add(Job(request.prompt.token_ids, request.composition, mode, sampling, gate))
                except UserError as error:
                    yield failed_row(request, error)
                else:
                    asked[id] = request
            try:
                for events in loop.ended():
                    outcome = Outcome()
                    for event in events:
                        request = asked[event.id]
                        if event.error is not None:
                            outcome |= failed_row(request, event.error)
                        else:
                            outcome |= Outcome({request.id: self._generator.answer_of(event)})
                    yield outcome
            except Exception as error:
                if is_broken_device(error):
                    raise broken_device(error) from error
                raise
        self._room = loop.room


def load(profile: Profile, benchmark: Benchmark) -> LocalBackend:
    """The local backend of a profile.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    return LocalBackend(load_generator(model_source(profile, benchmark)))
