"""Answering rows by procedures: stage by stage, the questions of all rows together, by the same backend and batches.

A stage is one question, or one list of questions, of every row that is not done. Every answer is on disk, in
`NAME.stages.partial`, before the next batch. When a run is started again, the procedures get their old answers, ask the
same questions in the same batches, and go on from there. The file is removed when the run is finished: the line of a
row then has all its questions and answers, in the field `stages`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_retriever.backends.base import Outcome
from lora_retriever.backends.failures import failed_alone
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.experiment.checks import other_spelling
from lora_retriever.files import read_bytes, write_bytes
from lora_retriever.generation.batches import Halving, Request, plan_batches, unfinished
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.context import Context
from lora_retriever.procedures import Ask, Detect, Procedure, Talk
from lora_retriever.progress import progress_bar
from lora_retriever.running.answer_cache import answer_key
from lora_retriever.running.plan import PlannedRow, lacking
from lora_retriever.running.results_folder import writing_into
from lora_retriever.running.run_file import Line, RunFile, encoded
from lora_retriever.running.sweep import Variant

if TYPE_CHECKING:
    from lora_retriever.generation.answer import Answer
    from lora_retriever.running.shared import Answering
    from peft_composition import Gate

MAX_STAGES = 1000
"""Maximum number of stages of a row. A procedure that asks more never ends."""
LEAST_CHANCE = 0.01
"""Minimum probability of a label that the results keep."""
Place = tuple[int, int, int]
"""A row's id, a stage and a question's position in the stage, from 0."""


@dataclass
class Conversation:
    """A row under its procedure.

    Attributes:
        stages: the replies of the stages so far, in the form of the results.
        questions: the questions of the next stage. Empty: the procedure is done, or failed.
        prediction: the text that the procedure returned. None: the procedure is not done.
        failure: why the row failed. None: the row has not failed.
        traceback: the error that the procedure raised.
    """

    planned: PlannedRow
    talk: Talk
    stages: list[list[Line]] = field(default_factory=list)
    questions: list[Ask] = field(default_factory=list)
    prediction: str | None = None
    failure: str | None = None
    error: Exception | None = None
    _asks_one: bool = True

    @staticmethod
    def of(planned: PlannedRow, procedure: Procedure) -> Conversation:
        """The conversation with its first questions."""
        begun = Conversation(planned, procedure.talk(planned.row))
        begun._go_on(lambda: next(begun.talk))
        return begun

    def answered(self, replies: Sequence[Line]) -> None:
        """Take the replies to the questions, and let the procedure ask on or end."""
        self.stages.append([*replies])
        answers = [content_of(reply) for reply in replies]
        self._go_on(lambda: self.talk.send(answers[0] if self._asks_one else answers))

    def fail(self, reason: str) -> None:
        """End the row without a prediction."""
        self.questions, self.failure = [], f"stage {len(self.stages) + 1}: {reason}"

    def _go_on(self, step: Callable[[], Ask | Sequence[Ask]]) -> None:
        self.questions = []
        try:
            while not self.questions:
                if len(self.stages) >= MAX_STAGES:
                    raise UserError(f"the procedure asked in {MAX_STAGES} stages and did not end")
                asked = step()
                self._asks_one = isinstance(asked, Ask)
                self.questions = [asked] if isinstance(asked, Ask) else list(asked)
                if wrong := [question for question in self.questions if not isinstance(question, Ask)]:
                    raise UserError(f"the procedure asked {wrong[0]!r:.80}, which is neither Ask nor Detect")
                if not self.questions:  # an empty list has an empty list of answers
                    step = _sending(self.talk)
        except StopIteration as end:
            self.questions = []
            if isinstance(end.value, str):
                self.prediction = end.value
            else:
                self.fail(f"the procedure returned {end.value!r:.80}, which is no text")
        except Exception as error:  # a user's own code may raise anything
            self.error = None if isinstance(error, UserError) else error
            self.fail(one_line_of(error))


def _sending(talk: Talk) -> Callable[[], Ask | Sequence[Ask]]:
    return lambda: talk.send([])


def content_of(reply: Line) -> str | tuple[str, ...]:
    """The answer that a procedure is sent: a text, or labels."""
    return tuple(reply["labels"]) if "labels" in reply else str(reply["answer"])


class StageFile:
    """The replies of a run's unfinished rows, on disk, by their places."""

    def __init__(self, run: RunFile) -> None:
        """Read the replies of an earlier start. The replies of a finished row are in the row's own line."""
        self._path, self._run = run.stages, run
        self.replies: dict[Place, Line] = {}
        for id, line in run.lines.items():
            for stage, replies in enumerate(line.get("stages", ())):
                self.replies.update({(id, stage, place): reply for place, reply in enumerate(replies)})
        self._lines = {place_of(line): line for line in self._read() if place_of(line) is not None}
        self.replies.update({place: line["reply"] for place, line in self._lines.items() if place is not None})
        self.reused = {place for place, line in self._lines.items() if place is not None and line.get("reused")}

    def mend(self) -> None:
        """Remove half-written lines, so that new lines can be added. Make the file if there is none."""
        with writing_into(self._run.results):
            data = encoded(self._lines.values())
            if not self._path.exists() or read_bytes(self._path) != data:
                write_bytes(self._path, data)

    def add(self, replies: Mapping[Place, Line], reused: bool = False) -> None:
        """Keep replies. When this function returns, the replies are on disk.

        Raises:
            FolderError: the file system does not take the replies.
        """
        lines = [
            {"row": row, "stage": stage, "question": place, **({"reused": True} if reused else {}), "reply": reply}
            for (row, stage, place), reply in replies.items()
        ]
        with writing_into(self._run.results), self._path.open("ab") as file:
            file.write(encoded(lines))
            file.flush()
            os.fsync(file.fileno())
        self.replies.update(replies)

    def remove(self) -> None:
        """Remove the file: all rows have their lines."""
        with writing_into(self._run.results):
            self._path.unlink(missing_ok=True)

    def _read(self) -> Iterator[Line]:
        if not self._path.exists():
            return
        for text in read_bytes(self._path).decode("utf-8", errors="replace").split("\n"):
            try:
                line = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError):  # half written
                continue
            if isinstance(line, dict) and isinstance(line.get("reply"), dict):
                yield line


