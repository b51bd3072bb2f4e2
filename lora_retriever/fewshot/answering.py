"""Answers to rows, greedy or by the likelihood of options, and prompts with examples before the question."""

from __future__ import annotations

from collections.abc import Sequence

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.fewshot.tasks import FewShotTask, asked
from lora_retriever.generation.answer import Answer, chosen_option
from lora_retriever.generation.batches import Request, plan_batches, ran_out_of_memory
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator, make_prompts, row_prompts

GAP = "\n\n"
"""The text between the examples of a prompt. A base model that was not trained to end goes on with a further
example, so an answer in context ends here."""


def answer_all(
    generator: Generator, rows: Sequence[Row], compositions: Sequence[Composition], mode: str = "fusion"
) -> list[str]:
    """The answer to each row, under the row's own composition: greedy, or the most likely of the row's options.

    Raises:
        UserError: a row has a token that the base lacks, or a batch does not fit into memory.
    """
    prompts = row_prompts(rows, generator.tokenizer, generator.settings)
    requests = [
        Request(place, prompt, composition)
        for place, (prompt, composition) in enumerate(zip(prompts, compositions, strict=True))
    ]
    answers: dict[int, str] = {}
    for batch in plan_batches(requests, generator.settings):
        arguments = [one.prompt for one in batch], [one.composition for one in batch], mode
        try:
            found = generator.score(*arguments) if rows[0].options else generator.answer(*arguments)
        except Exception as error:  # torch's allocators raise plain RuntimeErrors, too
            if not ran_out_of_memory(error):
                raise
            raise UserError("a batch does not fit into memory; lower --batch-size") from error
        answers |= {one.id: _text(rows[one.id], answer) for one, answer in zip(batch, found, strict=True)}
    return [answers[place] for place in range(len(rows))]


def _text(row: Row, answer: Answer) -> str:
    if row.options is None or answer.likelihoods is None:
        return answer.text
    return chosen_option(row.metric, row.options, answer.likelihoods)


def rows_in_context(task: FewShotTask, generator: Generator) -> list[Row]:
    """The task's test rows, whose inputs have the examples before the question.

    Between an example's inputs and its target is the text that the template has after the inputs, or else a space. If a
    prompt is too long, the last examples are left out until the whole question fits.
    """
    template = generator.settings.template_text
    between = template.partition("{inputs}")[2] if "{inputs}" in template else "\n"
    if not between[-1:].isspace():
        between += " "
    shots = [asked(task.description, example.inputs) + between + example.target for example in task.examples]
    texts = []
    for question in task.questions:
        for count in range(len(shots), -1, -1):
            parts = [task.description] if task.description else []
            text = GAP.join([*parts, *shots[:count], asked(task.description, question)])
            if not make_prompts([text], generator.tokenizer, generator.settings)[0].truncated_tokens:
                break
        texts.append(text)
    return [row.model_copy(update={"inputs": text}) for row, text in zip(task.rows, texts, strict=True)]
