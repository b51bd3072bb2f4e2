"""Dividing requests into batches: of similar length, sized by tokens, always the same ones for the same requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lora_retriever.backends import Request
from lora_retriever.profile import GenerationSection


def plan_batches(requests: Sequence[Request], settings: GenerationSection) -> list[list[Request]]:
    """Batches of prompts of similar length, the longest first: what does not fit into memory shows at once.

    A batch has at most `settings.batch_size` rows and, if `settings.batch_tokens` is set, takes at most that many
    tokens once every row is padded to the longest and has its new tokens; a single row is always a batch.
    """
    ordered = sorted(requests, key=lambda request: (-len(request.prompt.token_ids), request.id))
    batches: list[list[Request]] = []
    room = 0  # rows that still fit into the last batch
    for request in ordered:
        if room == 0:
            batches.append([])
            room = settings.rows_that_fit(len(request.prompt.token_ids))
        batches[-1].append(request)
        room -= 1
    return batches


def unfinished(batches: Sequence[list[Request]], done: Collection[int]) -> list[list[Request]]:
    """The batches that hold a request whose id is not `done`."""
    return [batch for batch in batches if any(request.id not in done for request in batch)]