def place_of(line: Line) -> Place | None:
    """The place of a line of the file. None: the line is damaged."""
    place = tuple(line.get(name) for name in ("row", "stage", "question"))
    return place if all(type(part) is int for part in place) else None  # type: ignore[return-value]


class Stages:
    """The rows of one run that have procedures, answered together."""

    def __init__(
        self,
        variant: Variant,
        gate: Gate | None,
        run: RunFile,
        plan: Sequence[tuple[PlannedRow, Procedure]],
        shared: Answering,
    ) -> None:
        self._variant, self._gate, self._run, self._shared = variant, gate, run, shared
        self._file = StageFile(run)
        self._conversations = [Conversation.of(planned, procedure) for planned, procedure in plan]
        self._masking: dict[str, str | None] = {}  # other spellings of questions' own adapters, by their names
        self._known: dict[str, Line] = {}  # the replies of earlier stages, by the keys of their answers
        self.failed: dict[int, str] = {}

    def answer(self, write: Callable[[Sequence[tuple[PlannedRow, Line]]], None]) -> None:
        """Answer all rows; `write` is given rows with the fields of their lines as soon as their predictions are there.

        Raises:
            BackendError, FolderError: nothing more can be answered, or written.
        """
        self._file.mend()
        stage = 0
        self._settle(self._conversations, write)
        while talking := [talk for talk in self._conversations if talk.questions]:
            self._answer_stage(stage, talking)
            for talk in talking:
                places = [(talk.planned.row.id, stage, place) for place in range(len(talk.questions))]
                if talk.failure is None:
                    talk.answered([self._file.replies[place] for place in places])
            self._settle(talking, write)
            stage += 1
        if not self.failed:
            self._file.remove()

    def _settle(
        self, talking: Sequence[Conversation], write: Callable[[Sequence[tuple[PlannedRow, Line]]], None]
    ) -> None:
        """Write the rows that are done, and note the rows that failed."""
        done = []
        for talk in talking:
            if talk.failure is not None:
                self.failed[talk.planned.row.id] = talk.failure
                if talk.error is not None:
                    self._shared.log.add(f"{self._run.name}: row {talk.planned.row.id}", talk.error)
            elif talk.prediction is not None:
                done.append((talk.planned, fields_of(talk)))
        if done:
            write(done)

    def _answer_stage(self, stage: int, talking: Sequence[Conversation]) -> None:
        """Answer all questions of a stage, or note why their rows failed."""
        planned = self._planned(talking)
        asked: dict[str, list[tuple[Place, PlannedRow, Ask]]] = {}
        for talk in talking:
            for place, question in enumerate(talk.questions):
                where = (talk.planned.row.id, stage, place)
                one = planned[where[0], place]
                reason = self._not_masked(question) or lacking(one, self._run.configuration)
                if reason is not None:
                    talk.fail(reason)
                    break
                asked.setdefault(self._key(question, one), []).append((where, one, question))
        failed = {talk.planned.row.id for talk in talking if talk.failure is not None}
        groups = {
            key: alike for key, whole in asked.items() if (alike := [one for one in whole if one[0][0] not in failed])
        }
        for alike in groups.values():  # a reply counts only for the very question that it answers
            for where, one, question in alike:
                reply = self._file.replies.get(where)
                if reply is not None and not answers_question(reply, question, one.composition):
                    del self._file.replies[where]
        self._take_known(groups)
        by_row = {talk.planned.row.id: talk for talk in talking}
        texts = {key: alike for key, alike in groups.items() if not isinstance(alike[0][2], Detect)}
        labelled = {key: alike for key, alike in groups.items() if isinstance(alike[0][2], Detect)}
        name = f"{self._run.name} stage {stage + 1}"
        with progress_bar(self._shared.resources.console, name, len(groups), text=f"0/{len(groups)}") as bar:
            count = 0
            for part, answers in ((texts, self._texts), (labelled, self._labels)):
                keys = [key for key in part if not self._is_reused(part[key])]
                requests = [
                    Request(number, part[key][0][1].prompt, part[key][0][1].composition)
                    for number, key in enumerate(keys)
                ]
                done = {n for n, key in enumerate(keys) if all(one[0] in self._file.replies for one in part[key])}
                count += len(part) - len(keys) + len(done)
                bar.move_to(count, f"{count}/{len(groups)}")
                for replies, outcome in answers(requests, done):
                    new: dict[Place, Line] = {}
                    for number, reply in replies.items():
                        for where, _, question in part[keys[number]]:
                            if where not in self._file.replies:
                                new[where] = {**asked_fields(question), **reply}
                    if new:
                        self._file.add(new)
                    for number, reason in outcome.failures.items():
                        for where, _, _ in part[keys[number]]:
                            if where not in self._file.replies:
                                by_row[where[0]].fail(reason)
                    for number, text in outcome.tracebacks.items():
                        self._shared.log.add_text(f"{self._run.name}: row {part[keys[number]][0][0][0]}", text)
                    count += len({*replies, *outcome.failures} - done)
                    bar.move_to(count, f"{count}/{len(groups)}")
        for key, alike in groups.items():
            if alike[0][0] in self._file.replies:
                self._known[key] = self._file.replies[alike[0][0]]

    def _planned(self, talking: Sequence[Conversation]) -> dict[tuple[int, int], PlannedRow]:
        """Each question with its prompt and its composition, by the row's id and the question's position."""
        from lora_retriever.generation.generator import make_prompts

        questions = [(talk, place, ask) for talk in talking for place, ask in enumerate(talk.questions)]
        routed = [
            talk.planned.row.model_copy(
                update={
                    "inputs": ask.inputs if ask.query is None else ask.query,
                    **({} if ask.task is None else {"task": ask.task}),
                }
            )
            for talk, _, ask in questions
            if ask.is_routed
        ]
        found: Iterator[Composition] = iter(())
        if routed:
            resources = self._shared.resources.asking(routed)
            method = self._variant.method
            found = iter(method.compositions(Context(resources, self._variant.profile, method.declaration)))
        tokenizer, settings = self._shared.tokenizer, self._variant.profile.generation
        prompts = make_prompts([ask.inputs for _, _, ask in questions], tokenizer, settings)
        return {
            (talk.planned.row.id, place): PlannedRow(
                talk.planned.row, prompt, next(found) if ask.is_routed else talk.planned.composition
            )
            for (talk, place, ask), prompt in zip(questions, prompts, strict=True)
        }

    def _not_masked(self, question: Ask) -> str | None:
        """Why a question's own adapter cannot be masked: its name is spelled otherwise. None: nothing is wrong."""
        if question.task is None or not self._variant.method.masked:
            return None
        if question.task not in self._masking:
            self._masking[question.task] = other_spelling(question.task, self._shared.resources.benchmark.adapters)
        other = self._masking[question.task]
        if other is None:
            return None
        return (
            f"the question's own adapter {question.task!a} cannot be masked: the pool's {other!a} differs only by "
            "Unicode form, case, white space or letters that look alike; write the name in one spelling"
        )

    def _key(self, question: Ask, one: PlannedRow) -> str:
        key = answer_key(self._run.configuration, question.inputs, one.composition.weights)
        return f"{type(question).__name__} {key}"

    def _take_known(self, groups: Mapping[str, list[tuple[Place, PlannedRow, Ask]]]) -> None:
        """Take the replies of earlier stages and of other runs."""
        new: dict[Place, Line] = {}
        for key, alike in groups.items():
            waiting = [one for one in alike if one[0] not in self._file.replies]
            if not waiting or len(waiting) < len(alike):
                continue
            reply = self._known.get(key)
            answer = None if reply is not None else self._shared.cache.find(key.partition(" ")[2])
            if reply is None and answer is not None and key.startswith(f"{Ask.__name__} "):
                reply = text_reply(waiting[0][1], answer)
            if reply is not None:
                new.update({where: {**reply, **asked_fields(question)} for where, _, question in waiting})
        if new:
            self._file.add(new, reused=True)
            self._file.reused |= new.keys()

    def _is_reused(self, alike: Sequence[tuple[Place, PlannedRow, Ask]]) -> bool:
        return all(one[0] in self._file.reused for one in alike)

    def _texts(self, requests: Sequence[Request], done: set[int]) -> Iterator[tuple[dict[int, Line], Outcome]]:
        """Replies to `Ask` by the requests' ids, in the order of the backend's answers."""
        if not requests:
            return
        by_id = {request.id: request for request in requests}
        for outcome in self._shared.backend.answers(requests, self._variant.method.mode, done, self._gate):
            replies = {id: text_reply(by_id[id], answer) for id, answer in outcome.answers.items()}
            yield replies, outcome

    def _labels(self, requests: Sequence[Request], done: set[int]) -> Iterator[tuple[dict[int, Line], Outcome]]:
        """Replies to `Detect`, by the requests' ids, batch by batch. A batch that fails is halved."""
        if not requests:
            return
        from lora_retriever.generation.detecting import Detector

        generator = self._shared.backend.generator()
        detector = Detector(self._shared.resources.benchmark.adapters)
        found: dict[int, Line] = {}

        def detect(piece: Sequence[Request]) -> Outcome:
            prompts, compositions = [one.prompt for one in piece], [one.composition for one in piece]
            results = detector.probabilities(generator, prompts, compositions, self._variant.method.mode, self._gate)
            for request, (head, chances) in zip(piece, results, strict=True):
                ordered = sorted(zip(head.labels, chances, strict=True), key=lambda item: -item[1])
                found[request.id] = {
                    "adapters": list(request.composition.weights),
                    "weights": list(request.composition.weights.values()),
                    "labels": [label for label, chance in ordered if chance >= head.threshold],
                    "threshold": head.threshold,
                    "probabilities": {label: round(p, 6) for label, p in ordered if p >= LEAST_CHANCE},
                    "truncated_tokens": request.prompt.truncated_tokens,
                    "generated_tokens": 0,
                }
            return Outcome()

        halving: Halving[Request, Outcome] = Halving(failed_alone)
        for batch in unfinished(plan_batches(requests, generator.settings), done):
            outcome, before = Outcome(), set(found)
            for _, result in halving.results(batch, detect):
                outcome |= result
            yield {id: reply for id, reply in found.items() if id not in before}, outcome


