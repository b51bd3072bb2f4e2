"""Dividing requests into batches: of similar length, sized by tokens, always the same ones for the same requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lora_retriever.backends import Request
from lora_retriever.profile import GenerationSection

SHORTEST = 1 / 2
"""A prompt shorter than this share of its batch's longest begins another batch: most of it would be padding."""


def plan_batches(requests: Sequence[Request], settings: GenerationSection) -> list[list[Request]]:
    """Batches of prompts of similar length, the longest first: what does not fit into memory shows at once.

    A batch has at most `settings.batch_size` rows and, if `settings.batch_tokens` is set, takes at most that many
    tokens once every row is padded to the longest and has its new tokens; a single row is always a batch. Fewer rows
    are in it where lengths are too far apart.
    """
    ordered = sorted(requests, key=lambda request: (-len(request.prompt.token_ids), request.id))
    batches: list[list[Request]] = []
    longest, room = 0, 0  # of the last batch: its longest prompt, and the rows that still fit
    for request in ordered:
        length = len(request.prompt.token_ids)
        if room == 0 or length < SHORTEST * longest:
            batches.append([])
            longest, room = length, settings.rows_that_fit(length)
        batches[-1].append(request)
        room -= 1
    return batches


def unfinished(batches: Sequence[list[Request]], done: Collection[int]) -> list[list[Request]]:
    """The batches that hold a request whose id is not `done`."""
    return [batch for batch in batches if any(request.id not in done for request in batch)]
