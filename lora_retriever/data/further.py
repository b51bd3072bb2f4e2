"""Further fields of rows: fields beside a row's own, such as `instruction: seen`, by which tables are split (`--by`).

A further field is kept if all its values are short texts, numbers or truth values. A row may lack the field; a row with
null lacks the field. A field with another value in any row, such as a list or a long text, is not kept in any row.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from lora_retriever.settings import plain_text

Value = str | bool | int | float
"""The value of a further field."""
MAX_VALUE_LENGTH = 100
"""Maximum length of the name and of a value of a further field, in characters."""
MAX_VALUES = 50
"""Maximum number of different values by which a table is split."""
LINE_FIELDS = frozenset(
    {
        *("id", "inputs", "targets", "task", "domain", "metric", "predicted_answer", "adapters", "weights", "scores"),
        *("retrieved", "gate_entropy", "truncated_tokens", "generated_tokens", "options", "likelihoods", "shots"),
        *("procedure", "stages"),
    }
)
"""The fields of a line of a run. A further field cannot have these names, because answered rows keep further fields."""


def further_names(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the further fields that rows keep, in the order in which they first appear."""
    kept: dict[str, bool] = {}
    for content in objects:
        for name, value in content.items():
            if name not in LINE_FIELDS and value is not None:
                kept[name] = kept.get(name, True) and _is_value(value)
    return [name for name, is_kept in kept.items() if is_kept and _is_short_text(name)]


def further_of(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, Value]:
    """The further fields `names` of a row, without those that the row lacks."""
    return {name: content[name] for name in names if content.get(name) is not None}


def value_text(value: Value) -> str:
    """The text of a value in tables: texts in Unicode form NFC, truth values in JSON's spelling."""
    if isinstance(value, bool):
        return str(value).lower()
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else str(value)


def _is_value(value: Any) -> bool:
    if isinstance(value, str):
        return _is_short_text(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and len(str(value)) <= MAX_VALUE_LENGTH


def _is_short_text(text: str) -> bool:
    try:
        return len(plain_text(text)) <= MAX_VALUE_LENGTH
    except ValueError:
        return False
