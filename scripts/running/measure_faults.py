"""What does each fault of the original change? `python scripts/running/measure_faults.py --profile P --results DIR`

Rows are answered without a fault and with each fault alone (`faulty_plans.py`). Two tables show, for each fault and
method, how much the mean over the exact-match tasks and the mean over all tasks change, on the same rows, with the
paired 95 % interval of `lora_retriever.analysis.comparison`. A third table shows what else changes.

`--limit N` answers the first N rows of each task; batches and retrieval are the same as for the whole file. Answers are
kept in DIR/answers.jsonl by the hash of everything that decides them. So a stopped measurement goes on, and a prompt is
answered once under each composition, whichever faults and methods need the answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from faulty_plans import FAULTS, Plan, Setting, factor_of
from rich.console import Console

from lora_retriever.analysis.comparison import NOT_SEPARABLE, P_SEPARABLE, Difference, compare
from lora_retriever.analysis.runs import AnsweredRow, Run
from lora_retriever.analysis.scores import MEAN, ScoredRun, score_run
from lora_retriever.data.rows import Row, limited
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source, open_benchmark
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.generation.batches import Request, plan_batches
from lora_retriever.generation.composition import Composition, adapters_of, weight_matrix
from lora_retriever.generation.generator import Generator, answer_of, make_prompts
from lora_retriever.generation.loading import load_generator, load_tokenizer
from lora_retriever.generation.prompt import RESPONSE_MARK
from lora_retriever.methods.context import Context, Resources
from lora_retriever.methods.paper import METHODS
from lora_retriever.metrics import Scoring
from lora_retriever.resampling import holm
from lora_retriever.tables import FORMATS, Cell, Table

COMPOSED = {method.name: method for method in METHODS if method.name != "base"}
"""The paper's methods that compose adapters."""
ANSWERS = "answers.jsonl"
LARGER_POOL = "larger-pool"
NEVER = 10**6
"""A maximum length of prompts that no prompt reaches, in tokens."""


