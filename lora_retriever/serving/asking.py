"""From a request to its choices: adapters are found, jobs are made, and events come back at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, cast

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.loop import Event, Job, Sampling, Token
from lora_retriever.serving.answers import Choice
from lora_retriever.serving.engine import FullError, RefusedError, Ticket
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.mailbox import Mailbox
from lora_retriever.serving.naming import Asked
from lora_retriever.serving.prompts import AskedPrompt
from lora_retriever.serving.service import Service

if TYPE_CHECKING:
    from peft_composition import Gate

Result = TypeVar("Result")
TRIES = 3
"""How often adapters are found for a request, if the pool changes meanwhile."""


@dataclass(frozen=True)
class Wanted:
    """The options of a request that apply to each of its answers.

    Attributes:
        n: number of answers to each prompt.
        scores_prompt: whether the prompt's own log-probabilities are wanted.
        trims: whether white space around an answer is left out.
        continues: whether an answer goes on with the prompt's text.
        streams: whether the text is wanted piece by piece.
    """

    sampling: Sampling
    n: int = 1
    scores_prompt: bool = False
    trims: bool = False
    continues: bool = False
    streams: bool = False


class Answering:
    """The answers of one request while they are made.

    Attributes:
        choices: the answers, in the response's order.
        seconds: the time of finding the adapters.
    """

    def __init__(self, service: Service, choices: Sequence[Choice], seconds: float, deadline: float) -> None:
        """`deadline`: when the request's time is over, in seconds of `perf_counter`."""
        self.choices = list(choices)
        self.seconds = seconds
        self._service = service
        self._deadline = deadline
        self._events: asyncio.Queue[tuple[int, Event | Exception] | None] = asyncio.Queue()  # None: the time is over
        self._timer: asyncio.TimerHandle | None = None
        self._tickets: list[Ticket] = []
        self._started = perf_counter()
        self.first_token: float | None = None

    def start(self) -> None:
        """Give the jobs to the engine.

        Raises:
            ApiError: too many requests wait.
        """
        loop, mailbox = asyncio.get_running_loop(), Mailbox.of_running_loop()
        self._timer = loop.call_later(self._deadline - perf_counter(), self._events.put_nowait, None)

        def deliver(place: int, event: Event | Exception) -> None:
            mailbox.put(self._events, (place, event))

        with _full_as_api_error():
            self._tickets = self._service.engine.submit([choice.job for choice in self.choices], deliver)

    async def pieces(self) -> AsyncIterator[tuple[Choice, str, list[Token]]]:
        """Every choice with its new text and its new tokens, at once, until all choices have ended.

        Raises:
            ApiError: a job is refused or failed.
        """
        while not all(choice.ended for choice in self.choices):
            delivered = await self._events.get()
            if delivered is None:
                raise _late()
            place, event = delivered
            choice = self.choices[place]
            if isinstance(event, RefusedError):
                raise ApiError(400, str(event), event.param, event.code) from event
            if isinstance(event, Exception):
                raise ApiError(500, f"the answer could not be made ({type(event).__name__})") from event
            if event.tokens and self.first_token is None:
                self.first_token = perf_counter() - self._started
            piece, tokens = choice.take(event)
            if choice.error is not None:
                raise ApiError(500, f"the answer could not be made: {choice.error}")
            yield choice, piece, tokens

    async def whole(self) -> None:
        """Wait until all answers have ended.

        Raises:
            ApiError: as for `pieces`.
        """
        async for _ in self.pieces():
            pass

    def cancel(self) -> None:
        """End the answers that are not finished. Always called when the request ends."""
        if self._timer is not None:
            self._timer.cancel()
        if self._tickets and not all(choice.ended for choice in self.choices):
            self._service.engine.cancel(self._tickets)


async def before(deadline: float, awaitable: Awaitable[Result]) -> Result:
    """The result of an awaitable, if the result comes before the deadline.

    Args:
        deadline: in seconds of `perf_counter`.

    Raises:
        ApiError: the time of the request is over.
    """
    try:
        return await asyncio.wait_for(awaitable, max(0.0, deadline - perf_counter()))
    except asyncio.TimeoutError as error:
        raise _late() from error


def _late() -> ApiError:
    return ApiError(504, "the time of this request is over; ask for fewer tokens, or try again", code="timeout")


@contextmanager
def _full_as_api_error() -> Iterator[None]:
    try:
        yield
    except FullError as error:
        seconds = max(1, round(error.seconds))
        reason = f"too many requests wait; try again in {seconds} s"
        raise ApiError(429, reason, code="overloaded", headers={"Retry-After": str(seconds)}) from error


@asynccontextmanager
async def answering(
    service: Service, asked: Asked, prompts: Sequence[AskedPrompt], wanted: Wanted
) -> AsyncIterator[Answering]:
    """Find the adapters of each prompt, and begin to answer. At the end of the `with` block, the answers that are not
    finished are ended.

    Raises:
        ApiError: the request cannot be answered.
    """
    deadline = perf_counter() + service.profile.serve.seconds
    with _full_as_api_error():  # before the work of finding adapters
        service.engine.check_room(len(prompts) * wanted.n)
    for attempt in range(TRIES):
        started = perf_counter()
        snapshot = service.pool.current
        learned = service.learned(asked, snapshot)
        future = service.routing.submit(asked, [prompt.searched for prompt in prompts], snapshot, learned)
        compositions = await before(deadline, asyncio.wrap_future(future))
        seconds = perf_counter() - started
        with service.using(compositions) as present:
            if not present:
                if attempt == TRIES - 1 or asked.composition is not None:
                    raise ApiError(409, "an adapter was removed while the request began; send it again")
                continue
            gate = asked.gate if learned is None else learned.gate
            choices = _choices(service, asked, cast("Gate | None", gate), prompts, compositions, wanted)
            found = Answering(service, choices, seconds, deadline)
            found.start()
            try:
                yield found
            finally:
                found.cancel()
            return


def _choices(
    service: Service,
    asked: Asked,
    gate: Gate | None,
    prompts: Sequence[AskedPrompt],
    compositions: Sequence[Composition],
    wanted: Wanted,
) -> list[Choice]:
    choices: list[Choice] = []
    for prompt, composition in zip(prompts, compositions, strict=True):
        for copy in range(wanted.n):
            place, seed = len(choices), wanted.sampling.seed
            sampling = wanted.sampling if seed is None else replace(wanted.sampling, seed=(seed + copy) % 2**63)
            scored = len(prompt.token_ids) if wanted.scores_prompt else 0
            job = Job(
                prompt.token_ids,
                composition,
                asked.mode,
                sampling,
                gate,
                scored=scored,
                continues=wanted.continues,
                trims=wanted.trims,
            )
            stream = job.text_stream(service.codec.tokenizer)
            choices.append(Choice(place, prompt, composition, job, stream, not wanted.streams))
    return choices
