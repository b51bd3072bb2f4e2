"""`VllmLoop`: a loop of jobs whose tokens vLLM makes. vLLM decides which jobs share a step.

Every composition is one checkpoint. A job without adapters gets a checkpoint that adds zero: vLLM 0.32 on a CPU answers
a row without a checkpoint wrongly if another row of the batch has a checkpoint. Jobs wait here until vLLM has room. So
only the compositions of the jobs that vLLM has, and of a few jobs before, lie on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lora_retriever.backends.base import is_broken_device
from lora_retriever.backends.checkpoints import RANKS, Checkpoints, Served
from lora_retriever.backends.vllm import LORAS, EngineError, Parts
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.jobs import WaitingRow
from lora_retriever.generation.limits import check_tokens
from lora_retriever.generation.loop import Event, Job, Sampling
from lora_retriever.log import LOG
from lora_retriever.serving.engine import RefusedError
from lora_retriever.serving.shared_checkpoints import SharedCheckpoints
from peft_composition import AdapterError, CompositionError

AHEAD = 2
"""Number of batches of jobs that vLLM has at most: one batch is computed, and the jobs of another join as jobs end."""
WRITTEN = 8
"""Maximum number of compositions that are written between two steps: streams pause meanwhile."""
HOTTEST = 2.0
"""The highest temperature that vLLM takes."""


class Batcher(Protocol):
    """An engine that makes tokens of many jobs in one batch.

    Attributes:
        max_rank: the highest rank of a checkpoint.
        max_tokens: maximum length of a prompt with its answer, in tokens.
    """

    max_rank: int
    max_tokens: int

    def add(self, id: int, prompt: Sequence[int], sampling: Sampling, scored: bool, served: Served) -> None:
        """Take a job. `scored`: whether the log-probabilities of the prompt's tokens are told.

        Raises:
            EngineError: the engine is broken.
        """
        ...

    def step(self) -> list[Event]:
        """The new tokens of some jobs. An event's `prompt` has all tokens of the prompt.

        Raises:
            EngineError: the engine is broken.
        """
        ...

    def abort(self, id: int) -> None:
        """Forget a job."""
        ...

    def check(self, served: Served) -> None:
        """Check that the engine can load a checkpoint.

        Raises:
            EngineError: the engine cannot load the checkpoint.
        """
        ...

    def settle(self) -> None:
        """Return when the engine no longer reads the checkpoints of jobs that have ended or were aborted."""
        ...

    def shutdown(self) -> None:
        """Free the memory."""
        ...


class VllmLoop:
    """Continues prompts, each under its own composition, by an engine that serves checkpoints. One thread owns it."""

    def __init__(self, batcher: Batcher, parts: Parts) -> None:
        """Begin without jobs.

        Raises:
            UserError: the pool has no adapter, or the engine cannot serve the modules that the adapters target.
        """
        self._batcher, self._parts = batcher, parts
        self.base = parts.writer.base
        self._most = AHEAD * parts.settings.batch_size
        ranks = tuple(rank for rank in RANKS if rank <= batcher.max_rank)
        checkpoints = Checkpoints(parts.writer, self._most + LORAS + 1, batcher.max_rank)
        self._checkpoints = SharedCheckpoints(checkpoints, ranks, LORAS, batcher.settle)
        self._waiting: deque[WaitingRow] = deque()
        self._given: dict[int, WaitingRow] = {}  # the jobs that the engine has
        self._next_id = 0
        try:
            batcher.check(self._checkpoints.use(_alone(Composition())))  # has all modules of all adapters, and stays
        except (CompositionError, EngineError) as error:
            self.close()
            raise UserError(f"vLLM cannot serve the adapters of the pool: {error}") from error

    @property
    def waiting(self) -> int:
        """The number of jobs that have no token yet."""
        return len(self._waiting) + len(self._given) - self.running

    @property
    def running(self) -> int:
        """The number of jobs that have got tokens, and get more."""
        return sum(1 for row in self._given.values() if row.tokens)

    def add(self, job: Job) -> int:
        """Let a job wait. Returns its id.

        Raises:
            UserError: the job can never be answered: its prompt is empty, has a token that the base lacks, or is too
                long; or its temperature is too high.
        """
        check_tokens(job.prompt, self._parts.limits.vocabulary)
        if not job.prompt:
            raise UserError("the prompt is empty: a model cannot read nothing")
        most = len(job.prompt) + max(1, job.sampling.max_new_tokens)
        if most > self._batcher.max_tokens:
            raise UserError(f"prompt and new tokens are {most} tokens, and vLLM takes {self._batcher.max_tokens}")
        if job.sampling.temperature > HOTTEST:
            raise RefusedError(f"`temperature`: vLLM takes at most {HOTTEST:g}", "temperature")
        self._next_id += 1
        text = job.text_stream(self._parts.tokenizer) if job.sampling.stop else None
        self._waiting.append(WaitingRow(self._next_id, job, None, text))
        return self._next_id

    def cancel(self, id: int) -> None:
        """Forget a job. A job that is not there is no error."""
        self._waiting = deque(row for row in self._waiting if row.id != id)
        if id in self._given:
            self._batcher.abort(id)
            self._done(id)

    def step(self) -> list[Event]:
        """Give waiting jobs to the engine, and take the engine's new tokens.

        Raises:
            EngineError: the engine is broken.
        """
        events = self._give()
        if self._given:
            events += [self._told(event) for event in self._batcher.step() if event.id in self._given]
        return events

    def load_adapter(self, folder: Path, name: str) -> None:
        """Load one more adapter.

        Raises:
            AdapterError: the adapter cannot be composed exactly, or vLLM cannot serve it. Nothing has changed.
        """
        writer = self._parts.writer
        writer.load_adapter(folder, name)
        alone = _alone(Composition({name: 1.0}))
        try:
            served = self._checkpoints.use(alone)
            try:
                self._batcher.check(served)
            finally:
                self._checkpoints.done(alone)
        except Exception as error:
            self.unload_adapter(name)
            raise AdapterError(name, f"vLLM cannot serve it at this server: {error}") from error

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter that no job uses.

        Raises:
            AdapterError: the adapter is not loaded.
        """
        self._checkpoints.forget(name)
        self._parts.writer.unload_adapter(name)

    def close(self) -> None:
        """End the engine, and remove all checkpoints."""
        try:
            self._batcher.shutdown()
        finally:
            self._checkpoints.close()

    def _give(self) -> list[Event]:
        """Give waiting jobs to the engine while there is room. Returns the events of jobs that end at once."""
        events: list[Event] = []
        written = 0
        while self._waiting and len(self._given) < self._most:
            row = self._waiting[0]
            job = row.job
            if job.sampling.max_new_tokens == 0 and not job.scored:
                events.append(Event(self._waiting.popleft().id, ended="length"))
                continue
            written += not self._checkpoints.has(job)
            if written > WRITTEN:
                break
            self._waiting.popleft()
            try:
                served = self._checkpoints.use(job)
            except Exception as error:  # a user's own composer may raise anything
                if is_broken_device(error):
                    raise
                events.append(_unwritten(row.id, error))
                continue
            self._given[row.id] = row
            sampling = replace(job.sampling, max_new_tokens=max(1, job.sampling.max_new_tokens))
            self._batcher.add(row.id, job.prompt, sampling, job.scored > 0, served)
        return events

    def _told(self, event: Event) -> Event:
        """The event of a job, by the engine's event: without tokens after a stop text, and without unscored tokens."""
        row = self._given[event.id]
        job, tokens, ended = row.job, event.tokens, event.ended
        if job.sampling.max_new_tokens == 0:  # the engine makes at least one token
            tokens, ended = (), "length"
        elif row.text is not None:
            for place, token in enumerate(tokens, start=1):
                row.text.push([token.id])
                if row.text.stopped:
                    tokens, ended = tokens[:place], "stop"
                    break
        row.tokens += [token.id for token in tokens]
        prompt = event.prompt[len(event.prompt) - job.scored :]
        if ended is not None:
            if event.ended is None:
                self._batcher.abort(event.id)
            self._done(event.id)
        return Event(event.id, tokens, ended, prompt)

    def _done(self, id: int) -> None:
        self._checkpoints.done(self._given.pop(id).job)


def _alone(composition: Composition) -> Job:
    """A job that stands for its composition and is never answered."""
    return Job([], composition, "mixture", Sampling(0))


def _unwritten(id: int, error: Exception) -> Event:
    """The event of a job whose composition cannot be written."""
    reason = f"the composition cannot be written: {one_line_of(error)}"
    if isinstance(error, CompositionError):
        return Event(id, ended=f"error: {reason}", error=RefusedError(f"`model`: {error}", "model"))
    LOG.error("a composition could not be written", exc_info=error)
    return Event(id, ended=f"error: {reason}", error=error)
