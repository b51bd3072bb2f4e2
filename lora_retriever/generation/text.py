"""From tokens to the text of an answer, while the tokens still come. Works on token ids and texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""The character that tokenizers write if some bytes of a character are still to come."""
CONTEXT = 6
"""Number of tokens before the answer that are decoded with the answer, so that a space at the border is kept."""


class TextStream:
    """The text of one answer. Characters that may still become part of a stop text are held back.

    Attributes:
        text: the whole text so far, with the characters that are held back.
        stopped: whether a stop text has come. The stop text and all later text are not part of the answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        before: Sequence[int] = (),
        trims: bool = False,
    ) -> None:
        """Begin with no text.

        Args:
            stop: the texts that end the answer.
            before: the prompt's tokens, if the answer goes on with the prompt's text. Empty: the answer stands alone.
            trims: whether white space around the answer is left out.
        """
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._trims = trims
        self._ids = list(before)[-CONTEXT:]
        self._start, self._end = 0, len(self._ids)  # the tokens that are decoded again, and the tokens that are read
        self._given = 0  # number of characters that were given out

    def push(self, ids: Sequence[int]) -> str:
        """Take new tokens, and return the text that is certain now. After a stop text, nothing is added."""
        for id in ids:
            if self.stopped:
                break
            self._ids.append(id)
            known = self._decoded(self._ids[self._start : self._end])
            now = self._decoded(self._ids[self._start :])
            if len(now) > len(known) and not now.endswith(UNFINISHED):
                self._start, self._end = self._end, len(self._ids)
                self._add(now[len(known) :])
        return self._certain(final=self.stopped)

    def finish(self) -> str:
        """Return the rest of the text: no token comes any more."""
        if not self.stopped:
            known = self._decoded(self._ids[self._start : self._end])
            self._add(self._decoded(self._ids[self._start :])[len(known) :])
        return self._certain(final=True)

    def _add(self, piece: str) -> None:
        searched = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += piece
        if self._trims and not self._given:
            self.text, searched = self.text.lstrip(), 0
        found = [place for stop in self._stop if (place := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _certain(self, final: bool) -> str:
        """The characters that are new and can no longer be taken back."""
        end = len(self.text)
        if not final:
            end -= max((_overlap(self.text, stop) for stop in self._stop), default=0)
        if self._trims:
            end = len(self.text[:end].rstrip())
            if final:
                self.text = self.text[:end]
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
