"""The thread that owns the loop: the jobs that it takes, the events that it delivers, and the cost of an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.loop import Event, Job, Sampling, Token
from lora_retriever.serving.engine import Engine, FullError, RefusedError


class CountingLoop:
    """A loop whose answer to a prompt [n] is n tokens: 0, 1, …"""

    def __init__(self) -> None:
        self.jobs: dict[int, list[int]] = {}
        self.cancelled: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False
        self.closed = False

    waiting = 0

    @property
    def running(self) -> int:
        return len(self.jobs)

    def add(self, job: Job) -> int:
        if not job.prompt[0]:
            raise UserError("nothing to count")
        id = 100 + len(self.jobs) + len(self.cancelled)
        self.jobs[id] = [0, job.prompt[0]]
        return id

    def cancel(self, id: int) -> None:
        self.jobs.pop(id, None)
        self.cancelled.append(id)

    def close(self) -> None:
        self.closed = True

    def step(self) -> list[Event]:
        self.go.wait()
        if self.fails:
            raise RuntimeError("the device is gone")
        events = []
        for id, state in list(self.jobs.items()):
            state[0] += 1
            ended = "length" if state[0] == state[1] else None
            events.append(Event(id, (Token(state[0] - 1),), ended))
            if ended:
                del self.jobs[id]
        return events


@pytest.fixture
def loop() -> CountingLoop:
    return CountingLoop()


@pytest.fixture
def engine(loop: CountingLoop) -> Iterator[Engine]:
    made = Engine(loop, limit=3)
    yield made
    loop.go.set()
    made.close()


def job(count: int) -> Job:
    return Job([count], Composition(), "mixture", Sampling(9))


def into(queue: Queue[tuple[int, Any]]) -> Callable[[int, Any], None]:
    return lambda place, event: queue.put((place, event))


def test_jobs_of_a_request_share_the_loop_and_get_their_own_events(engine: Engine) -> None:
    queue: Queue[tuple[int, Any]] = Queue()
    engine.submit([job(1), job(3)], into(queue))
    events = [queue.get(timeout=5) for _ in range(4)]
    assert [event.tokens[0].id for place, event in events if place == 1] == [0, 1, 2]
    assert [event.ended for place, event in events if place == 0] == ["length"]
    assert engine.open == 0


def test_a_full_engine_refuses_and_has_room_again(engine: Engine, loop: CountingLoop) -> None:
    queue: Queue[tuple[int, Any]] = Queue()
    loop.go.clear()
    tickets = engine.submit([job(5), job(5), job(5)], into(queue))
    with pytest.raises(FullError) as raised:
        engine.submit([job(1)], into(queue))
    assert raised.value.seconds >= 1
    engine.cancel(tickets)
    loop.go.set()
    engine.call(lambda: None).result(timeout=5)
    assert engine.open == 0 and not loop.jobs
    engine.cancel(tickets)  # again, which changes nothing
    engine.call(lambda: None).result(timeout=5)
    assert engine.open == 0


def test_a_job_that_can_never_be_answered_is_refused_alone(engine: Engine) -> None:
    queue: Queue[tuple[int, Any]] = Queue()
    engine.submit([job(0), job(1)], into(queue))
    events = dict(queue.get(timeout=5) for _ in range(2))
    assert isinstance(events[0], RefusedError) and events[1].ended == "length"


def test_a_step_that_fails_costs_its_rows_and_not_the_thread(engine: Engine, loop: CountingLoop) -> None:
    queue: Queue[tuple[int, Any]] = Queue()
    loop.fails = True
    engine.submit([job(2)], into(queue))
    assert queue.get(timeout=5)[1].ended == "error: RuntimeError: the device is gone"
    loop.fails = False
    engine.submit([job(1)], into(queue))
    assert queue.get(timeout=5)[1].ended == "length"


def test_calls_run_in_the_engines_thread_and_give_errors_back(engine: Engine) -> None:
    assert engine.call(lambda: threading.current_thread().name).result(timeout=5) == "engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(timeout=5)
