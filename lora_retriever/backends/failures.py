"""The handling of rows that cannot be answered."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from lora_retriever.backends.base import Outcome, broken_device, is_broken_device
from lora_retriever.errors import UserError
from lora_retriever.generation.batches import Request, ran_out_of_memory
from peft_composition import CompositionError


def failed_row(request: Request, error: Exception) -> Outcome:
    """The failure of a row. An error that was not foreseen comes with its traceback."""
    foreseen = isinstance(error, UserError | CompositionError) or ran_out_of_memory(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    tracebacks = {} if foreseen else {request.id: "".join(traceback.format_exception(error))}
    return Outcome(failures={request.id: reason}, tracebacks=tracebacks)


def failed_alone(piece: Sequence[Request], error: Exception) -> Outcome | None:
    """The failure of a single row, or None for several rows, which the caller halves.

    Raises:
        BackendError: the error says that the device is broken.
    """
    if is_broken_device(error):
        raise broken_device(error) from error
    return failed_row(piece[0], error) if len(piece) == 1 else None
