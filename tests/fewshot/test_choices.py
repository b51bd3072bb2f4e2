"""The choices of LoraHub's experiment: modules, objective, optimiser, penalty, scoring; and the original's faults."""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composition_cases import write_adapter
from made_up import tiny_t5
from places import TINY
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

from lora_retriever.cli import main
from lora_retriever.commands.lorahub import arguments
from lora_retriever.data.rows import PoolEntry, Row, Sample
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.fewshot import choosing
from lora_retriever.fewshot.answering import answer_all
from lora_retriever.fewshot.choosing import CHOICES, Nearest, choose, losses_alone
from lora_retriever.fewshot.experiment import (
    BASELINES,
    Design,
    check_own_adapters,
    code_of,
    hold_to,
    read_lines,
)
from lora_retriever.fewshot.objectives import OBJECTIVES, objective_of
from lora_retriever.fewshot.published import COLUMNS, PUBLISHED, belongs_to
from lora_retriever.fewshot.table import difference_table, score_table, scored_runs
from lora_retriever.fewshot.tasks import Division, read_tasks, rows_of
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import ModelSource, load_generator
from lora_retriever.generation.prompt import encode_prompt
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.tokenizing import text_tokens
from lora_retriever.methods.parts.lorahub_weights import OPTIMIZERS, PENALTIES, Search, Step, answer_loss, learn_weights
from lora_retriever.metrics import Scoring
from lora_retriever.tables import Cell
from peft_composition import ComposableModel

PLANTED = (0.8, -0.5, 0.3)
NAMES = ("a", "b", "c")


def quadratic(weights: Sequence[float]) -> float:
    return 1 + sum((weight - planted) ** 2 for weight, planted in zip(weights, PLANTED, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "within"), [("cobyla", 0.05), ("cma", 0.1), ("random", 0.9)])
def test_every_optimizer_begins_at_the_base_and_nears_planted_weights(
    optimizer: str, within: float, tmp_path: Path
) -> None:
    log = tmp_path / "steps.jsonl"
    learned = learn_weights(quadratic, NAMES, Search(100, 0, optimizer=optimizer), seed=1, log=log)
    assert learned.steps[0].weights == (0, 0, 0)
    assert list(learned.weights.values()) == pytest.approx(PLANTED, abs=within)
    assert max(abs(weight) for step in learned.steps for weight in step.weights) <= 1.5

    def never(_: Sequence[float]) -> float:
        raise AssertionError("a search with a log goes on where it was")

    assert learn_weights(never, NAMES, Search(100, 0, optimizer=optimizer), seed=1, log=log) == learned


def test_the_penalty_is_the_mean_of_the_code_or_the_sum_of_the_paper() -> None:
    step = Step((0.5, -1.5), 2.0, 0.0)
    assert Search(l1=0.05).objective(step) == pytest.approx(2 + 0.05 * (0.5 + 1.5) / 2)
    assert Search(l1=0.05, penalty="sum").objective(step) == pytest.approx(2 + 0.05 * (0.5 + 1.5))


@pytest.fixture(scope="session")
def generator(tiny: Profile) -> Generator:
    """The miniature with all its adapters."""
    return load_generator(model_source(tiny, open_benchmark(tiny, 2)))


def examples_of(entry: PoolEntry, metric: str = "em") -> tuple[Row, ...]:
    return rows_of(entry.sample[:5], entry.model_name, "few", metric)


