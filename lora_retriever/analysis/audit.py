"""`lora-retriever audit`: what is wrong or odd in a benchmark's rows and its pool, before scores are drawn from them.

Two texts are the same here if they differ in nothing but white space, which encoders and tokenizers hardly see. The
module knows nothing of runs and answers; prompts are measured only where a tokenizer is named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from lora_retriever.analysis.runs import id_ranges
from lora_retriever.data.rows import EXAMPLE_LENGTH, PoolEntry, Row, shortened, single_spaced
from lora_retriever.errors import UserError

EXAMPLES = 3
TOKENIZER_WANTED = ("*.json", "*.txt", "*.model")
"""The files of a Hub repository that make a tokenizer; the weights stay where they are."""


class Asked(Protocol):
    """What a leak is looked for by; benchmark rows and answered rows have both."""

    @property
    def id(self) -> int: ...
    @property
    def inputs(self) -> str: ...


@dataclass(frozen=True)
class Leak:
    """A row whose inputs stand in samples of these adapters, so that retrieval may know it by heart.

    Attributes:
        own: whether the row's own adapter is one of them.
        same_target: whether one of those samples has the row's target as well.
    """

    id: int
    task: str
    inputs: str
    adapters: tuple[str, ...]
    own: bool
    same_target: bool


@dataclass(frozen=True)
class AskedAgain:
    """Rows of one task with the same inputs, and the different targets they have."""

    task: str
    inputs: str
    ids: tuple[int, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class SharedInputs:
    """Inputs that rows of several tasks have: the ids of these rows by task. No retriever can tell them apart."""

    inputs: str
    ids: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SharedSample:
    """Inputs that stand in the samples of several adapters."""

    inputs: str
    adapters: tuple[str, ...]


@dataclass(frozen=True)
class EmptyTarget:
    """A row with nothing to compare an answer with: its target is blank, or nothing but dots (and white space)."""

    id: int
    task: str
    metric: str
    kind: Literal["blank", "dots"]


@dataclass(frozen=True)
class LongPrompt:
    """A row whose whole prompt has this many tokens, and how many of them are cut."""

    id: int
    task: str
    inputs: str
    tokens: int
    cut: int


@dataclass(frozen=True)
class Prompts:
    """By what the prompts were measured, and those that are too long."""

    tokenizer: str
    template: str
    max_tokens: int
    too_long: list[LongPrompt]


@dataclass(frozen=True)
class OtherDomain:
    """A task that the rows and the pool put into different domains: the ids of the rows that say something else."""

    task: str
    pool_domain: str
    row_domains: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """All findings. As a dictionary (`dataclasses.asdict`) it is what `--json` writes; `prompts` None: not measured."""

    rows: int
    tasks: int
    adapters: int
    samples: int
    leaks: list[Leak]
    duplicates: list[AskedAgain]
    shared_inputs: list[SharedInputs]
    shared_samples: list[SharedSample]
    several_targets: list[AskedAgain]
    empty_targets: list[EmptyTarget]
    prompts: Prompts | None
    tasks_without_adapter: dict[str, tuple[int, ...]]
    adapters_without_rows: list[str]
    other_domains: list[OtherDomain]


def audit(rows: Sequence[Row], pool: Sequence[PoolEntry], prompts: Prompts | None = None) -> Audit:
    """All findings about these rows and this pool; `prompts` is what `measure_prompts` found, if it was asked."""
    adapters = {entry.model_name for entry in pool}
    by_task = _grouped(rows, lambda row: row.task)
    repeated = _grouped(rows, lambda row: (row.task, single_spaced(row.inputs), single_spaced(row.targets))).values()
    asked = _grouped(rows, lambda row: (row.task, single_spaced(row.inputs))).values()
    return Audit(
        rows=len(rows),
        tasks=len(by_task),
        adapters=len(pool),
        samples=sum(len(entry.sample) for entry in pool),
        leaks=_leaks(rows, pool),
        duplicates=[_asked_again(group) for group in repeated if len(group) > 1],
        shared_inputs=list(_shared_inputs(rows)),
        shared_samples=list(_shared_samples(pool)),
        several_targets=[again for again in map(_asked_again, asked) if len(again.targets) > 1],
        empty_targets=list(_empty_targets(rows)),
        prompts=prompts,
        tasks_without_adapter={task: _ids(group) for task, group in by_task.items() if task not in adapters},
        adapters_without_rows=[entry.model_name for entry in pool if entry.model_name not in by_task],
        other_domains=list(_other_domains(by_task, pool)),
    )


def leaked_ids(rows: Iterable[Asked], pool: Sequence[PoolEntry]) -> set[int]:
    """The ids of the rows whose inputs stand in some adapter's samples, whosever; blank inputs never do."""
    known = {single_spaced(sample.inputs) for entry in pool for sample in entry.sample} - {""}
    return {row.id for row in rows if single_spaced(row.inputs) in known}


