"""Triples of a relation, a subject and an object, as a text: one triple a line, `relation | subject | object`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

SEPARATOR = " | "
Triple = tuple[str, str, str]
"""Relation, subject, object."""


def triples_of(texts: str | Iterable[str]) -> set[Triple]:
    """The triples of a text, or of several texts together: with their case, without spaces around the parts, in NFC.

    A line that has not three parts is a triple with the line as its relation, so that the line counts as wrong.
    """
    found: set[Triple] = set()
    for text in [texts] if isinstance(texts, str) else texts:
        for line in unicodedata.normalize("NFC", text).splitlines():
            parts = [part.strip() for part in line.split(SEPARATOR.strip())]
            if len(parts) == 3:
                found.add((parts[0], parts[1], parts[2]))
            elif line.strip():
                found.add((line.strip(), "", ""))
    return found


def is_triple(line: str) -> bool:
    """Whether a line has three parts, none of them empty."""
    parts = line.split(SEPARATOR.strip())
    return len(parts) == 3 and all(part.strip() for part in parts)


def text_of(triples: Iterable[Sequence[str]]) -> str:
    """The text of some triples, in their order, each once."""
    return "\n".join(dict.fromkeys(SEPARATOR.join(part.strip() for part in triple) for triple in triples))


def relations_of(triples: Iterable[Sequence[str]]) -> set[str]:
    """The relations of some triples."""
    return {triple[0] for triple in triples}
