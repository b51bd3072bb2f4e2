"""Requests and their division into batches: of similar length, sized by tokens, equal for equal requests.

`Halving` is used everywhere where a batch may not fit into memory: the batch is halved, down to single rows.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.prompt import Prompt
from lora_retriever.generation.settings import GenerationSection
from peft_composition.errors import AdapterMemoryError

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of plain RuntimeErrors that mean a lack of memory: on a CPU, and outside torch's allocator on a GPU."""


@dataclass(frozen=True)
class WindowSize:
    """The minimum size of a window, if there are enough rows.

    Attributes:
        batches: number of full batches.
        rows: number of rows.
    """

    batches: int
    rows: int


LOCAL_WINDOW = WindowSize(8, 256)
"""The tail of a window is one batch of eight, and the paper's rows make ten windows of 256 rows."""
SHARED_WINDOW = WindowSize(2, 1)
"""Where workers share the windows of a run: with larger windows, most workers would wait for the last windows."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Request:
    """A prompt to answer under a composition. `id` is the id of the row."""

    id: int
    prompt: Prompt
    composition: Composition


def plan_batches(requests: Sequence[Request], settings: GenerationSection) -> list[list[Request]]:
    """Batches of prompts of similar length, the longest first, so that a lack of memory shows at once.

    A batch has at most `settings.batch_size` rows. If `settings.batch_tokens` is set, a batch also has at most that
    many tokens, counted with every row padded to the longest prompt and with every row's new tokens. A single row is
    always a batch.
    """
    ordered = longest_first(requests)
    batches: list[list[Request]] = []
    room = 0  # number of rows that still fit into the last batch
    for request in ordered:
        if room == 0:
            batches.append([])
            room = settings.rows_that_fit(len(request.prompt.token_ids))
        batches[-1].append(request)
        room -= 1
    return batches


def longest_first(requests: Sequence[Request]) -> list[Request]:
    """The requests with the longest prompts first; of prompts of equal length the smaller id first."""
    return sorted(requests, key=lambda request: (-len(request.prompt.token_ids), request.id))


def plan_windows(
    requests: Sequence[Request], settings: GenerationSection, least: WindowSize = LOCAL_WINDOW
) -> list[list[Request]]:
    """Windows of prompts, the longest first. Within a window, prompts join the batch as rows end.

    The last bits of an answer may depend on the other rows of the batch, and these rows depend on when earlier rows
    have ended. So a window is always computed from its beginning, and a window that is wholly on disk is not computed
    again: a run that was killed gives the same answers as a run that was not. At the end of a window, no prompt waits,
    and places of the batch stay empty. So a large window uses the batch better. A small window costs less when the
    window is repeated.
    """
    ordered = longest_first(requests)
    windows: list[list[Request]] = []
    while ordered:
        size = max(least.rows, least.batches * settings.rows_that_fit(len(ordered[0].prompt.token_ids)))
        windows.append(ordered[:size])
        ordered = ordered[size:]
    return windows


def unfinished(batches: Sequence[list[Request]], done: Collection[int]) -> list[list[Request]]:
    """The batches with at least one request whose id is not in `done`."""
    return [batch for batch in batches if any(request.id not in done for request in batch)]


def divided(batch: Sequence[Item], pieces: int) -> Iterator[Sequence[Item]]:
    """A batch in at most `pieces` pieces of about equal size, in the batch's order."""
    size = -(-len(batch) // pieces)
    return (batch[start : start + size] for start in range(0, len(batch), size))


class Halving(Generic[Item, Result]):
    """Computes batches piece by piece. A piece whose computation fails may be halved and computed again.

    Once a batch did not fit into memory, later batches begin in as many pieces as that batch needed.
    """

    def __init__(
        self, give_up: Callable[[Sequence[Item], Exception], Result | None], clean: Callable[[], None] = lambda: None
    ) -> None:
        """Begin with the functions that are called after a failed computation.

        Args:
            give_up: called with the piece and the error. The function returns a result for the piece, or raises an
                error, or returns None. After None, the piece is halved, or the error is raised if the piece has a
                single element.
            clean: called after a failed computation, before memory is freed.
        """
        self._give_up = give_up
        self._clean = clean
        self._pieces = 1

    def results(
        self, batch: Sequence[Item], compute: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """The pieces of a batch with their computed results, in the batch's order."""
        waiting = list(divided(batch, self._pieces))
        while waiting:
            piece = waiting.pop(0)
            failed = lacks_memory = too_large = False
            try:
                result: Result | None = compute(piece)
            except Exception as error:  # a model's own code may raise anything
                failed, lacks_memory, too_large = True, ran_out_of_memory(error), is_too_large(error)
                result = self._give_up(piece, error)
                if result is None and len(piece) == 1:
                    raise
            if failed:  # the error is gone here, and so are the frames that held the tensors of the piece
                self._clean()
            if lacks_memory:
                free_memory()
            if result is not None:
                yield piece, result
                continue
            waiting = [*divided(piece, 2), *waiting]
            if too_large:
                self._pieces = max(self._pieces, -(-len(batch) // len(waiting[0])))


def is_too_large(error: Exception) -> bool:
    """Whether an error says that the batch itself was too large for the device or the host.

    Adapters that exceed their own memory limit are no reason to halve later batches, because the same error in a later
    batch costs no time.
    """
    return ran_out_of_memory(error) and not isinstance(error, AdapterMemoryError)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory was lacking: of the device, of the host, or of the adapters' limit."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError | AdapterMemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def free_memory() -> None:
    """Give the memory of a failed batch back, once the error and its frames are gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
