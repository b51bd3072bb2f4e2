"""Benchmark rows and adapter pools: reading and checking the two kinds of data file.

A row is `{inputs, targets, task, domain, metric}`, and has `options` where the metric compares options. A pool entry is
`{model_name, domain, sample: [{inputs, targets}, ...]}`. Both are read from files in the forms of `objects`, from
folders, or from the Hub (`sources`). `targets` is a text, a number, or a list of texts (several targets, any of which
is right). A row keeps its further fields (`further`). Other fields are not used; `read_rows` can say which there are. A
pool may also be a table with one sample a line, `{inputs, targets, task, domain}`: the samples of a task are one entry.

Names of tasks, domains, metrics and adapters are in Unicode form NFC, so that a letter with an accent is one letter
whatever program wrote the file. Tasks of the official benchmark, and their adapters, get the official benchmark's names
(`official`).
"""

from __future__ import annotations

import json
import pkgutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from lora_retriever.data.further import Value, further_names, further_of
from lora_retriever.data.official import official_name, renamed
from lora_retriever.data.sources import DataSource, read_source
from lora_retriever.data.tables import WrittenFloat
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.files import is_location
from lora_retriever.settings import plain_text, problems_of

METRICS = tuple(name for _, name, _ in pkgutil.iter_modules([str(Path(__file__).parents[1] / "metrics" / "named")]))
"""The metrics that a row may name without bringing its own: the names of the files of `metrics/named`."""
OPTION_METRICS = ("choice", "choice_norm")
"""The metrics of rows with `options`: the likelihoods of the options are compared, and nothing is decoded."""
EXAMPLE_LENGTH = 100
"""Maximum length of a text that messages and audits show, in characters."""
MAX_TEXT_LENGTH = 1_000_000
"""Maximum length of one text, in characters."""
POSITION = "id"
"""The field that holds a row's position; a file's own field of this name is not used."""
ADDED = (POSITION, "further")
"""The fields that `read_rows` adds to a file's fields."""


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT_LENGTH:
        raise ValueError(f"has {len(text):,} characters, more than {MAX_TEXT_LENGTH:,}; shorten the text")
    return plain_text(text)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _targets(targets: Any) -> str | tuple[str, ...]:
    """The targets of a row in the form of `Sample.targets`: numbers as the file writes them, lists as tuples.

    Raises:
        ValueError: the targets are no text, no number, and no list of texts and numbers.
    """
    if not isinstance(targets, (list, tuple)):
        return _text(targets)
    if not targets:
        raise ValueError("is an empty list; write one text or several")
    texts = []
    for number, target in enumerate(targets, start=1):
        try:
            texts.append(_text(target))
        except ValueError as error:
            raise ValueError(f"target {number} of {len(targets)}: {error}") from error
    return tuple(texts)


def _options(options: Any) -> tuple[str, ...] | None:
    """The options of a row as a tuple. A text is read as a JSON list, since a cell of a CSV file is a text.

    Raises:
        ValueError: the options are not two or more different texts.
    """
    if options is None:
        return None
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError as error:
            raise ValueError('is no JSON list, such as ["yes", "no"]') from error
    if not isinstance(options, (list, tuple)) or len(options) < 2:
        raise ValueError('expected a list of two or more texts, such as ["yes", "no"]')
    texts = _targets(options)
    if "" in texts:
        raise ValueError("has an empty text")
    if len({_as_compared(text) for text in texts}) < len(texts):
        raise ValueError("has the same text twice")
    return tuple(texts)


def _as_compared(text: str) -> str:
    """The form of a text in which metrics compare the text: Unicode form NFC, with one kind of line end."""
    return _one_form(text.replace("\r\n", "\n").replace("\r", "\n"))


def _text(target: Any) -> str:
    if isinstance(target, str):
        return _bounded(target)
    if isinstance(target, WrittenFloat):
        return target.text
    if isinstance(target, (int, float)) and not isinstance(target, bool):
        return str(target)
    kind = "null" if target is None else type(target).__name__
    raise ValueError(f"expected a text, a number, or a list of them, found {kind}")