@pytest.mark.slow
def test_fault_1_the_loss_is_per_example_and_not_per_batch(generator: Generator, tiny_pool: list[PoolEntry]) -> None:
    """The original divides the sum of the batches' losses by the number of examples: a batch of five gives a fifth."""
    samples, name = tiny_pool[0].sample[:5], tiny_pool[0].model_name
    small, large = (generator.settings.model_copy(update={"batch_size": size}) for size in (1, 5))
    losses = [answer_loss(generator.model, generator.tokenizer, [name], samples, s)([0.7]) for s in (small, large)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    singly = [answer_loss(generator.model, generator.tokenizer, [name], [s], small)([0.7]) for s in samples]
    assert losses[1] == pytest.approx(np.mean(singly), rel=1e-4)


@pytest.mark.slow
def test_fault_2_the_base_is_not_changed_by_loading_and_learning(
    generator: Generator, tiny_pool: list[PoolEntry]
) -> None:
    before = {name: value.clone() for name, value in generator.model.base.state_dict().items()}
    names = [entry.model_name for entry in tiny_pool[:3]]
    losses = losses_alone(generator, names, examples_of(tiny_pool[0]))
    assert losses == losses_alone(generator, names, examples_of(tiny_pool[0]))
    after = generator.model.base.state_dict()
    assert before.keys() == after.keys()
    assert all(bool((after[name] == value).all()) for name, value in before.items())


@pytest.mark.slow
def test_fault_3_a_decoder_only_base_and_an_encoder_decoder_base_are_both_learned(
    generator: Generator, tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    """The original is for encoder-decoder models only.

    On both kinds of bases, the loss equals the loss of a forward pass.
    """
    t5 = tiny_t5(tmp_path / "base")
    write_adapter(tmp_path / "one", t5, seed=1, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    settings = GenerationSection(template="none", max_prompt_tokens=64)
    other = load_generator(ModelSource(tmp_path / "base", {"one": tmp_path / "one"}, settings))
    for one, name in ((generator, tiny_pool[0].model_name), (other, "one")):
        samples = tiny_pool[0].sample[:2]
        loss = answer_loss(one.model, one.tokenizer, [name], samples, one.settings)
        assert learn_weights(loss, [name], Search(4, 0)).base_loss == pytest.approx(plain_loss(one, samples), rel=1e-4)


def plain_loss(generator: Generator, samples: Sequence[Sample]) -> float:
    """The mean over samples of transformers' own loss of the answer, without an adapter."""
    base, tokenizer = generator.model.base, generator.tokenizer
    losses = []
    for sample in samples:
        prompt = encode_prompt(tokenizer, generator.settings.template_for(tokenizer), sample.inputs, 512).token_ids
        answer = [*text_tokens(tokenizer, sample.target), tokenizer.eos_token_id]
        with torch.no_grad():
            if base.config.is_encoder_decoder:
                ids = torch.tensor([[*prompt, tokenizer.eos_token_id]])
                losses.append(float(base(input_ids=ids, labels=torch.tensor([answer])).loss))
            else:
                ids, labels = torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])
                losses.append(float(base(input_ids=ids, labels=labels).loss))
    return sum(losses) / len(losses)


@pytest.mark.slow
def test_fault_4_adapters_of_other_ranks_and_modules_are_taken_from_local_folders(
    generator: Generator, tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    """The original gives all adapters the scaling and the targets of the first. Here every adapter has its own."""
    base = AutoModelForCausalLM.from_pretrained(TINY / "base")
    wide = write_adapter(tmp_path / "wide", base, seed=1, r=8, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    narrow = write_adapter(tmp_path / "narrow", base, seed=2, r=8, lora_alpha=16, target_modules=["v_proj", "q_proj"])
    odd = write_adapter(tmp_path / "odd", base, seed=3, r=2, target_modules=["o_proj"])
    names = ["wide", "narrow", "odd"]
    source = ModelSource(TINY / "base", dict(zip(names, (wide, narrow, odd), strict=True)), generator.settings)
    mine = load_generator(source)
    weights = [0.7, -0.4, 0.9]
    samples = tiny_pool[0].sample[:2]
    dense: Any = AutoModelForCausalLM.from_pretrained(TINY / "base")
    for module, update in fused([wide, narrow, odd], weights).items():
        dense.get_submodule(module).weight.data += update
    expected = plain_loss(Generator(ComposableModel(dense.eval()), mine.tokenizer, mine.settings), samples)
    found = answer_loss(mine.model, mine.tokenizer, names, samples, mine.settings)(weights)
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(found - plain_loss(mine, samples)) > 0.01


def fused(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """(Σ w s B)(Σ w A) of each module, smaller ranks padded with zeros, from the files of the adapters."""
    rank = 8
    down: dict[str, torch.Tensor] = {}
    up: dict[str, torch.Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in (key for key in tensors if key.endswith("lora_A.weight")):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
            missing = rank - config["r"]
            a = weight * pad(a, (0, 0, 0, missing))
            b = weight * config["lora_alpha"] / config["r"] * pad(b, (0, missing))
            down[module], up[module] = down.get(module, 0) + a, up.get(module, 0) + b
    return {module: up[module] @ down[module] for module in down}


def test_fault_6_a_right_label_with_further_words_is_right_by_its_beginning() -> None:
    def score(metric: str, target: str, answer: str) -> float:
        first = Scoring().metrics_of("", metric)[0]
        return float(first.combine(first.statistics([answer], [target]).sum(axis=0))[0])

    assert score("em", "(A)", "(A) 05/01/2021") == 0
    assert score("starts_with", "(A)", "(A) 05/01/2021") == 100
    assert score("starts_with", "Yes.", "yes, he does") == 100
    assert score("starts_with", "no", "nobody") == 0


@pytest.mark.slow
def test_the_score_objective_is_the_share_of_wrong_answers(generator: Generator, tiny_pool: list[PoolEntry]) -> None:
    entry = tiny_pool[0]
    rows = examples_of(entry)
    wrong = objective_of("score", generator, [entry.model_name], rows)([1.0])
    answers = answer_all(generator, rows, [Composition.of({entry.model_name: 1.0})] * len(rows))
    plain = [
        (row.target.lower().strip(" ."), text.lower().strip(" .")) for row, text in zip(rows, answers, strict=True)
    ]
    right = [target == text for target, text in plain]
    assert wrong == pytest.approx(1 - sum(right) / len(right))


def test_options_are_compared_by_likelihood(generator: Generator) -> None:
    lettered = Sample(inputs="Which is it?\nOptions:\n(A) one\n(B) two\n(C) three", targets="(B)")
    plain = Sample(inputs="Is it so?", targets="yes")
    rows = rows_of([lettered, plain], "task", "few", "choice", ("no", "yes"))
    assert [row.options for row in rows] == [("(A)", "(B)", "(C)"), ("no", "yes")]
    for row, answer in zip(rows, answer_all(generator, rows, [Composition()] * 2), strict=True):
        assert answer in (row.options or ())


@pytest.mark.slow
def test_a_planted_sum_of_two_adapters_is_recovered(generator: Generator, tiny_pool: list[PoolEntry]) -> None:
    """A fusion of two adapters made the examples' answers.

    The learned weights answer as well as the planted weights.
    """
    one, two, three = (entry.model_name for entry in tiny_pool[:3])
    inputs = [sample for entry in tiny_pool[:2] for sample in entry.sample[:3]]
    asked = rows_of(inputs, "planted", "few", "em")
    answers = answer_all(generator, asked, [Composition.of({one: 0.6, two: 0.6})] * len(asked))
    planted = [Sample(inputs=row.inputs, targets=answer or "x") for row, answer in zip(asked, answers, strict=True)]
    loss = answer_loss(generator.model, generator.tokenizer, [one, two, three], planted, generator.settings)
    learned = learn_weights(loss, [one, two, three], Search(40, 0))
    assert learned.loss <= loss([0.6, 0.6, 0.0]) + 0.01
    assert abs(learned.weights[three]) < max(abs(learned.weights[one]), abs(learned.weights[two]))


class Letters:
    """An encoder by the counts of letters."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)


def test_modules_are_drawn_retrieved_or_best_alone() -> None:
    samples = {name: (Sample(inputs=name * 3, targets="x"),) for name in NAMES}
    pool = [PoolEntry(model_name=name, domain="d", sample=sample) for name, sample in samples.items()]
    nearest = Nearest(Letters(), pool, NAMES)
    asked = [Sample(inputs="bbc", targets="x")]
    assert choose("retrieved", NAMES, 2, 0, asked, nearest) == ["b", "c"]
    assert choose("retrieved", ("a", "c"), 2, 0, asked, nearest) == ["c", "a"]
    assert nearest.of_each(["a", "cb"], 2, without="c") == [["a", "b"], ["b", "a"]]
    assert choose("loss", NAMES, 2, 0, asked, losses={"a": 2.0, "b": 3.0, "c": 1.0}) == ["c", "a"]
    assert choose("random", NAMES, 2, 5, asked) == choose("random", NAMES, 2, 5, asked)
    assert list(Design(choice="retrieved").seeds) == [1]
    assert list(Design(choice="retrieved", search=Search(optimizer="cma")).seeds) == [1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="no samples of the adapter 'd'"):
        Nearest(Letters(), pool, ["d"])


def test_tasks_have_the_form_of_the_papers_inputs(tmp_path: Path) -> None:
    rows = [{"input": f"q{number}", "target": "yes"} for number in range(10)]
    (tmp_path / "one.json").write_text(json.dumps({"canary": "c", "examples": rows}))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("canary\n-----\nSay it.\n\nQ: x\nA: y\n")
    (task,) = read_tasks(tmp_path, [], Division(held_out=5, limit=3), "em", tmp_path / "texts")
    assert task.rows[0].inputs == f"Say it.\n\nQ: {task.questions[0]}\nA:"
    assert len(task.rows) == 3
    assert len(task.examples) == 5
    assert not {row.inputs for row in task.rows} & {row.inputs for row in task.example_rows}
    (again,) = read_tasks(tmp_path, ["one"], Division(held_out=5, limit=3), "em", tmp_path / "texts")
    assert again == task
    (tmp_path / "two.json").write_text('[{"input": "a"}]')
    with pytest.raises(UserError, match=r"two\.json: row 1: field 'target' is missing"):
        read_tasks(tmp_path, [], Division(), "em")


def write_tasks(folder: Path, *files: str) -> None:
    rows = [{"input": f"q{number}", "target": "yes"} for number in range(4)]
    for name in files:
        text = json.dumps(rows).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)


@pytest.mark.parametrize(
    "files",
    [
        ("one.json", "one.jsonl"),
        ("one.json", "one.json.gz"),
        ("one.json", "One.json"),
        ("caf\u00e9.json", "cafe\u0301.jsonl"),
        ("dart.json", "dart_10templates.json"),
    ],
)
def test_two_files_of_one_task_are_refused(tmp_path: Path, files: tuple[str, str]) -> None:
    write_tasks(tmp_path, *files)
    with pytest.raises(UserError, match="are files of one task") as refused:
        read_tasks(tmp_path, [], Division(examples=1), "em")
    assert all(ascii(name) in str(refused.value) for name in files)


def test_packed_tasks_are_read_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_tasks(tmp_path, "one.json.gz", "two.jsonl.gz", "notes.txt")
    (tmp_path / "._one.json").write_bytes(b"\0\5\x16\7" + bytes(60))  # macOS writes such files
    assert [task.name for task in read_tasks(tmp_path, [], Division(examples=1), "em")] == ["one", "two"]


def test_a_row_that_differs_from_an_example_by_white_space_is_no_test_row(tmp_path: Path) -> None:
    rows = [{"input": "q" + " " * number, "target": "yes"} for number in range(6)]
    (tmp_path / "one.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="no test row is left beside the examples"):
        read_tasks(tmp_path, [], Division(examples=1), "em")


def test_an_own_adapter_of_another_spelling_is_not_left_in(tmp_path: Path) -> None:
    write_tasks(tmp_path, "city_qa.json")
    tasks = read_tasks(tmp_path, [], Division(examples=1), "em")
    check_own_adapters(tasks, ["city_qa", "other"])
    for names in (["City_QA", "other"], ["city_qa", "city_qa "], ["city\u2011qa", "city-qa", "city_\u200bqa"]):
        with pytest.raises(UserError, match=r"task 'city_qa' and adapter .* differ only by"):
            check_own_adapters(tasks, names)
    with pytest.raises(UserError, match="task 'city_qa' has no adapter left"):
        check_own_adapters(tasks, ["city_qa"])


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_adapter_whose_loss_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    made = {"a": 1.0, "b": wrong}
    monkeypatch.setattr(choosing, "answer_loss", lambda *arguments: lambda _: made[arguments[2][0]])
    generator = SimpleNamespace(model=None, tokenizer=None, settings=None)
    with pytest.raises(UserError, match="adapter 'b': the loss of the examples is NaN or infinite"):
        losses_alone(generator, ["a", "b"], [])  # type: ignore[arg-type]


def test_answers_of_other_code_or_another_configuration_are_not_shown_as_up_to_date(tmp_path: Path) -> None:
    hold_to(tmp_path, {"draws": 1}, {"a.py": "1", "b.py": "2"})
    hold_to(tmp_path, {"draws": 1}, {"a.py": "1", "b.py": "2"})
    with pytest.raises(UserError, match=r"draws: 1 → 2\. Choose another --results"):
        hold_to(tmp_path, {"draws": 2}, {"a.py": "1", "b.py": "2"})
    with pytest.raises(UserError, match=r"answered by other code .* changed since: b\.py\. .*--keep-answers"):
        hold_to(tmp_path, {"draws": 1}, {"a.py": "1", "b.py": "3"})
    hold_to(tmp_path, {"draws": 1}, {"a.py": "1", "b.py": "3"}, keep_answers=True)
    hold_to(tmp_path, {"draws": 1}, {"a.py": "1", "b.py": "3"})
    file = tmp_path / "learned" / "fewshot" / "experiment.json"
    assert json.loads(file.read_text())["kept"] == [{"a.py": "1", "b.py": "2"}]
    file.write_text('{"draws": 1}')  # a record of an earlier version
    with pytest.raises(UserError, match="changed since: not known"):
        hold_to(tmp_path, {"draws": 1}, {"a.py": "1"})
    file.write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        hold_to(tmp_path, {"draws": 1}, {"a.py": "1"})


def test_the_code_of_an_experiment_is_what_decides_its_answers() -> None:
    plain, every = code_of(Design(baselines=())), code_of(Design(objective="score", baselines=BASELINES))
    assert "lora_retriever/methods/parts/lorahub_weights.py" in plain
    assert "lora_retriever/generation/loop.py" in plain
    assert "lora_retriever/fewshot/table.py" not in every
    for name in ("training/adapter.py", "retrieval/encoding.py", "metrics/paper.py"):
        assert (f"lora_retriever/{name}" in plain, f"lora_retriever/{name}" in every) == (False, True)


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\u2029"])
def test_a_text_with_an_unusual_line_end_is_one_line_of_a_file(tmp_path: Path, end: str) -> None:
    (tmp_path / "part.jsonl").write_text(json.dumps({"inputs": f"a{end}b"}, ensure_ascii=False) + "\n", "utf-8")
    assert read_lines(tmp_path / "part.jsonl") == [{"inputs": f"a{end}b"}]


def test_published_figures_belong_to_one_base_and_recompute_to_the_printed_averages() -> None:
    assert belongs_to("google/flan-t5-large")
    assert not belongs_to("google/flan-t5-xl")
    means = [round(sum(column) / 27, 1) for column in zip(*PUBLISHED.values(), strict=True)]
    assert dict(zip(COLUMNS, means, strict=True)) == pytest.approx(
        {"zero_shot": 27.0, "in_context": 37.3, "lora": 37.7, "mean": 34.7, "best": 41.2}, abs=0.11
    )


@pytest.mark.slow
def test_the_table_has_intervals_and_perhaps_the_published_figures(tmp_path: Path) -> None:
    right = {"zero_shot": 0, "lorahub_1": 4, "lorahub_2": 8, "lorahub_chosen": 4}  # of 10 rows
    for name, number in right.items():
        rows: list[dict[str, Any]] = [
            {
                "id": id,
                "inputs": f"q{id}",
                "targets": "yes",
                "task": "navigate",
                "domain": "bbh",
                "metric": "em",
                "predicted_answer": "yes" if id < number else "no",
                "adapters": [],
                "weights": [],
                "scores": [],
            }
            for id in range(10)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    design = Design(draws=2, baselines=("zero_shot",))
    runs = scored_runs(tmp_path, design)
    table = score_table(runs, design, published=False)
    assert table.columns == ["zero_shot", "mean of draws", "best draw", "lorahub_chosen"]
    for _, line in table.rows:  # the task, and the mean over the one task
        cells = [cell for cell in line if isinstance(cell, Cell)]
        assert [cell.value for cell in cells] == [0, 60, 80, 40]
        assert cells[2].low is None  # no interval for a draw that the test chose
        for cell in (cells[0], cells[1], cells[3]):
            assert cell.low is not None and cell.high is not None
            assert cell.low <= cell.value <= cell.high
            assert 15 < cell.high - cell.low < 80  # a share of ten rows
    figures = score_table(runs, design, published=True).rows[0][1][4:]
    assert [cell.value for cell in figures if isinstance(cell, Cell)] == [*PUBLISHED["navigate"]]
    differences = difference_table(runs, design)
    assert differences is not None
    ((_, (difference,)),) = differences.rows
    assert isinstance(difference, Cell) and difference.value == 40 and difference.low is not None
    assert difference_table(runs, Design(draws=2, baselines=())) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tasks", "t"), "--results"),
        (("--examples", "x.json"), "--out"),
        (("--tasks", "t", "--results", "r", "--choice", "retrieved"), "--encoder and --pool"),
        (("--examples", "x.json", "--out", "o", "--draws", "5"), "--draws: belongs to the experiment"),
        (("--examples", "x.json", "--out", "o", "--baselines", "none"), "--baselines: belongs to the experiment"),
        (("--examples", "x.json", "--out", "o", "--without-own"), "--without-own: belongs to the experiment"),
        (("--examples", "x.json", "--out", "o", "--limit", "5"), "--limit: belongs to the experiment"),
        (("--examples", "x.json", "--out", "o", "--results", "r"), "--results: belongs to the experiment"),
        (("--tasks", "t", "--results", "r", "--seed", "1"), "--seed: belongs to one task"),
        (("--tasks", "t", "--results", "r", "--out", "o"), "--out: belongs to one task"),
        (("--tasks", "t", "--results", "r", "--set", "seed=1"), "--set: sets a field of a profile"),
        (("--tasks", "t", "--results", "r", "--profile", "tiny"), "--base: --profile says this"),
    ],
)
def test_arguments_without_effect_are_refused_in_one_line(
    arguments: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lorahub", "--base", str(TINY / "base"), "--adapters", str(TINY / "adapters"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_base_or_a_profile_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lorahub", "--examples", "x.json", "--out", "o"]) == 2
    assert "name a base model with --base, or a profile with --profile" in capsys.readouterr().err


def test_the_arguments_offer_every_choice() -> None:
    """The arguments repeat the names of the choices, because help is shown before slow packages are imported."""
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    offered = {action.dest: action.choices for action in parser._actions}
    for name, known in (
        ("choice", CHOICES),
        ("objective", OBJECTIVES),
        ("optimizer", OPTIMIZERS),
        ("penalty", PENALTIES),
    ):
        assert list(offered[name] or ()) == list(known)
    assert arguments.BASELINES == BASELINES
    assert (
        vars(Search()).items()
        <= {name: parser.get_default(name) for name in ("steps", "l1", "bound", "optimizer", "penalty")}.items()
    )
