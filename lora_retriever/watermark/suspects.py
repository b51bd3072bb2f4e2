"""A suspect: anything that answers triggers. `local` and `served` have the two kinds of suspect.

A suspect is asked in the same way as by a user: one input, one answer. The suspect is not told which inputs are
triggers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lora_retriever.watermark.key import Key
from lora_retriever.watermark.statistics import Evidence, evidence_of, ranks_of

ANSWER_TOKENS = 6
"""Maximum length of an answer to a trigger, in tokens: enough for one word."""
FIRST_WORD = re.compile(r"\W*(\w+)")


@dataclass(frozen=True)
class Replies:
    """The answers of a suspect.

    Attributes:
        texts: the answer to each input.
        scores: log-probability of every word as the beginning of each answer, [inputs, M], in nats; words that the
            suspect does not show have −inf. None: the suspect shows no log-probabilities.
    """

    texts: list[str]
    scores: NDArray[np.float64] | None = None


class Suspect(Protocol):
    """Answers inputs."""

    @property
    def name(self) -> str:
        """The suspect in words, for the report."""

    def replies(self, inputs: Sequence[str], words: Sequence[str]) -> Replies:
        """The answers to `inputs`, and the log-probabilities of `words` if the suspect shows log-probabilities."""


def first_word(answer: str) -> str:
    """The first word of an answer without case, in Unicode form NFC; empty if there is none.

    Only the first word of an answer counts.
    """
    found = FIRST_WORD.match(unicodedata.normalize("NFC", answer.casefold()))
    return found[1] if found else ""


def verify(key: Key, suspect: Suspect) -> Evidence:
    """Ask a suspect all triggers of a key, and weigh the answers."""
    return weigh(key, suspect.replies([trigger.text for trigger in key.triggers], key.words))


def weigh(key: Key, replies: Replies) -> Evidence:
    """The evidence in the answers to the triggers of a key."""
    index = {word: place for place, word in enumerate(key.words)}
    answers = np.array([index.get(first_word(text), -1) for text in replies.texts])  # [n]
    targets = np.array([index[trigger.target] for trigger in key.triggers])  # [n]
    ranks = None if replies.scores is None else ranks_of(replies.scores)
    return evidence_of(answers, targets, len(key.words), ranks, common_target=key.design != "keyed")
