"""A pool drawn from training data: some samples of each task, none of which is also a row's input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from lora_retriever.data.rows import PoolEntry, Row, Sample, shortened, single_spaced
from lora_retriever.errors import UserError


def draw_pool(
    entries: Sequence[PoolEntry], rows: Sequence[Row], count: int, seed: int, name: str, notes: list[str]
) -> list[PoolEntry]:
    """At most `count` samples of each entry, in the entry's order.

    A sample whose input is also a row's input is left out. Of several samples with the same input, the first is kept.
    Two inputs that differ only by white space count as the same input. The draw of a task depends on the seed and on
    the task's own samples only: the samples whose SHA-256 with the seed is lowest are drawn.

    Args:
        name: the name of the training data, for messages.
        notes: a list to which a line is added if samples are left out, and a line if tasks have fewer samples.

    Raises:
        UserError: a task has no sample that may be drawn.
    """
    asked = {single_spaced(row.inputs) for row in rows}
    drawn, left_out, fewer = [], 0, []
    for entry in entries:
        by_input: dict[str, Sample] = {}
        for sample in entry.sample:
            by_input.setdefault(single_spaced(sample.inputs), sample)
        usable = [text for text in by_input if text not in asked]
        left_out += len(by_input) - len(usable)
        if not usable:
            raise UserError(
                f"{name}: task {shortened(entry.model_name)!r}: every input is also a row's input, so that no sample "
                "can be drawn; draw from data without the rows"
            )
        if len(usable) < count:
            fewer.append(f"{shortened(entry.model_name)} ({len(usable)})")
        chosen = set(sorted(usable, key=lambda text: _place(seed, text))[:count])
        kept = tuple(by_input[text] for text in usable if text in chosen)
        drawn.append(entry.model_copy(update={"sample": kept}))
    if left_out:
        notes.append(f"{name}: {left_out} samples are left out of the pool, because their inputs are also rows' inputs")
    if fewer:
        listed = ", ".join(fewer[:8]) + (", …" if len(fewer) > 8 else "")
        notes.append(f"{name}: fewer than {count} samples for {listed}")
    return drawn


def hash_entries(entries: Sequence[PoolEntry]) -> str:
    """SHA-256 of the content of a pool, in hexadecimal."""
    content = [entry.model_dump(mode="json") for entry in entries]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _place(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogatepass")).digest()