Text = Annotated[str, AfterValidator(_bounded)]
"""A text of at most `MAX_TEXT_LENGTH` characters, without NUL characters and halves of surrogate pairs."""
Words = Annotated[Text, AfterValidator(_not_blank)]
Name = Annotated[Words, AfterValidator(_one_form)]
"""A name of a task, domain, metric or adapter, in Unicode form NFC."""
TaskName = Annotated[Name, AfterValidator(official_name)]
"""A name of a task, or of the task's own adapter."""
Targets = Annotated[str | tuple[str, ...], PlainValidator(_targets)]
"""One target, or several targets, any of which is right."""
Options = Annotated[tuple[str, ...] | None, PlainValidator(_options)]
"""The options of a row, of which one is chosen."""


class Sample(BaseModel):
    """A sample of a pool, or an example to learn from: inputs and targets of one task."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: Annotated[Text, Field(min_length=1)]
    targets: Targets

    @property
    def target(self) -> str:
        """The only target, or the first of several. Training learns this target."""
        return self.targets if isinstance(self.targets, str) else self.targets[0]


class Row(Sample):
    """One row of a benchmark. `id` is the row's position in its file, from 0, also where a limit leaves out rows.

    `options` has the options of a row whose metric compares likelihoods. None: another metric. `procedure` names the
    procedure that answers the row; None: the profile's. `further` has the further fields. `model_dump` leaves out
    `procedure`, `further`, and options that are None.
    """

    inputs: Words
    task: TaskName
    domain: Name
    metric: Name
    options: Options = Field(None, exclude_if=lambda options: options is None)
    id: int
    procedure: Name | None = Field(None, exclude=True)
    further: Mapping[str, Value] = Field({}, exclude=True)


class TaskSample(Sample):
    """A sample with the names of its task and domain: one line of a pool that is a table."""

    task: TaskName
    domain: Annotated[Text, AfterValidator(_one_form)]


class PoolEntry(BaseModel):
    """One adapter of a pool, described by samples of its task. `model_name` is its task's name."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_name: TaskName
    domain: Annotated[Text, AfterValidator(_one_form)]
    sample: tuple[Sample, ...] = Field(min_length=1)


Checked = TypeVar("Checked", bound=BaseModel)


def read_rows(place: Path | DataSource, notes: list[str] | None = None) -> list[Row]:
    """The rows of a benchmark, in their order in the file.

    Args:
        notes: a list to which lines are added: which further fields there are, which fields are not used, and which
            tasks got the official benchmark's names; each only if there are any.

    Raises:
        UserError: the place is unusable (`read_source`), or a row lacks a field, has a wrong value or names an unknown
            metric. The message names the row and the field.
    """
    source = DataSource.of(place)
    path, objects = source.path, read_source(source)
    kept = further_names(objects)
    rows = _checked(
        Row,
        [
            {**_with_its_options(content), POSITION: position, "further": further_of(content, kept)}
            for position, content in enumerate(objects)
        ],
        path,
    )
    for row in rows:
        if row.metric in OPTION_METRICS:
            _check_options(row, path)
        if row.metric not in METRICS and not is_location(row.metric):
            known = ", ".join(METRICS)
            raise UserError(f"{path}: row {row.id + 1}: unknown metric {quoted(row.metric)} (known: {known})")
    if notes is not None:
        own = Row.model_fields.keys() - {"further"} | {*kept}
        if not any(row.options for row in rows):
            own -= {"options"}
        unused = dict.fromkeys(name for content in objects for name in content if name not in own)
        if kept:
            notes.append(f"{path}: further fields of rows, which only --by uses: {_listed(kept)}")
        if unused:
            notes.append(f"{path}: fields of rows that are not used: {_listed([*unused])}")
        if said := renamed(dict.fromkeys(content["task"] for content in objects)):
            notes.append(f"{path}: {said}")
    return rows


def _with_its_options(content: dict[str, Any]) -> dict[str, Any]:
    """A row's fields, without `options` if the metric does not use options."""
    if content.get("metric") in OPTION_METRICS:
        return content
    return {name: value for name, value in content.items() if name != "options"}


