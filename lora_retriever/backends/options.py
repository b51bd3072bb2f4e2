"""Rows with options: the likelihoods of their options, in place of an answer that is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_retriever.backends.base import Outcome
from lora_retriever.backends.failures import failed_alone
from lora_retriever.generation.batches import Halving, Request
from lora_retriever.generation.generator import Generator
from peft_composition import Composer, Gate


def by_kind(requests: Sequence[Request]) -> tuple[list[Request], list[Request]]:
    """The requests that are decoded, and the requests whose options are scored."""
    decoded = [request for request in requests if not request.prompt.options]
    return decoded, [request for request in requests if request.prompt.options]


def scored(
    generator: Generator, requests: Sequence[Request], mode: str | Composer, gate: Gate | None = None
) -> Iterator[Outcome]:
    """The likelihoods of the options of some requests, batch by batch.

    A batch that fails is halved, so that no row costs another row.

    Raises:
        BackendError: the device is broken, and can compute nothing more in this process.
    """

    def compute(piece: Sequence[Request]) -> Outcome:
        prompts, compositions = [request.prompt for request in piece], [request.composition for request in piece]
        answers = generator.score(prompts, compositions, mode, gate)
        return Outcome({request.id: answer for request, answer in zip(piece, answers, strict=True)})

    halving: Halving[Request, Outcome] = Halving(failed_alone)
    size = generator.settings.batch_size
    for start in range(0, len(requests), size):
        for _, outcome in halving.results(requests[start : start + size], compute):
            yield outcome
