"""A procedure: how a row becomes prompts, each after the answers before, and how the answers become a prediction.

    row ─► question ─► answer ─► question ─► … ─► prediction

A procedure is a generator function: it is given a row, yields questions, and returns the row's prediction. The function
knows nothing of models, adapters and files. `running.stages` asks the questions of all rows together, stage by stage,
writes every answer to disk, and gives a procedure its old answers again when a stopped run goes on. So a procedure must
ask the same questions whenever it gets the same answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lora_retriever.data.rows import Row, Sample
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted


@dataclass(frozen=True)
class Ask:
    """A question that is answered with a text.

    Attributes:
        inputs: the text that is put into the prompt template.
        query: the text by which adapters are retrieved anew for this question. None: the text is `inputs` if `task` is
            given; without `task`, the row's own composition answers.
        task: the task of the question, if the question's own adapter is another than the row's. Methods that know a
            row's own adapter, such as the oracle and out-of-domain variants, read this name.
    """

    inputs: str
    query: str | None = None
    task: str | None = None

    @property
    def is_routed(self) -> bool:
        """Whether the question gets a composition of its own."""
        return self.query is not None or self.task is not None


@dataclass(frozen=True)
class Detect(Ask):
    """A question that is answered with the labels that the detection heads of the composition's adapters find.

    The attributes are the same as of `Ask`.
    """


Talk = Generator[Ask | Sequence[Ask], Any, str]
"""The generator that a procedure's function returns for a row. The generator yields one question and is sent the
answer, or yields a list of questions and is sent the list of their answers. The answer to `Ask` is a `str`; the answer
to `Detect` is a tuple of labels, the most probable first. The value that the generator returns is the row's
prediction."""


@dataclass(frozen=True)
class Procedure:
    """A procedure under its name.

    Attributes:
        name: the name that a profile or a row gives.
        summary: one line for the list of procedures.
        citation: the paper that describes the procedure, with its arXiv number.
        talk: the function that asks. The fields of a dataclass that can be called are the procedure's options.
        examples: the training examples that teach an adapter the answers to the questions of one sample. None: the
            sample itself is the example.
        detects: whether the procedure asks `Detect`, which needs a backend with a model to look into.
    """

    name: str
    summary: str
    citation: str
    talk: Callable[[Row], Talk]
    examples: Callable[[Sample], list[Sample]] | None = None
    detects: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options with their values."""
        if not dataclasses.is_dataclass(self.talk) or isinstance(self.talk, type):
            return {}
        return dataclasses.asdict(self.talk)

    def with_options(self, options: Mapping[str, Any]) -> Procedure:
        """The procedure with other values of some options.

        Raises:
            UserError: there is no such option, or the option takes no such value.
        """
        changed: dict[str, Any] = {}
        for option, value in options.items():
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise UserError(f"procedure {self.name} has no option {quoted(option)} (known: {known})")
            try:
                kind = get_type_hints(type(self.talk), include_extras=True)[option]
                changed[option] = TypeAdapter(kind).validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise UserError(
                    f"procedure {self.name}: option {option} is {quoted(value)}: {reason.lower()}"
                ) from error
        return replace(self, talk=replace(self.talk, **changed)) if changed else self  # type: ignore[type-var]
