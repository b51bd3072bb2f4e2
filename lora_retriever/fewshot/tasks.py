"""The tasks of a few-shot experiment: a folder of files `{input, target}`, each divided into examples and test rows.

BBH's files have this form: an object whose list `examples` has the objects `{input, target}`. A file of rows `{inputs,
targets}` is read, too. LoraHub's five examples come from 100 rows that are held out; the other rows are the test.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_retriever.data.objects import read_objects, read_text
from lora_retriever.data.rows import OPTION_METRICS, Row, Sample, single_spaced, texts_of
from lora_retriever.errors import UserError
from lora_retriever.experiment.checks import other_spelling

LETTER = re.compile(r"^(\([A-Z]\))", re.MULTILINE)
"""An option that an input lists, as BBH's inputs do."""
MAX_OPTIONS = 30
"""Maximum number of distinct targets of a task whose options are compared."""
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
RULE = "-----"
"""The line of BBH's prompt files after which the description of the task comes."""


@dataclass(frozen=True)
class Division:
    """How a task's rows become examples and test rows.

    Attributes:
        examples: number of examples.
        held_out: number of rows that are no test rows, of which the examples are drawn. A task with fewer than twice
            as many rows holds out half of its rows.
        seed: the seed of the draw.
        limit: maximum number of test rows. None: all.
    """

    examples: int = 5
    held_out: int = 100
    seed: int = 42
    limit: int | None = None


@dataclass(frozen=True)
class FewShotTask:
    """One task: its examples, and the rows that are answered.

    Attributes:
        name: the name of the file, without its suffix.
        file: the file of the task.
        description: the text before every question. Empty: the inputs stand alone.
        examples: inputs without the description, and targets.
        rows: the test rows. Their inputs are whole: each begins with the description.
        questions: the inputs of the test rows without the description.
        example_rows: the examples with whole inputs.
    """

    name: str
    file: Path
    description: str
    examples: tuple[Sample, ...]
    rows: tuple[Row, ...]
    questions: tuple[str, ...]
    example_rows: tuple[Row, ...]


def described(description: str, question: str) -> str:
    """The inputs of a question: LoraHub's description, empty line, `Q: `, question, line break, `A:`.

    Without a description, the question stands alone.
    """
    return f"{description}\n\n{asked(description, question)}" if description else question


def asked(description: str, question: str) -> str:
    """A question in BBH's form, `Q: …` and `A:`, if there is a description; else the question alone."""
    return f"Q: {question}\nA:" if description else question


def read_tasks(
    folder: Path,
    names: Sequence[str],
    division: Division,
    metric: str,
    descriptions: Path | None = None,
) -> list[FewShotTask]:
    """The tasks of a folder, in the order of their names. The ids of the test rows count through all tasks.

    Args:
        names: the tasks that are read. Empty: all.
        metric: the metric of the test rows.
        descriptions: a folder with a file `TASK.txt` for each task, as BBH's prompts: the description is the first line
            after `-----`, or the first line of a file without `-----`.

    Raises:
        UserError: there is no such folder, task or description, two files are of one task, a file is unusable, or a
            task has too few rows.
    """
    if not folder.is_dir():
        raise UserError(f"--tasks {folder}: there is no such folder")
    files = _files_of_tasks(folder)
    if unknown := [name for name in names if name not in files]:
        raise UserError(f"--tasks {folder}: has no task {unknown[0]!r} (there are: {', '.join(files)})")
    tasks: list[FewShotTask] = []
    first = 0
    for name, path in files.items():
        if names and name not in names:
            continue
        description = _description(descriptions / f"{name}.txt") if descriptions else ""
        samples = _samples(path)
        examples, tested = _divided(samples, division, path)
        labels = labels_of(samples, path) if metric in OPTION_METRICS else ()
        domain = folder.resolve().name or "tasks"
        rows = rows_of(tested, name, domain, metric, labels, first, description)
        shown = rows_of(examples, name, domain, metric, labels, 0, description)
        first += len(rows)
        questions = tuple(sample.inputs for sample in tested)
        tasks.append(FewShotTask(name, path, description, tuple(examples), rows, questions, shown))
    return tasks