def measure_prompts(rows: Sequence[Row], tokenizer: str, template: str, max_tokens: int) -> Prompts:
    """The rows whose filled template has more than `max_tokens` tokens, counted as a run counts them.

    Args:
        tokenizer: a folder or a Hub id.
        template: a template's name, or a text with `{inputs}` in it.

    Raises:
        UserError: there is no such tokenizer or template, or the template alone is too long.
    """
    # Seconds to import, and `summarize` needs this module without them.
    from lora_retriever.generation.loading import load_tokenizer
    from lora_retriever.generation.prompt import TEMPLATES, encode_prompt
    from lora_retriever.hub import folder_or_id

    if "{inputs}" not in template and template not in TEMPLATES:
        raise UserError(f"unknown template {template!r} (known: {', '.join(TEMPLATES)}, or a text with {{inputs}})")
    loaded = load_tokenizer(folder_or_id(tokenizer, TOKENIZER_WANTED))
    too_long = []
    for row in rows:
        try:
            prompt = encode_prompt(loaded, TEMPLATES.get(template, template), row.inputs, max_tokens)
        except ValueError as error:
            raise UserError(f"--max-prompt-tokens is too small: {error}") from error
        if prompt.truncated_tokens:
            tokens = len(prompt.token_ids) + prompt.truncated_tokens
            too_long.append(LongPrompt(row.id, row.task, row.inputs, tokens, prompt.truncated_tokens))
    return Prompts(tokenizer, template, max_tokens, too_long)


def _leaks(rows: Sequence[Row], pool: Sequence[PoolEntry]) -> list[Leak]:
    leaked = leaked_ids(rows, pool)
    adapters: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps the pool's order, a set would not
    answered = set()
    for entry in pool:
        for sample in entry.sample:
            adapters[single_spaced(sample.inputs)][entry.model_name] = None
            answered.add((single_spaced(sample.inputs), single_spaced(sample.targets)))
    return [
        Leak(
            id=row.id,
            task=row.task,
            inputs=row.inputs,
            adapters=tuple(adapters[single_spaced(row.inputs)]),
            own=row.task in adapters[single_spaced(row.inputs)],
            same_target=(single_spaced(row.inputs), single_spaced(row.targets)) in answered,
        )
        for row in rows
        if row.id in leaked
    ]


def _asked_again(group: Sequence[Row]) -> AskedAgain:
    targets = {single_spaced(row.targets): row.targets for row in reversed(group)}  # of equal ones the first is shown
    return AskedAgain(group[0].task, group[0].inputs, _ids(group), tuple(reversed(targets.values())))


def _shared_inputs(rows: Sequence[Row]) -> Iterator[SharedInputs]:
    for group in _grouped(rows, lambda row: single_spaced(row.inputs)).values():
        by_task = _grouped(group, lambda row: row.task)
        if len(by_task) > 1:
            yield SharedInputs(group[0].inputs, {task: _ids(of_task) for task, of_task in by_task.items()})


def _shared_samples(pool: Sequence[PoolEntry]) -> Iterator[SharedSample]:
    samples = [(sample.inputs, entry.model_name) for entry in pool for sample in entry.sample]
    for group in _grouped(samples, lambda sample: single_spaced(sample[0])).values():
        adapters = tuple(dict.fromkeys(name for _, name in group))
        if len(adapters) > 1:
            yield SharedSample(group[0][0], adapters)


def _empty_targets(rows: Sequence[Row]) -> Iterator[EmptyTarget]:
    for row in rows:
        # The paper's exact match compares with what stands before the first blank line.
        target = row.targets.split("\n\n")[0] if row.metric == "em" else row.targets
        if not target.replace(".", "").strip():
            yield EmptyTarget(row.id, row.task, row.metric, "dots" if "." in target else "blank")


def _other_domains(by_task: Mapping[str, Sequence[Row]], pool: Sequence[PoolEntry]) -> Iterator[OtherDomain]:
    for entry in pool:
        others = [row for row in by_task.get(entry.model_name, []) if row.domain != entry.domain]
        if others:
            domains = tuple(dict.fromkeys(row.domain for row in others))
            yield OtherDomain(entry.model_name, entry.domain, domains, _ids(others))


Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, both in the order in which they first appear."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _ids(rows: Iterable[Row]) -> tuple[int, ...]:
    return tuple(row.id for row in rows)


@dataclass(frozen=True)
class Section:
    """One kind of finding as it is printed: how many, in which rows (by task), what of it, and some examples."""

    title: str
    count: int
    places: dict[str, list[int]]
    remark: str = ""
    examples: Sequence[str] = ()