@dataclass(frozen=True)
class Wanted:
    """One answer that is wanted: a request under a mode, and a temperature or None."""

    request: Request
    mode: str
    temperature: float | None

    @cached_property
    def key(self) -> str:
        """The hash of everything that decides the answer; drawn answers also depend on the row."""
        composition = self.request.composition
        alone = list(composition.weights.values()) == [1.0]  # mixture and fusion of one adapter are the same
        decisive = [self.request.prompt.token_ids, sorted(composition.weights.items()), "" if alone else self.mode]
        drawn = [] if self.temperature is None else [self.temperature, self.request.id]
        return hashlib.sha256(json.dumps([*decisive, *drawn]).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Given:
    """An answer: its text, and the number of tokens that were made for it."""

    text: str
    tokens: int


def main() -> None:
    """Plan, answer, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--results", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--larger-pool", type=Path, metavar="FILE", help="pool file for the fault larger-pool")
    parser.add_argument("--limit", type=int, help="rows per task (default: all)")
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"by default all: {', '.join(FAULTS)}")
    parser.add_argument("--methods", default=",".join(COMPOSED), help=f"by default all: {', '.join(COMPOSED)}")
    parser.add_argument(
        "--only-answered", action="store_true", help="make the table of what is answered, and no answer"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    args = parser.parse_args()
    faults, methods = args.faults.split(","), args.methods.split(",")
    if unknown := [name for name in (*faults, *methods) if name not in FAULTS and name not in COMPOSED]:
        parser.error(f"unknown: {', '.join(unknown)}")
    try:
        print("\n".join(map(FORMATS[args.format], measured(args, faults, methods))), end="")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def measured(args: argparse.Namespace, faults: Sequence[str], methods: Sequence[str]) -> list[Table]:
    """The tables of the command line's measurement.

    Raises:
        UserError: the profile, its files or the larger pool cannot be used.
    """
    profile = load_profile(args.profile)
    benchmark = open_benchmark(profile, None)
    larger = larger_benchmark(profile, args.larger_pool)
    setting = setting_of(profile, benchmark, larger, methods)
    able = [fault for fault in faults if larger is not None or fault != LARGER_POOL]
    plans = {(fault, method): FAULTS[fault][1](setting, method) for fault in able for method in methods}
    rows = benchmark.rows if args.limit is None else limited(benchmark.rows, args.limit)
    book = AnswerBook(args.results)
    everything = [*setting.right.values(), *plans.values()]
    if not args.only_answered:
        adapters = {**(larger or benchmark).adapters, **benchmark.adapters}
        answer_all(profile, replace(benchmark, adapters=adapters), everything, rows, book)
    effects = effects_of(setting, plans, rows, book, profile)
    means = [effect_table(effects, setting, rows, book, exact_match_only) for exact_match_only in (True, False)]
    return [*means, detail_table(effects, profile)]


def larger_benchmark(profile: Profile, pool: Path | None) -> Benchmark | None:
    """The benchmark with the larger pool, if a larger pool is given."""
    if pool is None:
        return None
    data = profile.data.model_copy(update={"pool": str(pool.resolve())})
    return open_benchmark(profile.model_copy(update={"data": data}), None)


def setting_of(profile: Profile, benchmark: Benchmark, larger: Benchmark | None, methods: Sequence[str]) -> Setting:
    """The plans of all rows of the benchmark's file without a fault, and the other data that faults need."""
    tokenizer, generation = load_tokenizer(benchmark.base), profile.generation
    inputs = [row.inputs for row in benchmark.rows]
    prompts = make_prompts(inputs, tokenizer, generation)
    uncut = make_prompts(inputs, tokenizer, generation.model_copy(update={"max_prompt_tokens": NEVER}))
    found = compositions_of(profile, benchmark, methods)
    configs = {
        name: json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        for name, folder in benchmark.adapters.items()
    }
    return Setting(
        benchmark.rows,
        {name: Plan(prompts, found[name], str(COMPOSED[name].mode)) for name in methods},
        {} if larger is None else compositions_of(profile, larger, methods),
        uncut,
        {name: config["lora_alpha"] / config["r"] for name, config in configs.items()},
    )


def compositions_of(profile: Profile, benchmark: Benchmark, methods: Sequence[str]) -> dict[str, list[Composition]]:
    """The compositions of all rows under each method."""
    resources = Resources(profile, benchmark, Path("unused"), Console(stderr=True), no_generator)
    return {
        name: COMPOSED[name].compositions(Context(resources, profile, COMPOSED[name].declaration)) for name in methods
    }


def no_generator() -> Generator:
    """A stand-in for the model: the paper's methods do not look into the model."""
    raise AssertionError("the paper's methods need no model to route rows")


class AnswerBook:
    """The answers on disk, by key. A line is added for each answer; a half-written last line is made anew."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ANSWERS
        self.given: dict[str, Given] = {}
        whole = [line for line in self._lines() if line.endswith("\n")]
        for line in whole:
            key, text, tokens = json.loads(line)
            self.given[key] = Given(text, tokens)
        if len(whole) < len(self._lines()):
            self.path.write_text("".join(whole), encoding="utf-8")

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []

    def add(self, answers: dict[str, Given]) -> None:
        """Write answers."""
        self.given.update(answers)
        with self.path.open("a", encoding="utf-8") as file:
            for key, answer in answers.items():
                file.write(json.dumps([key, answer.text, answer.tokens]) + "\n")


def wanted_of(plan: Plan, rows: Sequence[Row]) -> list[Wanted]:
    """The answers that a plan needs for some of the rows. A row's id is its position in the plan."""
    return [
        Wanted(Request(row.id, plan.prompts[row.id], plan.compositions[row.id]), plan.mode, plan.temperature)
        for row in rows
    ]


def answer_all(
    profile: Profile, benchmark: Benchmark, plans: Sequence[Plan], rows: Sequence[Row], book: AnswerBook
) -> None:
    """Make the answers that the book lacks, plan by plan."""
    missing = [any(wanted.key not in book.given for wanted in wanted_of(plan, rows)) for plan in plans]
    if not any(missing):
        return
    generator = load_generator(model_source(profile, benchmark))
    started, begun_with = time.perf_counter(), len(book.given)
    for place, plan in enumerate(plans):
        new = {wanted.key: wanted for wanted in wanted_of(plan, rows) if wanted.key not in book.given}
        load_scaled(generator, benchmark, [wanted.request.composition for wanted in new.values()])
        for batch in batches_of(list(new.values()), generator):
            book.add(answered(generator, batch))
        seconds, made = time.perf_counter() - started, len(book.given) - begun_with
        print(f"plan {place + 1} of {len(plans)}: {made} answers in {seconds:.0f} s", file=sys.stderr, flush=True)


def load_scaled(generator: Generator, benchmark: Benchmark, compositions: Sequence[Composition]) -> None:
    """Load the adapters with a factor that compositions name: the checkpoint with another alpha."""
    for name in adapters_of(compositions):
        if name in generator.model.adapters:
            continue
        plain, factor = factor_of(name)
        source = benchmark.adapters[plain]
        config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        config["lora_alpha"] *= factor
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            tensors = (source / "adapter_model.safetensors").read_bytes()
            (Path(folder) / "adapter_model.safetensors").write_bytes(tensors)
            generator.model.load_adapter(folder, name)


def batches_of(wanted: Sequence[Wanted], generator: Generator) -> Iterator[list[Wanted]]:
    """Batches of prompts of similar length. All requests of a plan have one mode and one temperature."""
    known = {each.request.id: each for each in wanted}
    for batch in plan_batches([each.request for each in wanted], generator.settings):
        yield [known[request.id] for request in batch]


def answered(generator: Generator, batch: Sequence[Wanted]) -> dict[str, Given]:
    """The answers to one batch, by key."""
    first = batch[0]
    prompts = [each.request.prompt for each in batch]
    compositions = [each.request.composition for each in batch]
    if first.temperature is None:
        answers = generator.answer(prompts, compositions, first.mode)
    else:
        torch.manual_seed(int(first.key[:8], 16))
        answers = drawn_answers(generator, prompts, compositions, first.mode, first.temperature)
    return {each.key: Given(answer.text, answer.generated_tokens) for each, answer in zip(batch, answers, strict=True)}


@torch.inference_mode()
def drawn_answers(
    generator: Generator, prompts: Sequence[Any], compositions: Sequence[Composition], mode: str, temperature: float
) -> list[Any]:
    """Answers whose tokens are drawn from the whole distribution at a temperature."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    lengths = [len(prompt.token_ids) for prompt in prompts]
    ids = [[generator.pad_id] * (longest - n) + p.token_ids for n, p in zip(lengths, prompts, strict=True)]
    mask = [[0] * (longest - n) + [1] * n for n in lengths]
    names, weights = weight_matrix(compositions)
    with generator.model.composed(names, weights, mode=mode):
        tokens = generator.model.generate(
            input_ids=torch.tensor(ids, device=generator.model.device),  # [batch, longest]
            attention_mask=torch.tensor(mask, device=generator.model.device),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=generator.settings.max_new_tokens,
            pad_token_id=generator.pad_id,
            eos_token_id=sorted(generator.eos_ids),
        )
    return [answer_of(ended(row, generator.eos_ids), generator.tokenizer) for row in tokens[:, longest:].tolist()]


def ended(tokens: list[int], eos_ids: Sequence[int]) -> list[int]:
    """The tokens up to the first EOS token."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in eos_ids), tokens)


@dataclass(frozen=True)
class Effect:
    """The changes that a fault makes to one method.

    Attributes:
        rows: the number of rows with another prompt, another composition or another decoding.
        answers: the number of rows with another answer.
        exact: the change of the mean over the exact-match tasks. None: the benchmark has none.
        everything: the change of the mean over all tasks.
        unfinished: answers of the maximum length, without and with the fault.
        marked: answers with a part of the template, without and with the fault.
    """

    rows: int
    answers: int
    exact: Difference | None
    everything: Difference | None
    unfinished: tuple[int, int]
    marked: tuple[int, int]


def effects_of(
    setting: Setting, plans: dict[tuple[str, str], Plan], rows: Sequence[Row], book: AnswerBook, profile: Profile
) -> dict[tuple[str, str], Effect | None]:
    """The effect of each fault on each method whose answers are all in the book. None: no row changes."""
    found: dict[tuple[str, str], Effect | None] = {}
    for (fault, method), plan in plans.items():
        right = setting.right[method]
        changed = sum(otherwise(plan, right, row.id) for row in rows)
        if not changed:
            found[fault, method] = None
            continue
        run, other = run_of(f"{method} with {fault}", plan, rows, book), run_of(method, right, rows, book)
        if run is None or other is None:
            continue
        found[fault, method] = Effect(
            changed,
            sum(run.rows[id].answer != other.rows[id].answer for id in run.rows),
            difference(run, other, exact_match_only=True),
            difference(run, other, exact_match_only=False),
            (unfinished(right, rows, book, profile), unfinished(plan, rows, book, profile)),
            (marked(other), marked(run)),
        )
    return found


def effect_table(
    effects: dict[tuple[str, str], Effect | None],
    setting: Setting,
    rows: Sequence[Row],
    book: AnswerBook,
    exact_match_only: bool,
) -> Table:
    """The change of a mean over tasks, a line for each fault and a column for each method."""
    methods = list(setting.right)
    runs = {method: run_of(method, plan, rows, book) for method, plan in setting.right.items()}
    whole = [None if (run := runs[method]) is None else scored(run, exact_match_only) for method in methods]
    scores = [None if run is None else Cell(run.quantities[MEAN]) for run in whole]
    lines: list[tuple[str, list[Cell | str | None]]] = [("without a fault", [*scores])]
    measured = {
        pair: change
        for pair, effect in effects.items()
        if effect and (change := effect.exact if exact_match_only else effect.everything)
    }
    corrected = dict(zip(measured, holm([change.p for change in measured.values()]), strict=True))
    for fault in dict.fromkeys(fault for fault, _ in effects):
        cells: list[Cell | str | None] = []
        for method in methods:
            pair = fault, method
            if pair in measured:
                change = measured[pair]
                mark = "" if corrected[pair] < P_SEPARABLE else f" {NOT_SEPARABLE}"
                cells.append(Cell(change.value, change.low, change.high, mark, difference=True))
            else:
                cells.append("no row changes" if pair in effects and effects[pair] is None else None)
        lines.append((FAULTS[fault][0], cells))
    which = "exact-match tasks" if exact_match_only else "tasks"
    notes = [
        f"The mean over the {which}, and its change in points with the 95 % interval; {len(rows)} rows of "
        f"{len({row.task for row in rows})} tasks, paper scoring.",
        f"{NOT_SEPARABLE} not separable: p, corrected for {len(measured)} changes (Holm), is {P_SEPARABLE} or more.",
    ]
    return Table(methods, lines, notes)


def detail_table(effects: dict[tuple[str, str], Effect | None], profile: Profile) -> Table:
    """The other changes, a line for each fault and method in which a row changes."""
    lines: list[tuple[str, list[Cell | str | None]]] = [
        (
            f"{FAULTS[fault][0]}: {method}",
            [
                str(effect.rows),
                str(effect.answers),
                *(None if change is None else f"{change.p:.4f}" for change in (effect.exact, effect.everything)),
                " → ".join(map(str, effect.unfinished)),
                " → ".join(map(str, effect.marked)),
            ],
        )
        for (fault, method), effect in effects.items()
        if effect is not None
    ]
    notes = [
        "p: paired permutation test, not corrected. Unfinished: answers of "
        f"{profile.generation.max_new_tokens} tokens. Marks: answers with a part of the template."
    ]
    columns = ["rows changed", "answers changed", "p, exact match", "p, all tasks", "unfinished", "marks"]
    return Table(columns, lines, notes)


def otherwise(plan: Plan, right: Plan, id: int) -> bool:
    """Whether a row has another composition, another prompt or another decoding under a fault."""
    return (
        plan.compositions[id].weights != right.compositions[id].weights
        or plan.prompts[id].token_ids != right.prompts[id].token_ids
        or plan.temperature != right.temperature
    )


def run_of(name: str, plan: Plan, rows: Sequence[Row], book: AnswerBook) -> Run | None:
    """The run of a plan, from the answers in the book. None: the book lacks an answer."""
    keys = {wanted.request.id: wanted.key for wanted in wanted_of(plan, rows)}
    if any(key not in book.given for key in keys.values()):
        return None
    answers = {row.id: {**row.model_dump(), "predicted_answer": book.given[keys[row.id]].text} for row in rows}
    return Run(name, {id: AnsweredRow.model_validate(answer) for id, answer in answers.items()}, {})


def scored(run: Run, exact_match_only: bool) -> ScoredRun | None:
    """The run, scored. None: no task is left."""
    left_out = [id for id, row in run.rows.items() if exact_match_only and row.metric != "em"]
    return score_run(run.without(left_out), Scoring("paper")) if len(left_out) < len(run.rows) else None


def difference(run: Run, other: Run, exact_match_only: bool) -> Difference | None:
    """The mean over tasks of a run minus the mean over tasks of another run. None: there are no exact-match tasks."""
    both = [scored(one, exact_match_only) for one in (run, other)]
    known = [one for one in both if one is not None]
    return compare(known, other.name, "mean")[0].differences[MEAN] if len(known) == len(both) else None


def unfinished(plan: Plan, rows: Sequence[Row], book: AnswerBook, profile: Profile) -> int:
    """The number of answers that reached the maximum length."""
    longest = profile.generation.max_new_tokens
    return sum(book.given[wanted.key].tokens >= longest for wanted in wanted_of(plan, rows))


def marked(run: Run) -> int:
    """The number of answers that hold a part of the Alpaca template."""
    mark = RESPONSE_MARK.split()[0]
    return sum(mark in row.answer for row in run.rows.values())


if __name__ == "__main__":
    main()