def _files_of_tasks(folder: Path) -> dict[str, Path]:
    """The file of each task, by the task's name in Unicode form NFC. Hidden files are passed over."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = max((end for end in SUFFIXES if path.name.endswith(end)), key=len, default="")
        if not suffix or path.name.startswith(".") or not path.is_file():
            continue
        name = unicodedata.normalize("NFC", path.name.removesuffix(suffix))
        other = files.get(name) or files.get(other_spelling(name, files) or "")
        if other is not None:
            raise UserError(
                f"--tasks {folder}: {other.name!a} and {path.name!a} are files of one task; rename one, or move it away"
            )
        files[name] = path
    if not files:
        raise UserError(f"--tasks {folder}: has no file that ends in {', '.join(SUFFIXES)}")
    return files


def rows_of(
    samples: Sequence[Sample],
    task: str,
    domain: str,
    metric: str,
    labels: tuple[str, ...] = (),
    first: int = 0,
    description: str = "",
) -> tuple[Row, ...]:
    """Rows of samples.

    Args:
        labels: the targets of the task, for a metric that compares options. The options of a row are the letters that
            its input lists, `(A)` and so on at the beginnings of lines, or else these labels.
        first: the id of the first row.
        description: the description of the task, which is put before the inputs.
    """
    return tuple(
        Row(
            inputs=described(description, sample.inputs),
            targets=sample.targets,
            task=task,
            domain=domain,
            metric=metric,
            options=_options(sample, labels) if labels else None,
            id=first + place,
        )
        for place, sample in enumerate(samples)
    )


def labels_of(samples: Sequence[Sample], path: Path) -> tuple[str, ...]:
    """The distinct targets of a task, in alphabetical order.

    Raises:
        UserError: there are fewer than two targets, or too many for options.
    """
    labels = tuple(sorted({target for sample in samples for target in texts_of(sample.targets)}))
    if not 2 <= len(labels) <= MAX_OPTIONS:
        raise UserError(
            f"{path}: {len(labels)} distinct targets are no options; score the task by exact or starts-with"
        )
    return labels


def _options(sample: Sample, labels: tuple[str, ...]) -> tuple[str, ...]:
    listed = tuple(dict.fromkeys(LETTER.findall(sample.inputs)))
    return listed if len(listed) > 1 and set(texts_of(sample.targets)) <= {*listed} else labels


def _samples(path: Path) -> list[Sample]:
    found = []
    for place, content in enumerate(read_objects(path), start=1):
        inputs, targets = (content.get(f"{name}s", content.get(name)) for name in ("input", "target"))
        for name, value in (("input", inputs), ("target", targets)):
            if not (isinstance(value, str) and value.strip()) and not (name == "target" and isinstance(value, list)):
                raise UserError(f"{path}: row {place}: field {name!r} is missing, blank or no text")
        try:
            found.append(Sample.model_validate({"inputs": inputs, "targets": targets}))
        except ValueError as error:
            raise UserError(f"{path}: row {place}: field 'target' is no text and no list of texts") from error
    return found


def _divided(samples: list[Sample], division: Division, path: Path) -> tuple[list[Sample], list[Sample]]:
    """The examples and the tested rows, in their order. A row with an example's input is no test row."""
    held_out = min(division.held_out, len(samples) // 2)
    if held_out < division.examples:
        raise UserError(
            f"{path}: {len(samples)} rows are too few for {division.examples} examples; give twice as many rows"
        )
    order = list(range(len(samples)))
    random.Random(division.seed).shuffle(order)
    examples = [samples[place] for place in order[: division.examples]]
    seen = {single_spaced(sample.inputs) for sample in examples}
    tested = [samples[place] for place in sorted(order[held_out:]) if single_spaced(samples[place].inputs) not in seen]
    if not tested:
        raise UserError(f"{path}: no test row is left beside the examples")
    return examples, tested[: division.limit]


def _description(path: Path) -> str:
    lines = [line.strip() for line in read_text(path).splitlines()]
    if RULE in lines:
        lines = lines[lines.index(RULE) + 1 :]
    if description := next((line for line in lines if line), ""):
        return description
    raise UserError(f"{path}: has no description; write one line of text")
