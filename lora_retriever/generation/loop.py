"""`Loop`: continues prompts in one batch, which waiting prompts join as the rows of other prompts end.

Jobs wait in the order in which they were added. A step of the loop either reads prompts, which join the batch, or
decodes one token of every row. Rows of different modes and adapters share the batch. Rows under a gate share the batch
with rows under the same gate. The bound is the number of tokens held: rows × the length of the longest row with all its
possible new tokens.

A hybrid has states that cannot be separated by row, such as Mamba's. The rows of a hybrid are read together, and the
next rows are read when all of them have ended. The rows of an encoder-decoder base are read together, too, but each row
leaves when its answer ends.

The loop knows token ids and compositions: a text is looked at for stop texts only. One thread owns a loop.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import groupby, islice

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_retriever.errors import UserError, one_line_of
from lora_retriever.generation.answer import GateUse
from lora_retriever.generation.batches import free_memory, is_too_large, ran_out_of_memory
from lora_retriever.generation.beginnings import Beginnings
from lora_retriever.generation.composition import adapters_of
from lora_retriever.generation.encoder_decoder import GATES, EncoderDecoderBatch, refuse_encoder_decoder
from lora_retriever.generation.gates import gate_uses
from lora_retriever.generation.held import Held, HeldWhole, is_separable
from lora_retriever.generation.jobs import Decoder, Job, WaitingRow, mode_key
from lora_retriever.generation.limits import check_tokens
from lora_retriever.generation.passes import NOT_FINITE, logits_of, read_part, reading_parts
from lora_retriever.generation.sampling import Sampling, Token, choose, with_logprobs
from lora_retriever.generation.settings import READ_TOKENS

__all__ = ["Event", "Job", "Loop", "Sampling", "Token"]

STEPS = 4
"""Minimum number of tokens that every row gets between two steps that read prompts, unless the caller names another."""
FREE = 1 / 8
"""Share of the batch that must be free before waiting prompts are read, if more prompts wait than have room."""
RECOVERY = 256
"""Number of steps after a shortage of memory, until the batch may have an eighth more rows again."""


@dataclass(frozen=True)
class Event:
    """The result of a step for one job.

    Attributes:
        id: the job, as `Loop.add` returned it.
        tokens: the new tokens. The EOS token is told, too.
        ended: why the job has ended: "stop" (an EOS token or a stop text), "length", or "error: …". None: the job goes
            on. prompt: the scored tokens at the end of the prompt, told once, when the prompt was read.
        gate: how the gate weighed the adapters, told when a job with a gate has ended.
        error: the error behind "error: …".
    """

    id: int
    tokens: tuple[Token, ...] = ()
    ended: str | None = None
    prompt: tuple[Token, ...] = ()
    gate: GateUse | None = None
    error: Exception | None = None


class Loop:
    """Continues prompts, each under its own composition, in one batch that prompts join and leave.

    Attributes:
        max_tokens: maximum number of tokens held: rows × the longest row with all its possible new tokens.
        max_rows: maximum number of rows in the batch.
        room: number of rows that the batch may have now. After a shortage of memory, this number is half of the rows
            that did not fit, and grows again step by step.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_tokens: int,
        max_rows: int | None = None,
        *,
        read_tokens: int = READ_TOKENS,
        steps: int = STEPS,
        room: int | None = None,
        is_fatal: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        """Begin without jobs.

        Args:
            max_rows: None: `batch_size` of the decoder's settings.
            read_tokens: maximum number of prompt tokens that one step reads. A single longer prompt is read at once.
            steps: minimum number of tokens that every row gets between two steps that read prompts. 0: the batch is
                filled before a token is decoded.
            room: number of rows that the batch may have at first: fewer, if memory was lacking. None: `max_rows`.
            is_fatal: whether an error means that nothing more can be computed. `step` raises such an error.
        """
        self.max_tokens = max_tokens
        self.max_rows = decoder.settings.batch_size if max_rows is None else max_rows
        self.room = self.max_rows if room is None else min(room, self.max_rows)
        self._decoder = decoder
        self._model = decoder.model
        self._read_tokens = read_tokens
        self._steps = steps
        self._is_fatal = is_fatal
        self._waiting: deque[WaitingRow] = deque()
        self._rows: list[WaitingRow] = []  # the rows of the batch, by place
        self._dead: set[int] = set()  # ids of rows that have ended but cannot leave their batch
        self._separable = is_separable(self._model.config)
        self._held: Held | HeldWhole = Held(self._model.config) if self._separable else HeldWhole()
        self._apart: EncoderDecoderBatch | None = None  # the batch of an encoder-decoder base
        if self._model.config.is_encoder_decoder:
            self._apart = EncoderDecoderBatch(self._model, decoder.pad_id, decoder.prompt_end)
        self._open: ExitStack | None = None  # the open composition, while there are rows
        self._offered: frozenset[str] = frozenset()  # the adapters of the open composition, under a gate
        self._since = steps  # steps since prompts were read
        self._calm = 0  # steps since memory was lacking or since the room grew
        self._events: list[Event] = []  # events of the present step
        kept = decoder.settings.tokens_kept(max_tokens) if self._separable else 0
        self._beginnings = Beginnings(self._model.config, kept)
        self._next_id = 0

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of jobs in the batch."""
        return len(self._rows) - len(self._dead)

    def add(self, job: Job) -> int:
        """Let a job wait for a place. Returns its id.

        Raises:
            UserError: the job can never be answered: its prompt is empty, has a token that the base lacks, or is too
                long; an adapter is not loaded; or the job asks an encoder-decoder base for something that such a base
                cannot do.
        """
        limits = self._decoder.limits
        check_tokens(job.prompt, limits.vocabulary)
        most = len(job.prompt) + job.sampling.max_new_tokens
        if not job.prompt:
            raise UserError("the prompt is empty: a model cannot read nothing")
        if most > self.max_tokens:
            raise UserError(f"prompt and new tokens are {most} tokens, and the batch holds {self.max_tokens}")
        if limits.table is not None and most > limits.table:
            raise UserError(f"prompt and new tokens are {most} tokens, and the base has {limits.table} positions")
        if job.gate is not None:
            refuse_encoder_decoder(self._model.config, GATES)
        if job.scored and self._apart is not None:
            raise UserError("an encoder-decoder base has no log-probabilities of prompt tokens")
        if not 0 <= job.scored <= len(job.prompt):
            raise UserError(f"{job.scored} tokens of the prompt are to be scored, and the prompt has {len(job.prompt)}")
        loaded = set(self._model.adapters)
        if unknown := [name for name in job.composition.adapters if name not in loaded]:
            raise UserError(f"adapter '{unknown[0]}' is not loaded")
        self._next_id += 1
        text = job.text_stream(self._decoder.tokenizer) if job.sampling.stop else None
        self._waiting.append(WaitingRow(self._next_id, job, _random_numbers(job.sampling), text))
        return self._next_id

    @torch.inference_mode()
    def cancel(self, id: int) -> None:
        """Forget a job. The job's place is free at once. A job that is not there is no error."""
        self._waiting = deque(row for row in self._waiting if row.id != id)
        self._beginnings.forget_all_but(self._waiting)
        self._leave({row.id for row in self._rows if row.id == id})

    @torch.inference_mode()
    def close(self) -> None:
        """Forget all jobs, and free the memory of the batch."""
        self._waiting.clear()
        self._beginnings.forget_all_but(())
        self._empty()
        self._held.clear()

    def ended(self) -> Iterator[list[Event]]:
        """Step until no job is left. Yields the last event of every job, with all tokens of the job, step by step."""
        tokens: dict[int, list[Token]] = defaultdict(list)  # all tokens of every job so far
        prompts: dict[int, tuple[Token, ...]] = defaultdict(tuple)
        while self.waiting or self.running:
            over = []
            for event in self.step():
                tokens[event.id] += event.tokens
                prompts[event.id] += event.prompt
                if event.ended is not None:
                    whole = tuple(tokens.pop(event.id))
                    over.append(replace(event, tokens=whole, prompt=prompts.pop(event.id)))
            if over:
                yield over

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read waiting prompts, or decode one token of every row. Returns the events of the jobs.

        An error costs the jobs that caused it. If memory runs out, the batch becomes smaller, and its rows are read
        again. After another error, the rows of the step are answered one by one, and the row that fails ends with
        "error: …".

        Raises:
            Exception: an error for which `is_fatal` is true.
        """
        self._recover()
        joining = self._joining()
        failed = list(joining or self._rows)
        try:
            if joining:
                return self._read(joining)
            if self.running:
                return self._decode()
            return []
        except Exception as error:
            if self._is_fatal(error):
                self._empty()
                raise
            # The frames of a traceback hold the tensors of the step, whose memory is wanted.
            caught = error.with_traceback(None) if ran_out_of_memory(error) else error
        return self._give_up(failed, caught)

    def _joining(self) -> list[WaitingRow]:
        """The waiting rows that the next step reads; empty if the step decodes.

        Rows join in the order in which they wait. If more rows wait than have room, waiting rows join when an eighth of
        the batch is free, so that prompts are read together.
        """
        if not self._waiting or (self.running and self._since < self._steps):
            return []
        if self._rows and (not self._separable or any(row.job.alone for row in self._rows)):
            return []
        chosen: list[WaitingRow] = []
        most = max((row.most for row in self._rows), default=0)
        tokens, full = 0, False
        for row in self._waiting:
            rows, most = len(self._rows) + len(chosen) + 1, max(most, row.most)
            tokens += len(row.ids)
            first = chosen[0] if chosen else self._rows[0] if self._rows else None
            full = rows > 1 and (rows > self.room or rows * most > self.max_tokens)
            # No row can join a hybrid's batch later, so the whole batch is read at once.
            enough = chosen and self._separable and tokens > self._read_tokens
            if full or enough or not self._fits_with(row, first):
                break
            chosen.append(row)
        if full and self._rows and len(chosen) < FREE * (len(self._rows) + len(chosen)):
            return []
        return chosen

    def _fits_with(self, row: WaitingRow, first: WaitingRow | None) -> bool:
        """Whether a row can be in one batch with another row."""
        if first is None:
            return True
        if row.job.alone or first.job.alone or row.job.gate != first.job.gate:
            return False
        if self._apart is not None and len(row.tokens) != len(first.tokens):
            return False  # the decoder reads the tokens so far, without padding
        if row.job.gate is None:
            return True
        offered = row.job.composition.weights.keys() <= self._offered if self._rows else True
        return offered and row.job.mode == first.job.mode

    def _read(self, joining: Sequence[WaitingRow]) -> list[Event]:
        """Read the prompts of rows, which join the batch; the first token of each.

        If the prompt of a row begins like the prompt of another row of the same composition, the row is read after this
        other row, and only from the first different token on.
        """
        for _ in joining:
            self._waiting.popleft()
        first, following = self._beginnings.divided(joining, self._waiting)
        # Tokens that need not be read; a row of `following` is read after the row that begins alike.
        known = {row.id: 0 for row in first} | {row.id: self._beginnings.length(row) for row in following}
        groups = [sorted(rows, key=lambda row: known[row.id] - len(row.ids)) for rows in (first, following)]
        before = len(self._rows)
        self._let_join([*groups[0], *groups[1]])
        for rows in groups:
            for part in reading_parts([len(row.ids) - known[row.id] for row in rows], self._separable):
                self._read_part(rows[part], slice(before + part.start, before + part.stop), known)
            before += len(rows)
        self._since = 0
        self._beginnings.forget_all_but(self._waiting)
        upcoming = [row.job.composition for row in islice(self._waiting, len(self._rows))]
        self._model.prefetch(adapters_of(upcoming))  # reads files only where a memory limit keeps adapters on disk
        return self._end()

    def _let_join(self, rows: Sequence[WaitingRow]) -> None:
        """Let rows join the batch in this order.

        The composition takes the rows mode by mode; then the rows change places.
        """
        before = len(self._rows)
        order = sorted(range(len(rows)), key=lambda place: rows[place].kind[0])
        self._join_composition([rows[place] for place in order])
        if order != sorted(order):
            joined = {place: before + number for number, place in enumerate(order)}
            self._model.keep_rows(torch.tensor([*range(before), *(joined[place] for place in range(len(rows)))]))
        self._rows += rows

    def _read_part(self, rows: Sequence[WaitingRow], places: slice, known: Mapping[int, int]) -> None:
        """Read the prompts of some rows that have joined: the last tokens of each, after the beginning that is known.

        Every row is read from the same number of tokens before its end, so that only its beginning is padded.
        """
        if self._apart is not None:
            with self._model.only_rows(places):
                logits = self._apart.read([row.job.prompt for row in rows], [row.tokens for row in rows])
            self._choose(rows, logits, [()] * len(rows))
            return
        lengths = [len(row.ids) for row in rows]
        new = max(length - known[row.id] for row, length in zip(rows, lengths, strict=True))
        cache = DynamicCache(config=self._model.config)
        if new < max(lengths):
            self._beginnings.fill(cache, rows, max(lengths) - new, [max(0, length - new) for length in lengths])
        told = max(0 if row.told else row.job.scored for row in rows)
        texts = [row.ids[-new:] for row in rows]
        logits = read_part(self._model, texts, lengths, places, cache, self._decoder.pad_id, told + 1)
        self._beginnings.keep(cache, rows)
        expected, most = self._room_for(self._rows)
        self._held.join(cache, lengths, max(row.still for row in self._rows), expected, most)
        self._choose(rows, logits[:, -1], [_scored(row, logits[i]) for i, row in enumerate(rows)])

    def _room_for(self, rows: Sequence[WaitingRow]) -> tuple[int, int]:
        """Number of rows that the batch will soon have, and maximum number of rows that it may have.

        `rows` are the rows of the batch. The rows that wait will join as far as there is room.
        """
        most = max(len(rows), min(self.room, self.max_tokens // max(row.most for row in rows)))
        return min(len(rows) + len(self._waiting), most), most

    def _decode(self) -> list[Event]:
        """Decode one token of every row."""
        self._since += 1
        if self._apart is not None:
            logits = self._apart.step([row.tokens[-1] for row in self._rows])
            self._choose(self._rows, logits, [()] * len(self._rows))
            return self._end()
        device, held = self._model.device, self._held
        ids = torch.tensor([[row.tokens[-1]] for row in self._rows], device=device)  # [rows, 1]
        held.prepare_step(max(row.still for row in self._rows))
        try:
            positions = torch.tensor(held.lengths, device=device)[:, None]  # [rows, 1]
            assert held.cache is not None, "rows have been read"
            logits = logits_of(self._model, ids, held.mask(device), positions, held.cache, 1)
        except BaseException:
            held.abandon_step()
            raise
        held.finish_step()
        self._choose(self._rows, logits[:, -1], [()] * len(self._rows))
        return self._end()

    def _choose(self, rows: Sequence[WaitingRow], logits: Tensor, scored: Sequence[tuple[Token, ...]]) -> None:
        """Choose the next token of every row by the logits [rows, vocabulary]; note why a row ends with this token."""
        events = self._events
        tokens = choose(logits, [row.job.sampling for row in rows], [row.draw for row in rows])
        for row, token, prompt in zip(rows, tokens, scored, strict=True):
            if row.id in self._dead:
                row.tokens[-1:] = [self._decoder.pad_id]
                continue
            if token is None:
                error = UserError(NOT_FINITE)
                events.append(Event(row.id, ended=f"error: {error}", error=error))
                continue
            if row.job.sampling.max_new_tokens == 0:
                events.append(Event(row.id, ended="length", prompt=prompt))
                continue
            row.tokens.append(token.id)
            events.append(Event(row.id, (token,), self._reason(row), prompt))

    def _reason(self, row: WaitingRow) -> str | None:
        """Why a row ends with its latest token; None: the row goes on."""
        if row.tokens[-1] in self._decoder.eos_ids:
            return "stop"
        if row.text is not None:
            row.text.push(row.tokens[-1:])
            if row.text.stopped:
                return "stop"
        return "length" if row.still <= 0 else None

    def _end(self) -> list[Event]:
        """Let the rows that have ended leave the batch, with the use of their gate. Returns the events of the step."""
        events, self._events = self._events, []
        ended = {event.id for event in events if event.ended is not None}
        if ended and self._rows[0].job.gate is not None and self._offered:
            uses = gate_uses(self._model, sorted(self._offered))
            of_row = {row.id: use for row, use in zip(self._rows, uses, strict=True)}
            events = [replace(event, gate=of_row[event.id]) if event.id in ended else event for event in events]
        self._leave(ended)
        return events

    def _leave(self, ids: set[int]) -> None:
        """Take rows out of the batch. The last rows move into their places."""
        if not ids:
            return
        if not self._separable and self._apart is None:
            self._dead |= ids
            if not self.running:
                self._empty()
            return
        staying = [place for place, row in enumerate(self._rows) if row.id not in ids]
        if not staying:
            self._empty()
            return
        # The first places keep their rows where possible, and rows from the end fill the gaps.
        size = len(staying)
        moving = [place for place in staying if place >= size]
        places = [place if self._rows[place].id not in ids else moving.pop() for place in range(size)]
        self._model.keep_rows(torch.tensor(places))
        if self._apart is None:
            self._held.keep(places)
        else:
            self._apart.keep(torch.tensor(places))
        self._rows = [self._rows[place] for place in places]

    def _empty(self) -> None:
        """Take all rows out of the batch, and close the composition."""
        self._rows, self._dead = [], set()
        self._held.keep([])
        if self._apart is not None:
            self._apart.clear()
        self._since = self._steps
        if self._open is not None:
            closing, self._open = self._open, None
            closing.close()

    def _join_composition(self, ordered: Sequence[WaitingRow]) -> None:
        """Let the rows join the open composition, which is opened for the first rows."""
        if self._open is None:
            first, stack = ordered[0].job, ExitStack()
            names: list[str] = []
            if first.gate is not None:
                later = [row for row in self._waiting if self._fits_with(row, ordered[0])]
                names = adapters_of([row.job.composition for row in (*ordered, *later)])
            gate = first.gate if names else None
            expected, _ = self._room_for(ordered)
            stack.enter_context(self._model.open_batch(names, first.mode, gate, expected))
            self._open, self._offered = stack, frozenset(names)
        for _, group in groupby((row.job for row in ordered), key=mode_key):
            jobs = list(group)
            compositions = [job.composition for job in jobs]
            names = adapters_of(compositions)
            weights = [[composition.weights.get(name, 0.0) for name in names] for composition in compositions]
            self._model.add_rows(names, torch.tensor(weights).reshape(len(jobs), len(names)), jobs[0].mode)

    def _recover(self) -> None:
        """Let the room grow again some steps after a shortage of memory, because the memory may be free again."""
        self._calm += 1
        if self.room < self.max_rows and self._calm > RECOVERY:
            self.room, self._calm = min(self.max_rows, self.room + -(-self.room // 8)), 0

    def _give_up(self, failed: Sequence[WaitingRow], error: Exception) -> list[Event]:
        """After an error: let its rows wait again, in a smaller batch or alone. A row that was alone has failed."""
        events, self._events = self._events, []  # events of the rows that were read before the error
        over = self._dead | {event.id for event in events if event.ended is not None}
        rows = {row.id: row for row in (*self._rows, *failed) if row.id not in over}
        waiting = {row.id for row in self._waiting}
        self._empty()
        self._held.clear()
        self._beginnings.forget_all_but(())
        if ran_out_of_memory(error):
            free_memory()
        if len(rows) == 1:
            (row,) = rows.values()
            self._waiting = deque(each for each in self._waiting if each.id != row.id)
            return [*events, Event(row.id, ended=f"error: {one_line_of(error)}", error=error)]
        if is_too_large(error):
            self.room, self._calm = max(1, len(rows) // 2), 0
        else:
            for row in rows.values():
                row.job = replace(row.job, alone=True)
        self._waiting.extendleft(reversed([row for row in rows.values() if row.id not in waiting]))
        return events


def continued(decoder: Decoder, jobs: Sequence[Job]) -> list[Event]:
    """The last event of each job, with all its tokens. The jobs are one batch, or smaller batches if memory runs out.

    Raises:
        Exception: an error that is no shortage of memory, or a job whose own memory is lacking.
    """
    most = len(jobs) * max((len(job.prompt) + job.sampling.max_new_tokens for job in jobs), default=0)
    loop = Loop(decoder, most, len(jobs), read_tokens=most, is_fatal=lambda error: not ran_out_of_memory(error))
    events: dict[int, Event] = {}
    with closing(loop):
        ids = [loop.add(job) for job in jobs]
        for over in loop.ended():
            for event in over:
                if event.error is not None:
                    raise event.error
                events[event.id] = event
    return [events[id] for id in ids]


def _random_numbers(sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature == 0:
        return None
    draw = torch.Generator()
    if sampling.seed is None:
        draw.seed()
    else:
        draw.manual_seed(sampling.seed)
    return draw


def _scored(row: WaitingRow, logits: Tensor) -> tuple[Token, ...]:
    """The scored tokens of a prompt with log-probabilities, by the logits [n + 1, vocabulary] of the last places."""
    count = 0 if row.told else row.job.scored
    row.told = True
    if count == 0:
        return ()
    ids = torch.tensor(list(row.job.prompt[-count:]), device=logits.device)  # [count]
    top = row.job.sampling.logprobs or 0
    if count < len(row.job.prompt):
        return tuple(with_logprobs(logits[-count - 1 : -1], ids, top))
    return (Token(int(ids[0])), *with_logprobs(logits[-count:-1], ids[1:], top))
