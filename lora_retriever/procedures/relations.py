"""`relations`: which relations a sentence has, then subject and object of each (ReRe, arXiv 2105.10158).

The row's input is a sentence, and its target has the triples, one a line: `relation | subject | object`. Stage one asks
the detection head for relations. Stage two asks, for each relation found, for its pairs as text, one a line:
`subject | object`. So subjects and objects come out in pairs; the published code crosses every subject with every
object.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from lora_retriever.data.rows import Row, Sample
from lora_retriever.data.triples import SEPARATOR, relations_of, text_of, triples_of
from lora_retriever.procedures.base import Ask, Detect, Procedure, Talk

EXTRACTION = "extract"
"""The end of the name of the adapter that extracts pairs, where one adapter does so for all relations."""


@dataclass(frozen=True)
class TwoStages:
    """Detect the relations of a sentence, then extract the pairs of each relation.

    The row's composition detects. The row's adapters must have a detection head (`train --detect`). Pairs are extracted
    by adapters that are retrieved for each relation, with the relation and the sentence as the query.

    Attributes:
        by_relation: whether every relation has an extraction adapter of its own, `TASK_RELATION`. If not,
            `TASK_extract` extracts for all relations. Only methods that know a row's own adapter read these names.
    """

    by_relation: bool = False

    def __call__(self, row: Row) -> Talk:
        """Ask in two stages. The prediction has the triples, one a line."""
        relations: tuple[str, ...] = yield Detect(row.inputs)
        answers: list[str] = yield [
            Ask(extraction_input(relation, row.inputs), task=adapter_of(row.task, relation, self.by_relation))
            for relation in relations
        ]
        return text_of(
            (relation, *pair) for relation, answer in zip(relations, answers, strict=True) for pair in pairs_of(answer)
        )


def adapter_of(task: str, relation: str, by_relation: bool) -> str:
    """The name of a task's extraction adapter."""
    return f"{task}_{relation if by_relation else EXTRACTION}"


def extraction_input(relation: str, sentence: str) -> str:
    """The input that asks for the pairs of a relation."""
    return f"{relation}{SEPARATOR}{sentence}"


def pairs_of(answer: str) -> list[tuple[str, str]]:
    """The pairs of an answer, in order, each once. Lines that are no pair are left out."""
    lines = [[part.strip() for part in line.split(SEPARATOR.strip())] for line in answer.splitlines()]
    return list(dict.fromkeys((line[0], line[1]) for line in lines if len(line) == 2 and all(line)))


def extractions(sample: Sample) -> list[Sample]:
    """The examples of stage two: one for each relation of the sample, with the relation's pairs."""
    triples = sorted(triples_of(sample.target))
    found = []
    for relation in sorted(relations_of(triples)):
        pairs = [SEPARATOR.join(pair) for name, *pair in triples if name == relation]
        found.append(Sample(inputs=extraction_input(relation, sample.inputs), targets="\n".join(pairs)))
    return found


CITATION = "ReRe, arXiv 2105.10158"
PROCEDURES = (
    Procedure(
        "relations",
        "the relations of a sentence by a detection head, then the pairs of each relation",
        CITATION,
        TwoStages(),
        extractions,
        detects=True,
    ),
    Procedure(
        "relations_each",
        "as relations, with an extraction adapter for each relation",
        "this project, after arXiv 2105.10158",
        TwoStages(by_relation=True),
        extractions,
        detects=True,
    ),
)
