"""Checks that find inconsistencies in a benchmark's rows and pool before the first row is answered.

`run` refuses a benchmark with problems, and `doctor` lists them. Both call `benchmark_problems`, so `run` takes every
benchmark that `doctor` accepts.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lora_retriever.data.official import official_name
from lora_retriever.data.rows import METRICS, PoolEntry, Row, tasks_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.profile import ADAPTER, Profile
from lora_retriever.files import is_location, safe_name
from lora_retriever.metrics import find_metric

MAX_NAMES = 8
"""Maximum number of names that one message lists."""

# Letters of Cyrillic and Greek that fonts draw as letters of Latin. Case matters: Greek Ν is drawn as N, and ν is not.
_LOOK_ALIKE = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухһԁԛԝ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",
    "ABESIJKMHOPCTYXaesijopcyxhdqw" + "ABEZHIKMNOPTYXo",
)
_WITHOUT_GLYPH = ("Cc", "Cf")
_VARIATION_SELECTORS = "\ufe0e\ufe0f"


def benchmark_problems(profile: Profile, rows: Sequence[Row], pool: Sequence[PoolEntry]) -> list[str]:
    """The reasons why a profile's rows and pool cannot be used together, one line each.

    Empty: rows and pool can be used together.
    """
    return [
        *_problems_of_adapters(profile, pool),
        *_problems_of_names(profile, rows, pool),
        *_problems_of_tasks(profile, rows),
        *_problems_of_metrics(profile, rows),
    ]


def benchmark_warnings(profile: Profile, rows: Sequence[Row], pool: Sequence[PoolEntry]) -> list[str]:
    """Findings about a profile's rows and pool that do not stop a run, one line each."""
    domains = {entry.model_name: entry.domain for entry in pool}
    found = []
    if len(pool) > 1 and ADAPTER not in profile.adapters.location:
        found.append(
            f"adapters.location {profile.adapters.location!r} is the same for all {len(pool)} adapters of the pool; "
            f"write {ADAPTER} where an adapter's name belongs"
        )
    without = [task for task in tasks_of(rows) if task not in domains]
    if without and pool:
        found.append(
            f"tasks without an adapter in the pool {profile.pool_path}: {_listed(without)}. best_selection cannot "
            "answer their rows, and an out-of-domain variant (_ood) has no adapter to mask for them"
        )
    differing = {
        row.task: f"{row.task} (rows: {row.domain}, pool: {domains[row.task]})"
        for row in rows
        if domains.get(row.task, row.domain) != row.domain
    }
    if differing:
        found.append(f"tasks whose domain differs between rows and pool: {_listed(list(differing.values()))}")
    return found


def folded(name: str) -> str:
    """The name without differences that a reader does not see or easily overlooks.

    Two names of one folded form differ by Unicode form, by case, by white space, by characters without a glyph, by
    kind of dash, or by letters of other scripts that look alike; or they are names of one task of the official
    benchmark, such as `dart` and `DART_10templates`.
    """
    text = unicodedata.normalize("NFKC", name).translate(_LOOK_ALIKE).casefold()
    plain = "".join(
        "-" if unicodedata.category(character) == "Pd" else character
        for character in unicodedata.normalize("NFKC", text)
        if not character.isspace()
        and character not in _VARIATION_SELECTORS
        and unicodedata.category(character) not in _WITHOUT_GLYPH
    )
    return official_name(plain)


def alike_names(names: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Groups of names that are different and have one folded form. A name is given as (kind, name)."""
    groups: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind, name in names:
        groups[folded(name)].append((kind, name))
    return [group for group in groups.values() if len({name for _, name in group}) > 1]


def other_spelling(name: str, names: Iterable[str]) -> str | None:
    """A different name among `names` that has the same folded form. None: there is no such name.

    An adapter of such a name is probably the own adapter of a task of this name, and would not be masked for the task.
    """
    wanted = folded(name)
    return next((other for other in names if other != name and folded(other) == wanted), None)


def _problems_of_adapters(profile: Profile, pool: Sequence[PoolEntry]) -> Iterator[str]:
    """Names of adapters that lead out of the adapters' folder."""
    for place, entry in enumerate(pool, start=1):
        try:
            safe_name(entry.model_name, "adapter", may_have_folders=True)
        except UserError as error:
            yield f"{profile.pool_path}: row {place}: {error}"


def _problems_of_names(profile: Profile, rows: Sequence[Row], pool: Sequence[PoolEntry]) -> Iterator[str]:
    """Names that seem to mean one name: masking an own adapter needs equal names of task and adapter."""
    files = {"task": profile.rows_path, "adapter": profile.pool_path}
    names = [("task", task) for task in tasks_of(rows)] + [("adapter", entry.model_name) for entry in pool]
    for alike in alike_names(names):
        spellings = " and ".join(f"{kind} {name!a} ({files[kind].name})" for kind, name in alike)
        yield (
            f"{spellings} differ only by Unicode form, case, white space or letters that look alike, or name one "
            "official task; an out-of-domain variant would not mask the row's own adapter. Write the name in one "
            "spelling, or rename one of the two"
        )
    for alike in alike_names([("domain", domain) for domain in dict.fromkeys(row.domain for row in rows)]):
        spellings = " and ".join(ascii(name) for _, name in alike)
        yield (
            f"{profile.rows_path}: the domains {spellings} differ only by Unicode form, case, white space or letters "
            "that look alike. Write the domain in one spelling"
        )


def _problems_of_tasks(profile: Profile, rows: Sequence[Row]) -> Iterator[str]:
    """Tasks with several metrics or several domains: a task has one score, in one domain."""
    metrics: defaultdict[str, dict[str, int]] = defaultdict(dict)  # task → metric → number of the first row
    domains: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        metrics[row.task].setdefault(row.metric, row.id + 1)
        domains[row.task].setdefault(row.domain, row.id + 1)
    for what, by_task in (("metrics", metrics), ("domains", domains)):
        for task, found in by_task.items():
            if len(found) > 1:
                listed = ", ".join(f"{quoted(name)} (row {number})" for name, number in list(found.items())[:MAX_NAMES])
                yield f"{profile.rows_path}: task {quoted(task)} has {len(found)} {what}: {listed}; a task has one"


def _problems_of_metrics(profile: Profile, rows: Sequence[Row]) -> Iterator[str]:
    """Metrics of rows that are unknown, are not there, or are not allowed to run."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.metric, row)
    for metric, row in first.items():
        if metric in METRICS:
            continue
        where = f"{profile.rows_path}: row {row.id + 1}"
        if not is_location(metric):
            yield f"{where}: unknown metric {quoted(metric)} (known: {', '.join(METRICS)}, or the path of a metric)"
            continue
        try:
            find_metric(metric, False, profile.metric_folders)
        except UserError as error:
            yield f"{where}: {error}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
