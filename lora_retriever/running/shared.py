"""`Answering`: the objects that the runs of one evaluation share during answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.backends import Backend
from lora_retriever.generation.prompt import Prompt
from lora_retriever.methods.context import Resources
from lora_retriever.running.answer_cache import AnswerCache
from lora_retriever.running.error_log import ErrorLog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answering:
    """The objects that the runs of one evaluation share during answering.

    Attributes:
        prompts: the prompt of each row.
        tokenizer: the base model's tokenizer.
        cache: the answers that are known from other runs.
        log: where the tracebacks of rows go.
    """

    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    resources: Resources
    backend: Backend
    cache: AnswerCache
    log: ErrorLog
