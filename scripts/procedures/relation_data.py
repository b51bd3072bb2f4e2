"""KnowledgeNet and Re-DocRED as sentences with triples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_retriever.data.objects import read_objects
from lora_retriever.data.triples import Triple, text_of
from lora_retriever.errors import UserError


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a passage, with its triples.

    Attributes:
        part: the fold of KnowledgeNet, or the name of the file of Re-DocRED.
        negatives: relations that annotators looked for and did not find.
    """

    text: str
    triples: tuple[Triple, ...]
    part: str
    negatives: tuple[str, ...] = ()

    @property
    def targets(self) -> str:
        """The triples as the target of a row."""
        return text_of(self.triples)


def read_knowledgenet(path: Path) -> list[Sentence]:
    """The passages of KnowledgeNet, converted to `sentText` and `relationMentions`, with their folds.

    Raises:
        UserError: the file is missing, or a row lacks a field.
    """
    found = []
    for number, line in enumerate(read_objects(path), start=1):
        try:
            triples = [(one["label"], one["em1Text"], one["em2Text"]) for one in line["relationMentions"]]
            negatives = tuple(line["negativeLabels"])
            found.append(
                Sentence(one_line(line["sentText"]), tuple(map(one_lined, triples)), str(line["fold"]), negatives)
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: row {number}: is no passage of KnowledgeNet ({error})") from error
    return found


def read_redocred(path: Path, names: Mapping[str, str]) -> list[Sentence]:
    """The sentences of Re-DocRED. A sentence has the triples whose two entities are both mentioned in the sentence.

    Args:
        names: the name of each relation, by its number in Wikidata.

    Raises:
        UserError: the file is missing or malformed.
    """
    try:
        documents = json.loads(path.read_text(encoding="utf-8"))
        return [sentence for document in documents for sentence in _sentences(document, names, path.stem)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: is no file of Re-DocRED ({type(error).__name__}: {error})") from error


def _sentences(document: dict[str, Any], names: Mapping[str, str], part: str) -> Iterator[Sentence]:
    mentions: list[dict[int, str]] = []  # the first mention of each entity in each sentence
    for entity in document["vertexSet"]:
        first: dict[int, str] = {}
        for mention in sorted(entity, key=lambda one: one["pos"][0]):
            first.setdefault(mention["sent_id"], mention["name"])
        mentions.append(first)
    for place, tokens in enumerate(document["sents"]):
        triples = [
            (names.get(label["r"], label["r"]), mentions[label["h"]][place], mentions[label["t"]][place])
            for label in document["labels"]
            if place in mentions[label["h"]] and place in mentions[label["t"]]
        ]
        yield Sentence(one_line(" ".join(tokens)), tuple(dict.fromkeys(map(one_lined, triples))), part)


def one_line(text: str) -> str:
    """A text with single spaces and without the mark that parts the fields of a triple."""
    return " ".join(text.replace("|", "/").split())


def one_lined(triple: tuple[str, str, str]) -> Triple:
    """A triple whose parts are one line each."""
    relation, subject, object = map(one_line, triple)
    return relation, subject, object
