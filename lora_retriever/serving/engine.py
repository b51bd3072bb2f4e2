"""`Engine`: one thread owns the loop that answers. Requests of any number of clients put jobs in and get events out.

The thread alone touches the model. Other uses of the model, such as loading an adapter, run in this thread between two
steps (`call`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from lora_retriever.errors import UserError, one_line_of
from lora_retriever.generation.loop import Event, Job
from lora_retriever.log import LOG
from lora_retriever.serving.worker import Worker

Result = TypeVar("Result")
ENDED = "the server has ended"
RATE = 0.9
"""Share of the old rate in the new rate when an answer ends: the running mean of answers a second."""


class Steps(Protocol):
    """The functions of a loop that the engine needs."""

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""

    @property
    def running(self) -> int:
        """Number of rows that are decoded."""

    def add(self, job: Job) -> int:
        """Take a job. Raises `UserError` if the job can never be answered."""

    def cancel(self, id: int) -> None:
        """Forget a job. Its row is free."""

    def step(self) -> list[Event]:
        """Read waiting prompts, or decode one token of every row."""

    def close(self) -> None:
        """Free the memory. No job is answered any more."""


class FullError(Exception):
    """Too many jobs wait.

    Attributes:
        seconds: estimated time until there is room, in seconds.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many requests wait; try again in {seconds:.0f} s")
        self.seconds = seconds


class RefusedError(UserError):
    """The loop can never answer a job.

    Attributes:
        param: the field of the request that is at fault.
        code: OpenAI's short name of the error.
    """

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass
class Ticket:
    """One job of a request.

    Attributes:
        deliver: called in the engine's thread with every event of the job, and with an exception that ends the job.
        id: the loop's id. None: the loop has not taken the job yet.
    """

    job: Job
    deliver: Callable[[Event | Exception], None]
    id: int | None = None
    cancelled: bool = False
    ended: bool = False


class Engine:
    """The thread that answers."""

    def __init__(
        self,
        loop: Steps,
        limit: int,
        observe: Callable[[int, int, float], None] = lambda rows, waiting, seconds: None,
        is_fatal: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        """Start the thread, which closes the loop at its end.

        Args:
            limit: maximum number of jobs that wait or run.
            observe: told after every step: rows, jobs that wait, and the step's seconds.
            is_fatal: whether an error of a step means that nothing more can be computed in this process.
        """
        self._loop = loop
        self._limit = limit
        self._observe = observe
        self._is_fatal = is_fatal
        self._broken: str | None = None
        self._tickets: dict[int, Ticket] = {}
        self._open = 0  # jobs that were given and have not ended
        self._rate = 1.0  # answers a second
        self._ended_at = time.monotonic()
        self._counting = threading.Lock()  # protects `_open`
        self._worker: Worker[Callable[[], None]] = Worker("engine", self._work, self._end_all)

    @property
    def open(self) -> int:
        """Number of jobs that wait or run."""
        return self._open

    @property
    def broken(self) -> str | None:
        """Why nothing more can be computed in this process. None: it can."""
        return self._broken

    def check_room(self, jobs: int) -> None:
        """Check that there is room for more jobs.

        Raises:
            FullError: too many jobs wait.
        """
        if self._open + jobs > self._limit:
            raise FullError(max(1.0, self._open / max(self._rate, 0.1)))

    def submit(self, jobs: Sequence[Job], deliver: Callable[[int, Event | Exception], None]) -> list[Ticket]:
        """Give jobs to the loop: all of them, or none.

        Args:
            deliver: is given the job's place and each event of the job, in the engine's thread.

        Raises:
            FullError: too many jobs wait.
            RuntimeError: the engine is closed.
        """
        with self._counting:
            self.check_room(len(jobs))
            self._open += len(jobs)
        tickets = [
            Ticket(job, lambda event, place=place: deliver(place, event))  # type: ignore[misc]
            for place, job in enumerate(jobs)
        ]
        if not self._worker.put(*(partial(self._add, ticket) for ticket in tickets)):
            raise RuntimeError(ENDED)
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """End jobs early. Nothing more is delivered for these jobs. An ended job may be cancelled."""
        self._worker.put(*(partial(self._cancel, ticket) for ticket in tickets))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function in the engine's thread, between two steps. Meanwhile no other code uses the model."""
        future: Future[Result] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # the error goes to the caller, who waits for the future
                future.set_exception(error)

        if not self._worker.put(command):
            future.set_exception(RuntimeError(ENDED))
        return future

    def close(self) -> None:
        """End the thread. Jobs that have not ended get no more answers."""
        self._worker.close()

    def _end_all(self) -> None:
        for ticket in list(self._tickets.values()):
            self._cancel(ticket)
            ticket.deliver(RuntimeError(ENDED))
        self._loop.close()

    def _work(self, commands: Sequence[Callable[[], None]]) -> bool:
        """Carry out commands, and one step of the loop. Returns whether there are jobs."""
        for command in commands:
            command()
        if self._tickets:
            self._step()
        return bool(self._tickets)

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            events = self._loop.step()
        except Exception as error:  # no step may end the thread: the rows of this step fail
            LOG.exception("a step failed")
            if self._is_fatal(error):
                self._broken = one_line_of(error)
            events = [Event(id, (), f"error: {one_line_of(error)}") for id in self._tickets]
            for event in events:
                self._loop.cancel(event.id)
        self._observe(self._loop.running, self._loop.waiting, time.perf_counter() - started)
        for event in events:
            ticket = self._tickets.get(event.id)
            if ticket is None:
                continue
            if event.ended is not None:
                self._end(ticket)
            ticket.deliver(event.error if isinstance(event.error, RefusedError) else event)

    def _add(self, ticket: Ticket) -> None:
        if ticket.cancelled:
            return
        try:
            ticket.id = self._loop.add(ticket.job)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, RefusedError):
                error = RefusedError(str(error), "max_tokens", "context_length_exceeded")
            self._end(ticket)
            ticket.deliver(error)
        else:
            self._tickets[ticket.id] = ticket

    def _cancel(self, ticket: Ticket) -> None:
        ticket.cancelled = True
        if not ticket.ended:
            if ticket.id is not None:
                self._loop.cancel(ticket.id)
            self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        ticket.ended = True
        if ticket.id is not None:
            self._tickets.pop(ticket.id, None)
        now = time.monotonic()
        self._rate = RATE * self._rate + (1 - RATE) / max(now - self._ended_at, 1e-3)
        self._ended_at = now
        with self._counting:
            self._open -= 1