def to_text(found: Audit) -> str:
    """A page for a person: a line per kind of finding, then for each kind its rows and a few examples."""
    sections = list(_sections(found))
    lines = [
        f"{found.rows} rows of {found.tasks} tasks, {found.adapters} adapters with {found.samples} samples",
        "Rows are named by their id, from 0. Texts that differ in nothing but white space count as the same.",
        "",
        *(f"{section.count:>6}  {section.title}" for section in sections),
    ]
    if found.prompts is None:
        lines.append(f"{'–':>6}  prompts were not measured: name a --tokenizer")
    for section in sections:
        if not section.count:
            continue
        lines += ["", f"{section.title}: {section.count}"]
        lines += [f"  {section.remark}"] if section.remark else []
        lines += [f"  {task}: {id_ranges(ids)}" for task, ids in section.places.items()]
        examples = list(dict.fromkeys(section.examples))
        lines += ["  for example"] if examples else []
        lines += [f"    {example}" for example in examples[:EXAMPLES]]
    return "\n".join(lines) + "\n"


def _sections(found: Audit) -> Iterator[Section]:
    leaks = found.leaks
    yield Section(
        "rows whose inputs stand in the pool's samples",
        len(leaks),
        _places((leak.task, leak.id) for leak in leaks),
        f"different inputs: {len({single_spaced(leak.inputs) for leak in leaks})}; in samples of the row's own "
        f"adapter: {sum(leak.own for leak in leaks)}; with the same target: {sum(leak.same_target for leak in leaks)}",
        [f"{shortened(leak.inputs)} (samples of {', '.join(leak.adapters)})" for leak in leaks],
    )
    yield _again("rows that are there more than once", found.duplicates, "")
    shared = found.shared_inputs
    yield Section(
        "rows whose inputs rows of another task have too",
        sum(len(ids) for text in shared for ids in text.ids.values()),
        _places((task, id) for text in shared for task, ids in text.ids.items() for id in ids),
        examples=[f"{shortened(text.inputs)} ({', '.join(text.ids)})" for text in shared],
    )
    yield Section(
        "inputs that the samples of several adapters share",
        len(found.shared_samples),
        {},
        examples=[f"{shortened(text.inputs)} ({', '.join(text.adapters)})" for text in found.shared_samples],
    )
    yield _again(
        "rows whose inputs their task asks again, with another target",
        found.several_targets,
        "a model answers them all alike, so at most one of the targets is matched exactly",
    )
    empty = found.empty_targets
    kinds = Counter(target.kind for target in empty)
    metrics = Counter(target.metric for target in empty)
    yield Section(
        "rows whose target is blank or nothing but dots",
        len(empty),
        _places((target.task, target.id) for target in empty),
        f"blank: {kinds['blank']}, dots: {kinds['dots']}; of rouge, where every answer scores 0: {metrics['rouge']}; "
        f"of em, where only an empty answer scores: {metrics['em']}",
    )
    if found.prompts:
        long = found.prompts.too_long
        yield Section(
            f"rows whose prompt has more than {found.prompts.max_tokens} tokens",
            len(long),
            _places((prompt.task, prompt.id) for prompt in long),
            f"tokens cut: {sum(p.cut for p in long)}, at most {max((p.cut for p in long), default=0)} a row",
            [f"row {p.id}: {p.tokens} tokens, {p.cut} cut: {shortened(p.inputs)}" for p in long],
        )
    yield Section(
        "tasks without an adapter in the pool",
        len(found.tasks_without_adapter),
        {task: list(ids) for task, ids in found.tasks_without_adapter.items()},
    )
    yield Section(
        "adapters that no row asks for",
        len(found.adapters_without_rows),
        {},
        ", ".join(found.adapters_without_rows),
    )
    yield Section(
        "tasks whose domain differs between rows and pool",
        len(found.other_domains),
        {other.task: list(other.ids) for other in found.other_domains},
        "; ".join(f"{o.task}: {', '.join(o.row_domains)} (pool: {o.pool_domain})" for o in found.other_domains),
    )


def _again(title: str, groups: Sequence[AskedAgain], remark: str) -> Section:
    return Section(
        title,
        sum(len(group.ids) for group in groups),
        _places((group.task, id) for group in groups for id in group.ids),
        remark,
        [
            f"{group.task} {id_ranges(group.ids)}: {shortened(group.inputs)} → "
            + " | ".join(shortened(target, EXAMPLE_LENGTH // 4) for target in group.targets[:EXAMPLES])
            for group in groups
        ],
    )


def _places(found: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    return {task: [id for _, id in pairs] for task, pairs in _grouped(found, lambda pair: pair[0]).items()}
