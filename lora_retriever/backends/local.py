"""The backend of this process: one base model, batch after batch. A batch that is too large is divided."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import torch

from lora_retriever.backends import Outcome, Request
from lora_retriever.backends.batches import plan_batches, unfinished
from lora_retriever.benchmark import Benchmark
from lora_retriever.generation import Generator, adapters_of, load_generator
from lora_retriever.profile import Profile
from peft_composition import AdapterError, AdapterMemoryError, Composer, Gate

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What plain RuntimeErrors say: those of torch's allocator on a CPU, and of CUDA past torch's allocator."""


class LocalBackend:
    """Answers with a model in this process."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._pieces = 1  # into so many a planned batch is divided, once one did not fit into memory

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes, batch by batch; while one is computed, the next one's adapters are read."""
        batches = unfinished(plan_batches(requests, self.generator.settings), done)
        for batch, following in pairwise([*batches, []]):
            now, then = (adapters_of([request.composition for request in requests]) for requests in (batch, following))
            self.generator.model.prefetch([*now, *then])
            yield self.answer(batch, mode, gate)

    def answer(self, batch: Sequence[Request], mode: str | Composer, gate: Gate | None = None) -> Outcome:
        """The outcome of one batch. One that does not fit into memory is halved, down to single rows.

        So is one with an adapter that cannot be read any more, that it may cost no other adapter's rows.
        """
        outcome = Outcome()
        waiting = list(divided(batch, self._pieces))
        while waiting:
            piece = waiting.pop(0)
            try:
                outcome |= self._answered_together(piece, mode, gate)
            except Exception as error:  # whatever a model's own code may raise must not cost the other rows
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                too_large, bad_adapter = ran_out_of_memory(error), isinstance(error, AdapterError)
                too_many_adapters = isinstance(error, AdapterMemoryError)
            else:
                continue
            # The error is gone here, and with it the frames that held the batch's tensors.
            free_memory()
            if len(piece) == 1 or not (too_large or bad_adapter):
                outcome |= Outcome(failures={request.id: reason for request in piece})
                continue
            waiting = [*divided(piece, 2), *waiting]
            if too_large and not too_many_adapters:  # the latter costs nothing to meet again
                self._pieces = max(self._pieces, -(-len(batch) // len(waiting[0])))
        return outcome

    def close(self) -> None:
        """The model goes with this object."""

    def _answered_together(self, piece: Sequence[Request], mode: str | Composer, gate: Gate | None) -> Outcome:
        answers = self.generator.answer(
            [request.prompt for request in piece], [request.composition for request in piece], mode, gate
        )
        return Outcome({request.id: answer for request, answer in zip(piece, answers, strict=True)})


def load_local(profile: Profile, benchmark: Benchmark) -> LocalBackend:
    """The local backend of a profile.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    return LocalBackend(
        load_generator(
            benchmark.base,
            benchmark.adapters,
            profile.generation,
            profile.torch_dtype,
            profile.torch_device,
            profile.adapters.memory,
        )
    )


def divided(batch: Sequence[Request], pieces: int) -> Iterator[Sequence[Request]]:
    """A batch in at most so many pieces of about one size, in its order."""
    size = -(-len(batch) // pieces)
    return (batch[start : start + size] for start in range(0, len(batch), size))


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a batch was too large: for the device, for the host, or for the adapters' memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | AdapterMemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def free_memory() -> None:
    """Give back what a batch that did not fit has left, once its error is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
