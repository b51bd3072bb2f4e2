"""`lora-retriever audit`: finds, before a run, everything that is wrong or odd in a benchmark's rows and its pool.

Two texts are the same here if they differ only by white space or by Unicode form, which encoders and tokenizers hardly
distinguish. The module reads no runs and no answers. The module measures prompts only if a tokenizer is named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from lora_retriever.analysis.runs import id_ranges
from lora_retriever.data.rows import EXAMPLE_LENGTH, PoolEntry, Row, joined, shortened, single_spaced, texts_of
from lora_retriever.errors import UserError
from lora_retriever.experiment.checks import alike_names

EXAMPLES = 3
"""Maximum number of findings that the page shows for one kind of finding."""


class HasInputs(Protocol):
    """A row of a benchmark, or a row with its answer: both can be looked up in a pool."""

    @property
    def id(self) -> int: ...
    @property
    def inputs(self) -> str: ...


@dataclass(frozen=True)
class Leak:
    """A row whose inputs are also in samples of these adapters, so that retrieval is too easy.

    Attributes:
        own: whether the row's own adapter is among these adapters.
        same_target: whether one of these samples also has the row's target.
    """

    id: int
    task: str
    inputs: str
    adapters: tuple[str, ...]
    own: bool
    same_target: bool


@dataclass(frozen=True)
class SameInputs:
    """Rows of one task with the same inputs, and the different targets of these rows."""

    task: str
    inputs: str
    ids: tuple[int, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class SharedInputs:
    """Inputs that rows of several tasks share, with the rows' ids by task. Retrieval cannot distinguish these rows."""

    inputs: str
    ids: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SharedSample:
    """Inputs that are in the samples of several adapters."""

    inputs: str
    adapters: tuple[str, ...]


@dataclass(frozen=True)
class EmptyTarget:
    """A row with no word to compare an answer with: all its targets are blank, or dots and white space only."""

    id: int
    task: str
    metric: str
    kind: Literal["blank", "dots"]


@dataclass(frozen=True)
class LongPrompt:
    """A row whose prompt is too long: the number of the prompt's tokens, and how many of them are cut."""

    id: int
    task: str
    inputs: str
    tokens: int
    cut: int


@dataclass(frozen=True)
class Prompts:
    """How the prompts were measured, and the prompts that are too long."""

    tokenizer: str
    template: str
    max_tokens: int
    too_long: list[LongPrompt]


@dataclass(frozen=True)
class OtherDomain:
    """A task that has another domain in some rows than in the pool, and the ids of these rows."""

    task: str
    pool_domain: str
    row_domains: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """All findings. `--json` writes the findings as a dictionary (`dataclasses.asdict`).

    Attributes:
        prompts: None: the prompts were not measured.
        alike_names: groups of different names of tasks and adapters that look the same (`checks.folded`).
    """

    rows: int
    tasks: int
    adapters: int
    samples: int
    leaks: list[Leak]
    duplicates: list[SameInputs]
    shared_inputs: list[SharedInputs]
    shared_samples: list[SharedSample]
    several_targets: list[SameInputs]
    empty_targets: list[EmptyTarget]
    prompts: Prompts | None
    tasks_without_adapter: dict[str, tuple[int, ...]]
    adapters_without_rows: list[str]
    other_domains: list[OtherDomain]
    alike_names: list[list[str]]


def audit(rows: Sequence[Row], pool: Sequence[PoolEntry], prompts: Prompts | None = None) -> Audit:
    """All findings about these rows and this pool; `prompts` is the result of `measure_prompts`."""
    adapters = [entry.model_name for entry in pool]
    by_task = _grouped(rows, lambda row: row.task)
    repeated = _grouped(rows, lambda row: (row.task, single_spaced(row.inputs), _compared(row.targets))).values()
    same_inputs = _grouped(rows, lambda row: (row.task, single_spaced(row.inputs))).values()
    return Audit(
        rows=len(rows),
        tasks=len(by_task),
        adapters=len(pool),
        samples=sum(len(entry.sample) for entry in pool),
        leaks=_leaks(rows, pool),
        duplicates=[_same_inputs(group) for group in repeated if len(group) > 1],
        shared_inputs=list(_shared_inputs(rows)),
        shared_samples=list(_shared_samples(pool)),
        several_targets=[again for again in map(_same_inputs, same_inputs) if len(again.targets) > 1],
        empty_targets=list(_empty_targets(rows)),
        prompts=prompts,
        tasks_without_adapter={task: _ids(group) for task, group in by_task.items() if task not in adapters},
        adapters_without_rows=[entry.model_name for entry in pool if entry.model_name not in by_task],
        other_domains=list(_other_domains(by_task, pool)),
        alike_names=[
            list(dict.fromkeys(name for _, name in group))
            for group in alike_names([*(("task", task) for task in by_task), *(("adapter", name) for name in adapters)])
        ],
    )


