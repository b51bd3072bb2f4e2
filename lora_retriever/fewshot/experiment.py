"""LoraHub's experiment: every task with several draws of adapters, beside baselines, in a results folder that resumes.

Runs of the results folder: `zero_shot`, `in_context`, `mixture` (adapters retrieved for each row), `lora` (an adapter
trained on the examples), `lorahub_1` to `lorahub_N` (the draws), and `lorahub_chosen`: for each task the draw with the
least value of the objective on the examples. The draw with the best test score is in the table only, since no one can
know this draw without the test's targets.

Everything that is finished lies in `learned/fewshot`: the answers of a run to a task, the steps of a search, the
trained adapters. So a stopped experiment continues, and nothing that is finished is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.experiment.checks import other_spelling
from lora_retriever.fewshot.answering import GAP, answer_all, rows_in_context
from lora_retriever.fewshot.choosing import Nearest, choose, losses_alone
from lora_retriever.fewshot.objectives import objective_of
from lora_retriever.fewshot.tasks import FewShotTask
from lora_retriever.files import write_json, write_text
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import ModelSource, load_base, load_tokenizer
from lora_retriever.methods.code import GENERATION, RETRIEVAL, changes, hashes_of
from lora_retriever.methods.parts.lorahub_weights import Search, learn_weights
from lora_retriever.progress import progress_bar
from lora_retriever.retrieval.encoders import Encoder
from lora_retriever.running.code import FILES_NAMED
from lora_retriever.running.results_folder import LEARNED, writing_into
from lora_retriever.running.run_file import differences
from lora_retriever.training.adapter import train_adapter
from lora_retriever.training.lora import TrainingOptions

BASELINES = ("zero_shot", "in_context", "mixture", "lora")
CHOSEN = "lorahub_chosen"
MIXED = 3
"""Number of adapters that the run `mixture` retrieves for a row: the LoraRetriever paper's k."""
FOLDER = "fewshot"
CODE = (
    *(f"lora_retriever/fewshot/{name}.py" for name in ("answering", "choosing", "experiment", "objectives", "tasks")),
    "lora_retriever/methods/parts/lorahub_weights.py",
)
"""The code of the experiment itself. The code of the tables does not count, because tables are made anew each time."""


@dataclass(frozen=True)
class Design:
    """The design of an experiment: the varied values, and the baselines.

    Attributes:
        draws: number of draws of adapters. Draw n has the seed n.
        count: number of adapters of a draw.
        choice: a name of `choosing.CHOICES`.
        objective: a name of `objectives.OBJECTIVES`.
        search: how weights are searched for.
        baselines: names of `BASELINES`.
        without_own: whether a task does without the adapter of the task's name.
    """

    draws: int = 5
    count: int = 20
    choice: str = "random"
    objective: str = "loss"
    search: Search = field(default_factory=Search)
    baselines: tuple[str, ...] = ("zero_shot", "in_context", "lora")
    without_own: bool = False

    @property
    def runs(self) -> list[str]:
        """The names of the runs, in the table's order."""
        return [*self.baselines, *self.draw_names, CHOSEN]

    @property
    def draw_names(self) -> list[str]:
        """The names of the draws' runs."""
        return [f"lorahub_{draw}" for draw in self.seeds]

    @property
    def seeds(self) -> range:
        """The seeds of the draws. A choice and an optimiser that draw nothing need one draw only."""
        drawn = self.choice == "random" or self.search.optimizer != "cobyla"
        return range(1, (self.draws if drawn else 1) + 1)


