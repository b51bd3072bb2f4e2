"""`SharedCheckpoints`: checkpoints of compositions that jobs use now or used last. Other checkpoints are removed."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from lora_retriever.backends.checkpoints import Checkpoints, Served
from lora_retriever.generation.jobs import Job, Kind, kind_of


class SharedCheckpoints:
    """Checkpoints with the number of jobs that use each checkpoint. Jobs that are composed alike share a checkpoint."""

    def __init__(self, checkpoints: Checkpoints, ranks: tuple[int, ...], kept: int, settle: Callable[[], None]) -> None:
        """Begin without a job.

        Args:
            ranks: the ranks that the engine takes.
            kept: maximum number of checkpoints that stay although no job uses them now.
            settle: returns when the engine no longer reads the checkpoints of jobs that have ended.
        """
        self._checkpoints, self._ranks = checkpoints, ranks
        self._kept, self._settle = kept, settle
        self._used: Counter[Kind] = Counter()  # number of jobs
        self._unused: OrderedDict[Kind, None] = OrderedDict()  # last used, last in order

    def has(self, job: Job) -> bool:
        """Whether the job's composition is on disk."""
        return kind_of(job) in self._checkpoints.keys

    def use(self, job: Job) -> Served:
        """The checkpoint of a job. The checkpoint stays at least until `done` is called for the job.

        Raises:
            Exception: the composition cannot be written; see `Checkpoints.written`.
        """
        kind = kind_of(job)
        served = self._checkpoints.written(kind, job.composition, job.mode, self._ranks)
        self._used[kind] += 1
        self._unused.pop(kind, None)
        return served

    def done(self, job: Job) -> None:
        """Note that a job has ended. Its checkpoint may be removed if no other job uses the checkpoint."""
        kind = kind_of(job)
        self._used[kind] -= 1
        if self._used[kind]:
            return
        del self._used[kind]
        self._unused[kind] = None
        if len(self._unused) > self._kept:
            self._remove([next(iter(self._unused))])

    def forget(self, adapter: str) -> None:
        """Remove the unused checkpoints that an adapter is part of, whose name another adapter may get."""
        self._remove([kind for kind in self._unused if adapter in dict(kind[1])])

    def close(self) -> None:
        """Remove all checkpoints."""
        self._checkpoints.close()

    def _remove(self, kinds: list[Kind]) -> None:
        self._settle()
        for kind in kinds:
            del self._unused[kind]
        self._checkpoints.drop(kinds)