def asked_fields(question: Ask) -> Line:
    """A question in the form of the results."""
    fields = {"inputs": question.inputs, "query": question.query, "task": question.task}
    return {name: value for name, value in fields.items() if value is not None}


def text_reply(asked: PlannedRow | Request, answer: Answer) -> Line:
    """A text that answers a question, with the adapters that were used, in the form of the results."""
    weights: Mapping[str, float] = asked.composition.weights
    if answer.gate is not None:
        weights = {name: weight for name, weight in answer.gate.weights.items() if weight and name in weights}
    return {
        "adapters": list(weights),
        "weights": list(weights.values()),
        "answer": answer.text,
        "truncated_tokens": asked.prompt.truncated_tokens,
        "generated_tokens": answer.generated_tokens,
    }


def answers_question(reply: Line, question: Ask, composition: Composition) -> bool:
    """Whether a reply on disk answers this question."""
    same = all(reply.get(name) == getattr(question, name) for name in ("inputs", "query", "task"))
    labelled = isinstance(reply.get("labels"), list) if isinstance(question, Detect) else "answer" in reply
    return same and labelled and set(reply.get("adapters", ())) <= set(composition.weights)


def fields_of(talk: Conversation) -> dict[str, Any]:
    """The fields of a line of the results for a conversation, beside the row and its composition."""
    replies = [reply for stage in talk.stages for reply in stage]
    return {
        "predicted_answer": talk.prediction,
        "stages": talk.stages,
        "truncated_tokens": sum(reply["truncated_tokens"] for reply in replies),
        "generated_tokens": sum(reply["generated_tokens"] for reply in replies),
    }
