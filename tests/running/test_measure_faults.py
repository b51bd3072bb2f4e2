"""Each fault changes the plan in the right way, and the engine equals the original's faulty arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import faulty_plans
import measure_faults
import pytest
import torch
from faulty_plans import FAULTS, Plan, Setting
from original_composition import Faults, StackedLoras, original_composition
from places import TINY
from safetensors.torch import load_file

from lora_retriever.data.rows import Row
from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition, weight_matrix
from lora_retriever.generation.loading import load_generator
from lora_retriever.generation.prompt import Prompt
from lora_retriever.running.run_file import read_lines

SCALINGS = {"a": 2.0, "b": 0.5, "c": 2.0}
WEIGHTS = [{"a": 0.5, "b": 0.5}, {"c": 1.0}] * 4 + [{"b": 0.5, "c": 0.5}, {"a": 1.0}]


def setting_of(inputs: list[str] | None = None) -> Setting:
    """A setting of ten rows, so that the second batch of 8 has two rows."""
    inputs = inputs or [f"input {place}" for place in range(len(WEIGHTS))]
    rows = [
        Row(inputs=text, targets="t", task="task", domain="domain", metric="em", id=place)
        for place, text in enumerate(inputs)
    ]
    prompts, uncut = [Prompt([place], 0) for place in range(10)], [Prompt([place, place], 0) for place in range(10)]
    plan = Plan(prompts, [Composition(weights) for weights in WEIGHTS], "mixture")
    larger = {"mixture": [Composition({"z": 1.0})] * 10}
    return Setting(rows, {"mixture": plan}, larger, uncut, SCALINGS)


def weights_under(fault: str, setting: Setting) -> list[dict[str, float]]:
    return [dict(c.weights) for c in FAULTS[fault][1](setting, "mixture").compositions]


def test_without_the_scale_every_adapter_is_divided_by_its_own_scaling() -> None:
    found = weights_under("scale", setting_of())
    assert found[:2] == [{"a*0.5": 0.5, "b*2": 0.5}, {"c*0.5": 1.0}]


def test_the_last_scaling_of_a_batch_counts_for_all_its_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_plans, "ordered", sorted)  # c is then last in both batches; own scalings: a 1, b 4, c 1
    found = weights_under("last-scaling", setting_of())
    assert found[:2] == [{"a": 0.5, "b*0.25": 0.5}, {"c": 1.0}]
    monkeypatch.setattr(faulty_plans, "ordered", lambda names: sorted(names, key=lambda name: (name == "b", name)))
    assert weights_under("last-scaling", setting_of())[:2] == [{"a*4": 0.5, "b": 0.5}, {"c*4": 1.0}]


def test_one_adapter_acts_from_the_second_batch_on_with_the_sum_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_plans, "ordered", sorted)
    assert weights_under("one-of-8", setting_of()) == [*WEIGHTS[:8], {"a": 1.0}, {"a": 1.0}]
    assert weights_under("one-of-1", setting_of()) == [
        WEIGHTS[0],
        *[{"c": 1.0}, {"a": 1.0}] * 3,
        {"c": 1.0},
        {"b": 1.0},
        {"a": 1.0},
    ]
    assert weights_under("one-weight", setting_of())[:2] == [{"a": 0.5}, {"c": 1.0}]


def test_equal_inputs_share_the_last_retrieval_within_a_batch_alone() -> None:
    inputs = ["same", "same", *[f"other {place}" for place in range(6)], "same", "same"]
    found = weights_under("shared-retrieval", setting_of(inputs))
    assert found == [WEIGHTS[1], *WEIGHTS[1:8], WEIGHTS[9], WEIGHTS[9]]


def test_other_faults_change_the_pool_the_prompts_or_the_decoding_alone() -> None:
    setting = setting_of()
    right = setting.right["mixture"]
    assert weights_under("larger-pool", setting) == [{"z": 1.0}] * 10
    assert FAULTS["not-cut"][1](setting, "mixture") == Plan(setting.uncut, right.compositions, "mixture")
    assert FAULTS["drawn-1"][1](setting, "mixture") == Plan(right.prompts, right.compositions, "mixture", 1.0)


def test_the_order_of_adapters_depends_on_the_seed_and_not_on_the_order_given() -> None:
    names = ["dart", "rte", "sst2", "cb"]
    assert faulty_plans.ordered(names) == faulty_plans.ordered(names[::-1])
    assert {tuple(faulty_plans.ordered(names, seed)) for seed in range(20)} != {tuple(faulty_plans.ordered(names))}


def stacks_of(names: list[str], scalings: list[float]) -> dict[str, StackedLoras]:
    """The miniature's adapters in the form of the original's formulas, read here from their files."""
    tensors = [load_file(TINY / "adapters" / name / "adapter_model.safetensors") for name in names]
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): StackedLoras(
            torch.stack([adapter[key] for adapter in tensors]),
            torch.stack([adapter[key.replace("lora_A", "lora_B")] for adapter in tensors]),
            torch.tensor(scalings),
        )
        for key in tensors[0]
        if key.endswith("lora_A.weight")
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_the_engine_computes_each_fault_as_the_original_s_arithmetic_does(tiny: Profile, mode: str) -> None:
    benchmark = open_benchmark(tiny, 1)
    generator = load_generator(model_source(tiny, benchmark))
    names = ["animal_qa", "city_qa", "synonyms"]  # of equal scaling 2
    mapping = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    rows = [dict(zip(names, row, strict=True)) for row in mapping.tolist()]
    ids = torch.arange(12).reshape(2, 6)
    cases = [  # the original's arithmetic with unequal scalings, and the engine with other adapters
        ([2.0, 2.0, 2.0], Faults(scale_left_out=True), dict.fromkeys(names, 0.5)),
        ([1.0, 1.0, 4.0], Faults(last_scaling=True), dict.fromkeys(names, 2.0)),
        ([2.0, 2.0, 2.0], Faults(), dict.fromkeys(names, 1.0)),
    ]
    for scalings, faults, factors in cases:
        compositions = [Composition.of({faulty_plans.scaled(n, factors[n]): w for n, w in row.items()}) for row in rows]
        measure_faults.load_scaled(generator, benchmark, compositions)
        columns, weights = weight_matrix(compositions)
        with generator.model.composed(columns, weights, mode=mode):
            ours = generator.model(input_ids=ids).logits
        with original_composition(generator.model.base, stacks_of(names, scalings), mapping, mode, faults) as model:
            theirs = model(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.long
def test_rows_without_a_fault_are_answered_as_by_the_command_and_a_second_run_answers_nothing(
    paper_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--results", str(tmp_path), "--limit", "1", "--methods", "fusion,best_selection"]
    arguments += ["--faults", "scale,not-cut,drawn-1", "--format", "csv"]
    monkeypatch.setattr(sys, "argv", ["measure_faults.py", *arguments])
    measure_faults.main()
    first = capsys.readouterr().out
    exact, _, details = first.split("\n\n")
    assert [line.split(",")[0] for line in exact.splitlines()] == [
        "", "without a fault", *(FAULTS[fault][0] for fault in ("scale", "not-cut", "drawn-1"))
    ]  # fmt: skip
    assert "no prompt cut,no row changes" in exact
    assert len(details.splitlines()) == 1 + 4  # two faults change rows, in two configurations
    ours = {json.loads(line)[1] for line in (tmp_path / measure_faults.ANSWERS).read_text().splitlines()}
    for name in ("fusion", "best_selection"):
        assert {line["predicted_answer"] for line in read_lines(paper_runs, name).values()} <= ours

    def refuse(*_: object) -> None:
        raise AssertionError("everything is answered")

    monkeypatch.setattr(measure_faults, "load_generator", refuse)
    measure_faults.main()
    assert capsys.readouterr().out == first


def test_a_half_written_answer_is_made_anew(tmp_path: Path) -> None:
    book = measure_faults.AnswerBook(tmp_path)
    book.add({"one": measure_faults.Given("yes", 2)})
    with book.path.open("a") as file:
        file.write('["two", "n')
    again = measure_faults.AnswerBook(tmp_path)
    assert again.given == {"one": measure_faults.Given("yes", 2)}
    again.add({"two": measure_faults.Given("no", 1)})
    assert set(measure_faults.AnswerBook(tmp_path).given) == {"one", "two"}


def test_an_unknown_profile_is_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_faults.py", "--profile", "nowhere.yaml", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        measure_faults.main()
    assert ended.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err