def leaked_ids(rows: Iterable[HasInputs], pool: Sequence[PoolEntry]) -> set[int]:
    """The ids of the rows whose inputs are in the samples of any adapter. Blank inputs do not count."""
    known = {single_spaced(sample.inputs) for entry in pool for sample in entry.sample} - {""}
    return {row.id for row in rows if single_spaced(row.inputs) in known}


def measure_prompts(rows: Sequence[Row], tokenizer: str, template: str, max_tokens: int) -> Prompts:
    """The rows whose filled template has more than `max_tokens` tokens, by the count of a run.

    Args:
        tokenizer: a folder or a Hub id.
        template: a template's name, or a text with `{inputs}` in it.

    Raises:
        UserError: there is no such tokenizer or template, or the template alone is too long.
    """
    # Importing transformers takes seconds, and `summarize` imports this module without needing prompts.
    from lora_retriever.generation.loading import load_tokenizer
    from lora_retriever.generation.prompt import check_template, encode_prompt, files_wanted, template_of
    from lora_retriever.hub import TOKENIZER_WANTED, folder_or_id

    try:
        check_template(template)
    except ValueError as error:
        raise UserError(f"--template: {error}") from error
    loaded = load_tokenizer(folder_or_id(tokenizer, files_wanted(template, TOKENIZER_WANTED)))
    filled = template_of(loaded, template)
    too_long = []
    for row in rows:
        try:
            prompt = encode_prompt(loaded, filled, row.inputs, max_tokens)
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
            answered.add((single_spaced(sample.inputs), _compared(sample.targets)))
    return [
        Leak(
            id=row.id,
            task=row.task,
            inputs=row.inputs,
            adapters=tuple(adapters[single_spaced(row.inputs)]),
            own=row.task in adapters[single_spaced(row.inputs)],
            same_target=(single_spaced(row.inputs), _compared(row.targets)) in answered,
        )
        for row in rows
        if row.id in leaked
    ]


def _compared(targets: str | Sequence[str]) -> tuple[str, ...]:
    """The targets of a row in a form in which equal targets are equal."""
    return tuple(map(single_spaced, texts_of(targets)))


def _same_inputs(group: Sequence[Row]) -> SameInputs:
    # The first of equal targets is shown.
    targets = {_compared(row.targets): joined(row.targets) for row in reversed(group)}
    return SameInputs(group[0].task, group[0].inputs, _ids(group), tuple(reversed(targets.values())))


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
        # The paper's exact match compares only the text before the first blank line.
        targets = [text.split("\n\n")[0] if row.metric == "em" else text for text in texts_of(row.targets)]
        if not any(target.replace(".", "").strip() for target in targets):
            dots = any("." in target for target in targets)
            yield EmptyTarget(row.id, row.task, row.metric, "dots" if dots else "blank")


def _other_domains(by_task: Mapping[str, Sequence[Row]], pool: Sequence[PoolEntry]) -> Iterator[OtherDomain]:
    for entry in pool:
        others = [row for row in by_task.get(entry.model_name, []) if row.domain != entry.domain]
        if others:
            domains = tuple(dict.fromkeys(row.domain for row in others))
            yield OtherDomain(entry.model_name, entry.domain, domains, _ids(others))


Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key. Keys and values are in the order in which they first appear."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _ids(rows: Iterable[Row]) -> tuple[int, ...]:
    return tuple(row.id for row in rows)


@dataclass(frozen=True)
class Kind:
    """The text of one kind of finding: the count, the ids of the rows by task, a remark, some findings."""

    title: str
    count: int
    rows: dict[str, list[int]]
    remark: str = ""
    examples: Sequence[str] = ()


def to_text(found: Audit) -> str:
    """The findings as text: a line for each kind of finding, then each kind with its rows and a few findings."""
    kinds = list(_kinds(found))
    lines = [
        f"{found.rows} rows of {found.tasks} tasks, {found.adapters} adapters with {found.samples} samples",
        "Rows are named by their id, from 0. Texts that differ only by white space or Unicode form count as the same.",
        "",
        *(f"{kind.count:>6}  {kind.title}" for kind in kinds),
    ]
    if found.prompts is None:
        lines.append(f"{'–':>6}  prompts were not measured: name a --tokenizer")
    for kind in kinds:
        if not kind.count:
            continue
        lines += ["", f"{kind.title}: {kind.count}"]
        lines += [f"  {kind.remark}"] if kind.remark else []
        lines += [f"  {task}: {id_ranges(ids)}" for task, ids in kind.rows.items()]
        examples = list(dict.fromkeys(kind.examples))
        lines += ["  for example"] if examples else []
        lines += [f"    {example}" for example in examples[:EXAMPLES]]
    return "\n".join(lines) + "\n"


