"""The official benchmark's names of its tasks, whatever name a file has for the same task.

The evaluation set on the Hub, and the authors' answers, write `dart_10templates` for the task `dart`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

TASKS_FILE = Path(__file__).with_name("official_tasks.csv")
"""Each task of the official benchmark (combined_test.json in the authors' repository): domain, metric, number of rows,
and the task's names in the paper's tables 4 and 5. The paper's table of the 13b model prints the task drop as Drpo."""

_SUFFIX = re.compile(r"_\d+templates$")


def read_tasks() -> list[dict[str, str]]:
    """The lines of `TASKS_FILE`: task, domain, metric, rows, printed."""
    with TASKS_FILE.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def official_name(task: str) -> str:
    """The official benchmark's name of a task. A name without the suffix, or of another benchmark, stays as it is."""
    name = _SUFFIX.sub("", task)
    return name if name != task and name in _official_names() else task


def renamed(names: Iterable[str]) -> str:
    """A line that says which of a file's names are read as official names. Empty: every name stays."""
    changed = {name: official for name in names if (official := official_name(name)) != name}
    if not changed:
        return ""
    (first, official), *more = changed.items()
    others = f", and {len(more)} more tasks likewise" if more else ""
    return f"task {first} is read as {official}, the official benchmark's name{others}"


def is_official(adapters: Iterable[str], tasks: Iterable[str]) -> bool:
    """Whether these are the official benchmark's data: its 48 adapters, and the right number of rows of each task.

    Args:
        adapters: the names of the pool's adapters.
        tasks: the task of every row.
    """
    wanted = {row["task"]: int(row["rows"]) for row in read_tasks()}
    return set(map(official_name, adapters)) == wanted.keys() and Counter(map(official_name, tasks)) == wanted


@cache
def _official_names() -> frozenset[str]:
    return frozenset(row["task"] for row in read_tasks())