def _check_options(row: Row, path: Path) -> None:
    """Check that a row of a metric that compares options has options, and that each target is an option.

    Raises:
        UserError: the row has no options, or a target is no option.
    """
    where = f"{path}: row {row.id + 1}: metric {row.metric}"
    if row.options is None:
        raise UserError(f'{where}: field \'options\' is missing; write a list of texts, such as ["yes", "no"]')
    options = {_as_compared(option) for option in row.options}
    for target in texts_of(row.targets):
        if _as_compared(target) not in options:
            raise UserError(f"{where}: target {quoted(target)} is none of the options: {_listed(row.options)}")


def limited(rows: Iterable[Row], per_task: int) -> list[Row]:
    """At most the first `per_task` rows of each task."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.task] += 1
        if seen[row.task] <= per_task:
            kept.append(row)
    return kept


def read_samples(place: Path | DataSource) -> list[Sample]:
    """The examples `{inputs, targets}` of a file, in the file's order.

    Raises:
        UserError: the place is unusable (`read_source`), or an example lacks a field or has a wrong value. The message
            names the row and the field.
    """
    source = DataSource.of(place)
    return _checked(Sample, read_source(source), source.path)


def read_pool(place: Path | str | DataSource) -> list[PoolEntry]:
    """The entries of a pool, in their order in the file. Of a table of samples: in the order of their first samples.

    Raises:
        UserError: the place is unusable (`read_source`), an entry or a sample lacks a field or has a wrong value, two
            entries have one name, or the samples of a task have several domains.
    """
    source = DataSource.of(place)
    path, objects = source.path, read_source(source)
    if "sample" not in objects[0] and {"inputs", "targets"} & objects[0].keys():
        return _entries(_checked(TaskSample, objects, path), path)
    entries = _checked(PoolEntry, objects, path)
    repeated = [name for name, count in Counter(entry.model_name for entry in entries).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: adapter {shortened(repeated[0])!r} is there more than once")
    return entries


def _entries(samples: Sequence[TaskSample], path: Path) -> list[PoolEntry]:
    """One entry for each task, with the samples of the task."""
    domains: dict[str, str] = {}
    found: dict[str, list[Sample]] = {}
    for number, sample in enumerate(samples, start=1):
        domain = domains.setdefault(sample.task, sample.domain)
        if sample.domain != domain:
            raise UserError(
                f"{path}: row {number}: domain {quoted(sample.domain)}, but earlier rows of task {quoted(sample.task)} "
                f"have {quoted(domain)}; a task has one domain"
            )
        found.setdefault(sample.task, []).append(Sample.model_construct(inputs=sample.inputs, targets=sample.targets))
    return [PoolEntry(model_name=task, domain=domains[task], sample=tuple(found[task])) for task in found]


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks in the order in which they first appear."""
    return list(dict.fromkeys(row.task for row in rows))


def texts_of(targets: str | Sequence[str]) -> tuple[str, ...]:
    """The targets of a row as a tuple, whether there is one or several."""
    return (targets,) if isinstance(targets, str) else tuple(targets)


def joined(targets: str | Sequence[str]) -> str:
    """The targets of a row as one text to show: several with ` | ` between them."""
    return " | ".join(texts_of(targets))


def single_spaced(text: str) -> str:
    """The text with every stretch of white space as one space, in Unicode form NFC.

    Two texts with the same result are the same text for audits.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def shortened(text: str, length: int = EXAMPLE_LENGTH) -> str:
    """The beginning of a text in one line."""
    line = single_spaced(text)
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _listed(names: Sequence[str]) -> str:
    """The first names, to show in a message."""
    return ", ".join(shortened(name, 40) for name in names[:8]) + (", …" if len(names) > 8 else "")


def _checked(kind: type[Checked], objects: Sequence[dict[str, Any]], path: Path) -> list[Checked]:
    checked = []
    for number, content in enumerate(objects, start=1):
        try:
            checked.append(kind.model_validate(content))
        except ValidationError as error:
            hint = ""
            if error.errors()[0]["type"] == "missing":
                listed = ", ".join(quoted(name) for name in list(content)[:8] if name not in ADDED)
                hint = f" (found: {listed or 'nothing'})"
                if error.errors()[0]["loc"][0] in ("task", "domain", "metric"):
                    hint += "; `--defaults`, or `data.defaults` in a profile, gives the field to all rows"
            raise UserError(f"{path}: row {number}: field {problems_of(error, quote=chr(39))[0]}{hint}") from error
    return checked