def _kinds(found: Audit) -> Iterator[Kind]:
    leaks = found.leaks
    yield Kind(
        "rows whose inputs are in the pool's samples",
        len(leaks),
        _by_task((leak.task, leak.id) for leak in leaks),
        f"different inputs: {len({single_spaced(leak.inputs) for leak in leaks})}; in samples of the row's own "
        f"adapter: {sum(leak.own for leak in leaks)}; with the same target: {sum(leak.same_target for leak in leaks)}",
        [f"{shortened(leak.inputs)} (samples of {', '.join(leak.adapters)})" for leak in leaks],
    )
    yield _kind_of_groups("rows that the file has more than once", found.duplicates, "")
    shared = found.shared_inputs
    yield Kind(
        "rows that have the same inputs as rows of another task",
        sum(len(ids) for text in shared for ids in text.ids.values()),
        _by_task((task, id) for text in shared for task, ids in text.ids.items() for id in ids),
        examples=[f"{shortened(text.inputs)} ({', '.join(text.ids)})" for text in shared],
    )
    yield Kind(
        "inputs that are in the samples of several adapters",
        len(found.shared_samples),
        {},
        examples=[f"{shortened(text.inputs)} ({', '.join(text.adapters)})" for text in found.shared_samples],
    )
    yield _kind_of_groups(
        "rows of one task with the same inputs and different targets",
        found.several_targets,
        "a model gives all of them the same answer, so at most one of the targets is matched exactly",
    )
    empty = found.empty_targets
    kinds = Counter(target.kind for target in empty)
    metrics = Counter(target.metric for target in empty)
    yield Kind(
        "rows whose target is blank, or dots only",
        len(empty),
        _by_task((target.task, target.id) for target in empty),
        f"blank: {kinds['blank']}, dots: {kinds['dots']}; with metric rouge, where every answer scores 0: "
        f"{metrics['rouge']}; with metric em, where only an empty answer scores: {metrics['em']}",
    )
    if found.prompts:
        long = found.prompts.too_long
        yield Kind(
            f"rows whose prompt has more than {found.prompts.max_tokens} tokens",
            len(long),
            _by_task((prompt.task, prompt.id) for prompt in long),
            f"tokens cut: {sum(p.cut for p in long)}, at most {max((p.cut for p in long), default=0)} in a row",
            [f"row {p.id}: {p.tokens} tokens, {p.cut} cut: {shortened(p.inputs)}" for p in long],
        )
    yield Kind(
        "tasks without an adapter in the pool",
        len(found.tasks_without_adapter),
        {task: list(ids) for task, ids in found.tasks_without_adapter.items()},
    )
    yield Kind(
        "adapters without rows of their task",
        len(found.adapters_without_rows),
        {},
        ", ".join(found.adapters_without_rows),
    )
    yield Kind(
        "tasks whose domain differs between rows and pool",
        len(found.other_domains),
        {other.task: list(other.ids) for other in found.other_domains},
        "; ".join(f"{o.task}: {', '.join(o.row_domains)} (pool: {o.pool_domain})" for o in found.other_domains),
    )
    yield Kind(
        "groups of names that differ only by Unicode form, case, white space or letters that look alike",
        len(found.alike_names),
        {},
        "a run is refused: an out-of-domain variant would not mask the row's own adapter",
        [" and ".join(map(ascii, group)) for group in found.alike_names],
    )


def _kind_of_groups(title: str, groups: Sequence[SameInputs], remark: str) -> Kind:
    return Kind(
        title,
        sum(len(group.ids) for group in groups),
        _by_task((group.task, id) for group in groups for id in group.ids),
        remark,
        [
            f"{group.task} {id_ranges(group.ids)}: {shortened(group.inputs)} → "
            + " | ".join(shortened(target, EXAMPLE_LENGTH // 4) for target in group.targets[:EXAMPLES])
            for group in groups
        ],
    )


def _by_task(found: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    return {task: [id for _, id in pairs] for task, pairs in _grouped(found, lambda pair: pair[0]).items()}