class Experiment:
    """The experiment on one base, with one pool, in one results folder."""

    def __init__(
        self,
        design: Design,
        tasks: Sequence[FewShotTask],
        generator: Generator,
        names: Sequence[str],
        results: Path,
        retrieval: Callable[[], tuple[Encoder, Sequence[PoolEntry]]],
        console: Console,
    ) -> None:
        """Put the parts together.

        Args:
            names: the adapters of the pool. The generator's model has also the adapters of the run `lora`.
            retrieval: gives the encoder and the pool. Not used if no adapter is retrieved.
        """
        self.design = design
        self.tasks = tasks
        self.generator = generator
        self.names = list(names)
        self.results = results
        self._retrieval = retrieval
        self._console = console

    def answer(self) -> None:
        """Compute the answers that the results folder does not have yet.

        Raises:
            UserError: a row cannot be answered, or the weights cannot be learned.
        """
        total = len(self.tasks) * len(self.design.runs)
        with progress_bar(self._console, "few-shot experiment", total) as bar:
            done = 0
            for task in self.tasks:
                for run in self.design.runs:
                    part = part_file(self.results, run, task.name)
                    if not part.exists():
                        lines = self._lines(run, task)
                        with writing_into(self.results):
                            part.parent.mkdir(parents=True, exist_ok=True)
                            write_text(part, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                    done += 1
                    bar.move_to(done, f"{done}/{total} {task.name} {run}")

    def _lines(self, run: str, task: FewShotTask) -> list[dict[str, Any]]:
        """The answered rows of a run for one task."""
        if run == CHOSEN:
            records = {draw: self._learned(task, draw) for draw in self.design.seeds}
            best = min(records, key=lambda draw: (records[draw]["objective"], draw))
            return read_lines(part_file(self.results, f"lorahub_{best}", task.name))
        rows: Sequence[Row] = task.rows
        cut: Callable[[str], str] = str
        if run == "in_context":
            rows, cut = rows_in_context(task, self.generator), _first_part
        compositions = self._compositions(run, task)
        answers = answer_all(self.generator, rows, compositions, "mixture" if run == "mixture" else "fusion")
        return [
            {
                **row.model_dump(mode="json"),
                "predicted_answer": cut(answer),
                "adapters": list(composition.weights),
                "weights": list(composition.weights.values()),
                "scores": [None] * len(composition.weights),
            }
            for row, answer, composition in zip(task.rows, answers, compositions, strict=True)
        ]

    def _compositions(self, run: str, task: FewShotTask) -> list[Composition]:
        """The composition of each row of a task in a run."""
        if run == "mixture":
            without = task.name if self.design.without_own else None
            found = self.nearest.of_each([row.inputs for row in task.rows], MIXED, without)
            return [Composition.of(dict.fromkeys(names, 1 / len(names))) for names in found]
        weights: dict[str, float] = {}
        if run == "lora":
            weights = {lora_name(task.name): 1.0}
        elif run in self.design.draw_names:
            weights = self._learned(task, int(run.removeprefix("lorahub_")))["weights"]
        return [Composition.of(weights)] * len(task.rows)

    @cached_property
    def nearest(self) -> Nearest:
        """The object that finds adapters for texts."""
        return Nearest(*self._retrieval(), self.names)

    def _learned(self, task: FewShotTask, draw: int) -> dict[str, Any]:
        """The record of a draw's weights, learned now if necessary."""
        folder = self.results / LEARNED / FOLDER / "draws"
        file = folder / f"{task.name}.{draw}.json"
        if file.exists():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        design = self.design
        samples = task.example_rows
        names = [name for name in self.names if not (design.without_own and name == task.name)]
        alone = losses_alone(self.generator, names, samples) if design.choice == "loss" else None
        nearest = self.nearest if design.choice == "retrieved" else None
        drawn = choose(design.choice, names, design.count, draw, samples, nearest, alone)
        loss = objective_of(design.objective, self.generator, drawn, samples)
        with writing_into(self.results):
            folder.mkdir(parents=True, exist_ok=True)
        learned = learn_weights(loss, drawn, design.search, draw, folder / f"{task.name}.{draw}.steps.jsonl")
        least = min(map(design.search.objective, learned.steps))
        record = {"task": task.name, "draw": draw, "objective": least, **learned.record()}
        with writing_into(self.results):
            write_json(file, record)
        return record


def _first_part(answer: str) -> str:
    """The answer up to the point where the model begins another example."""
    return answer.strip().split(GAP)[0].strip()


def check_own_adapters(tasks: Sequence[FewShotTask], names: Sequence[str]) -> None:
    """Check that every task can do without the adapter of the task's name.

    Args:
        names: the adapters of the pool.

    Raises:
        UserError: an adapter has the name of a task in another spelling, or a task has no adapter left.
    """
    for task in tasks:
        if (other := other_spelling(task.name, names)) is not None:
            raise UserError(
                f"--without-own: task {task.name!a} and adapter {other!a} differ only by Unicode form, case, white "
                "space or letters that look alike, or name one official task; the adapter would not be left out. Write "
                "the name in one spelling"
            )
        if all(name == task.name for name in names):
            raise UserError(f"--without-own: task {task.name!r} has no adapter left; give more adapters")


def lora_name(task: str) -> str:
    """The name of the adapter that was trained on a task's examples; no adapter of a folder has a name with `/`."""
    return f"trained/{task}"


def trained_adapters(
    results: Path, source: ModelSource, tasks: Sequence[FewShotTask], options: TrainingOptions, console: Console
) -> dict[str, Path]:
    """The folders of the adapters that are trained on the tasks' examples, by name; trained now if necessary.

    Args:
        source: the base model.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be trained.
    """
    folder = results / LEARNED / FOLDER / "adapters"
    found = {lora_name(task.name): folder / task.name for task in tasks}
    missing = [task for task in tasks if not (folder / task.name).exists()]
    if not missing:
        return found
    model, tokenizer = load_base(source.base, source.torch_dtype, source.device), load_tokenizer(source.base)
    with progress_bar(console, "training on the examples", len(missing)) as bar:
        for done, task in enumerate(missing, start=1):
            with writing_into(results):
                train_adapter(model, tokenizer, task.example_rows, options, folder / task.name)
            bar.move_to(done, f"{done}/{len(missing)} {task.name}")
    return found


def is_finished(results: Path, design: Design, tasks: Sequence[FewShotTask]) -> bool:
    """Whether every run of the experiment has answered every task."""
    return all(part_file(results, run, task.name).exists() for run in design.runs for task in tasks)


def write_runs(results: Path, design: Design, tasks: Sequence[FewShotTask]) -> None:
    """Write the file of each run of a finished experiment, unless the file has these answers already."""
    for run in design.runs:
        text = "".join(part_file(results, run, task.name).read_text(encoding="utf-8") for task in tasks)
        target = results / f"{run}.jsonl"
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            with writing_into(results):
                write_text(target, text)


def part_file(results: Path, run: str, task: str) -> Path:
    """The file with the answers of one run to one task."""
    return results / LEARNED / FOLDER / "parts" / run / f"{task}.jsonl"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that `Experiment` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def draws_of(results: Path, tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The records of all draws of a finished experiment, by task and draw."""
    folder = results / LEARNED / FOLDER / "draws"
    return [
        json.loads((folder / f"{task}.{draw}.json").read_text(encoding="utf-8")) for task in tasks for draw in seeds
    ]


def hold_to(results: Path, configuration: dict[str, Any], code: Mapping[str, str], keep_answers: bool = False) -> None:
    """Write the configuration into a new results folder, or check that the folder has the same configuration and code.

    Args:
        code: the SHA-256 of each source file that decides the answers (`code_of`).
        keep_answers: whether answers of other code are kept on purpose. The file then says so.

    Raises:
        UserError: the folder's experiment had another configuration, or other code; the message names what differs.
    """
    file = results / LEARNED / FOLDER / "experiment.json"
    wanted = json.loads(json.dumps(configuration))
    content = {**wanted, "code": dict(code)}
    if file.exists():
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
            made_by, kept = old.pop("code", None), old.pop("kept", [])
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{file}: is damaged ({one_line_of(error)}); choose another --results") from error
        if old != wanted:
            raise UserError(
                f"results folder {results} has an experiment of another configuration: "
                f"{'; '.join(differences(old, wanted))}. Choose another --results"
            )
        if made_by == code:
            return
        if not keep_answers:
            changed = ", ".join(changes(made_by, code)[:FILES_NAMED]) if isinstance(made_by, dict) else "not known"
            raise UserError(
                f"results folder {results} was answered by other code than this, so it is not up to date; files that "
                f"changed since: {changed}. Choose another --results to answer anew, or give --keep-answers to keep "
                "its answers on purpose: its record will say so"
            )
        content["kept"] = [*kept, made_by]
    with writing_into(results):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)


def code_of(design: Design) -> dict[str, str]:
    """The SHA-256 of each source file that decides the answers of an experiment, by the file's name."""
    names = [*GENERATION, *CODE]
    if design.choice == "retrieved" or "mixture" in design.baselines:
        names.append(RETRIEVAL)
    if "lora" in design.baselines:
        names.append("lora_retriever/training/")
    if design.objective == "score":
        names.append("lora_retriever/metrics/")
    return hashes_of(names)


def configuration_of(design: Design, tasks: Sequence[FewShotTask], further: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the answers of the experiment."""
    return {
        **asdict(design),
        "tasks": {
            task.name: {
                "description": task.description,
                "examples": [example.model_dump() for example in task.examples],
                "rows": len(task.rows),
            }
            for task in tasks
        },
        **further,
    }
