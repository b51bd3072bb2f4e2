"""Sweeps: one run for each method and value; each run equals the run of a profile with this value."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from made_up import made_up_context
from tiny_runs import QUIET, before_reading, lines_of

from lora_retriever.cli import main
from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods import Composition, Router, find_methods, registered
from lora_retriever.methods import context as setting_module
from lora_retriever.methods.context import Context
from lora_retriever.methods.paper import METHODS
from lora_retriever.methods.parts.top_k import weights_of
from lora_retriever.methods.simple import Drawn
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.running import evaluate as evaluation
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import configuration
from lora_retriever.running.sweep import expand


def names(profile: Profile, methods: list[str], *sweep: str) -> list[str]:
    return [variant.name for variant in expand(profile, find_methods(methods), sweep)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny: Profile) -> Path:
    """Two methods on the first row of every task under several k, scorers and a temperature."""
    results = tmp_path_factory.mktemp("swept")
    evaluate(tiny, ["mixture", "selection"], results, 1, QUIET, ["k=1,2,4"])
    evaluate(tiny, ["mixture"], results, 1, QUIET, ["temperature=0.2", "scorer=cosine,discriminant"])
    return results


# Names and variants


def test_without_a_sweep_runs_have_their_methods_names(tiny: Profile) -> None:
    variants = expand(tiny, list(registered().values()), [])
    assert [(variant.name, variant.profile) for variant in variants] == [(name, tiny) for name in registered()]


def test_settings_are_named_in_one_order_and_make_a_cross_product(tiny: Profile) -> None:
    variants = expand(tiny, find_methods(["dare"]), ["seed=0,1", "scorer=cosine,mean_ip", "k=2,4"])
    assert [variant.name for variant in variants] == [
        f"dare@k={k},scorer={scorer},seed={seed}" for k in (2, 4) for scorer in ("cosine", "mean_ip") for seed in (0, 1)
    ]
    for variant in variants:
        k, scorer, seed = (part.partition("=")[2] for part in variant.name.partition("@")[2].split(","))
        retrieval = variant.profile.retrieval
        assert (retrieval.k, retrieval.scorer, retrieval.temperature) == (int(k), scorer, None)
        assert variant.profile.seed == int(seed)
        assert variant.profile.replaced({"k": 3, "scorer": "cosine", "seed": 0}, "the test") == tiny


@pytest.mark.parametrize(
    ("method", "sweep", "expected"),
    [
        ("base", ["k=1,2", "scorer=cosine,nearest", "temperature=0.1,0.2"], ["base"]),
        ("best_selection", ["k=1,2", "scorer=cosine,nearest", "temperature=0.1,0.2"], ["best_selection"]),
        ("selection", ["k=1,2", "temperature=0.1,0.2"], ["selection"]),
        ("selection_ood", ["k=1,2", "scorer=cosine,nearest"],
         ["selection_ood@scorer=cosine", "selection_ood@scorer=nearest"]),
        ("fusion", ["temperature=0.2,1", "k=1,2"],
         ["fusion@k=1", "fusion@k=2,temperature=0.2", "fusion@k=2,temperature=1"]),
        ("base", ["seed=0,1"], ["base"]),
        ("mixture", ["seed=0,1", "k=2,4"], ["mixture@k=2", "mixture@k=4"]),
        ("random", ["seed=0,1", "scorer=cosine,nearest"], ["random@seed=0", "random@seed=1"]),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_bear_on_a_method_is_not_in_its_name(
    tiny: Profile, method: str, sweep: list[str], expected: list[str]
) -> None:
    assert names(tiny, [method], *sweep) == expected


@pytest.mark.slow
def test_a_seed_sweep_repeats_only_methods_that_draw(tiny: Profile) -> None:
    """`random` draws adapters, `lorahub` draws candidates, `dare` draws parts of factors; experts are drawn as well."""
    drawing = {"dare", "dare_ood", "lorahub", "lorahub_ood", "moe_soft", "moe_top1", "moe_top3"}
    drawing |= {"random", "random_ood", "smear", "phatgoose", "phatgoose_ood"}
    found = names(tiny, ["all"], "seed=3,4")
    expected = [f"{name}@seed={seed}" for name in drawing for seed in (3, 4)] + list(registered().keys() - drawing)
    assert sorted(found) == sorted(expected)
    for variant in expand(tiny, list(registered().values()), ["seed=3,4"]):
        assert variant.profile.seed == (int(variant.name[-1]) if variant.method.name in drawing else 0)


@pytest.mark.slow
def test_no_experiment_of_a_method_has_two_names(tiny: Profile) -> None:
    """Variants of a method differ in their configurations, and a number has one name in every spelling."""
    benchmark = open_benchmark(tiny, limit=1)
    sweep = ["k=1,2,4", "scorer=cosine,discriminant", "temperature=0.2,1", "seed=0,1"]
    variants = expand(tiny, list(registered().values()), sweep)
    contents = [json.dumps(configuration(v.profile, benchmark, v.method), sort_keys=True) for v in variants]
    assert len(set(contents)) == len(contents)
    assert names(tiny, ["mixture"], "temperature=1.0,.50") == ["mixture@temperature=1", "mixture@temperature=0.5"]


@pytest.mark.slow
def test_temperature_and_seed_stand_in_a_configuration_only_where_they_are_set(tiny: Profile) -> None:
    """Folders made before these settings existed stay usable."""
    benchmark = open_benchmark(tiny, limit=1)
    changed = tiny.replaced({"temperature": 0.2, "seed": 5}, "the test")
    for method in registered().values():
        before, after = (configuration(profile, benchmark, method) for profile in (tiny, changed))
        added = {"seed": 5, "temperature": 0.2}
        if method in METHODS:
            added = added if method.name.startswith(("mixture", "fusion")) else {"seed": 5}
            assert after == before | added
        assert after in (before | {"seed": 5}, before | added)
        assert not before.keys() & added.keys()


# Weights


def test_weights_are_the_softmax_of_the_scores(tiny: Profile, tiny_rows: list[Row]) -> None:
    random_numbers = np.random.default_rng(0)
    pool = [random_numbers.normal(size=(3, 8)) for _ in range(6)]
    index = AdapterIndex.from_embeddings([f"adapter {place}" for place in range(6)], pool)
    queries = random_numbers.normal(size=(5, 8))
    hits = index.search(queries, 4)

    def route(method: str, temperature: float | None) -> list[Composition]:
        setting = made_up_context(tiny, tiny_rows[:5], index, queries, k=4, temperature=temperature)
        return registered()[method].router.route(setting)

    compositions = route("mixture", 0.2)
    for composition, found, scores in zip(compositions, hits.names, hits.scores.tolist(), strict=True):
        powers = [math.exp(score / 0.2) for score in scores]
        assert composition.adapters == tuple(found)
        assert list(composition.weights.values()) == pytest.approx([p / sum(powers) for p in powers], abs=1e-6)
    equal = route("mixture", None)
    assert all(list(composition.weights.values()) == [0.25] * 4 for composition in equal)
    single = route("selection", 0.2)
    assert all(list(composition.weights.values()) == [1.0] for composition in single)


def test_weights_stay_finite_under_large_scores_and_small_temperatures() -> None:
    scores = np.array([[5000.0, 4999.0, -5000.0], [1.0, 1.0, 1.0]], dtype=np.float32)
    assert weights_of(scores, 1.0).tolist() == [
        pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0]),
        pytest.approx([1 / 3] * 3),
    ]
    assert weights_of(scores, 1e-6)[0].tolist() == [1, 0, 0]
    assert weights_of(scores, 1e9)[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-4)


# Runs


@pytest.mark.slow
def test_a_k_sweep_uses_k_adapters(swept: Path) -> None:
    most = {line["id"]: line["adapters"] for line in lines_of(swept, "mixture@k=4")}
    for k in (1, 2, 4):
        for line in lines_of(swept, f"mixture@k={k}"):
            assert line["adapters"] == most[line["id"]][:k]
            assert line["weights"] == [1 / k] * k
        meta = json.loads((swept / f"mixture@k={k}.meta.json").read_text())
        assert meta["run"] == f"mixture@k={k}"
        assert meta["configuration"]["k"] == k
        assert meta["finished"]
    first, alone = (
        [line["predicted_answer"] for line in lines_of(swept, name)] for name in ("mixture@k=1", "selection")
    )
    assert first == alone


@pytest.mark.slow
def test_scorers_and_temperatures_are_those_of_the_name(swept: Path) -> None:
    for scorer in ("cosine", "discriminant"):
        name = f"mixture@scorer={scorer},temperature=0.2"
        stored = json.loads((swept / f"{name}.meta.json").read_text())["configuration"]
        assert (stored["scorer"], stored["temperature"], stored["k"]) == (scorer, 0.2, 3)
        for line in lines_of(swept, name):
            if scorer == "cosine":
                powers = [math.exp((score - line["scores"][0]) / 0.2) for score in line["scores"]]
            else:
                chances = line["retrieved"]["probabilities"][: len(line["weights"])]  # a weight of 0 is not recorded
                powers = [chance ** (1 / 0.2) for chance in chances]
            assert line["weights"] == pytest.approx([power / sum(powers) for power in powers], abs=1e-4)
    found = [[line["scores"] for line in lines_of(swept, f"mixture@scorer={s},temperature=0.2")]
             for s in ("cosine", "discriminant")]  # fmt: skip
    assert found[0] != found[1]


@pytest.mark.slow
def test_a_variant_answers_as_a_profile_with_its_settings(swept: Path, tiny: Profile, tmp_path: Path) -> None:
    for settings, name in [
        ({"k": 2}, "mixture@k=2"),
        ({"scorer": "discriminant", "temperature": 0.2}, "mixture@scorer=discriminant,temperature=0.2"),
    ]:
        evaluate(tiny.replaced(settings, "the test"), ["mixture"], tmp_path / name, 1, QUIET)
        assert lines_of(tmp_path / name, "mixture") == lines_of(swept, name)


@pytest.mark.slow
def test_a_sweep_loads_and_encodes_once(tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(module: ModuleType, name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return call

    parts = ((setting_module, "load_encoder"), (evaluation, "load_backend"), (setting_module, "encode_samples"))
    for module, name in parts:
        monkeypatch.setattr(module, name, counted(module, name))
    evaluate(tiny, ["dare"], tmp_path, 1, QUIET, ["scorer=cosine,nearest", "seed=0,1"])
    assert sorted(calls) == ["encode_samples", "load_backend", "load_encoder"]
    assert len(list(tmp_path.glob("dare@scorer=*,seed=*.jsonl"))) == 4


@pytest.mark.slow
def test_every_run_of_a_seed_sweep_starts_at_its_seed(
    tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def drawing(route: Callable[..., list[Composition]]) -> Callable[..., list[Composition]]:
        def draw_and_route(router: Router, setting: Context) -> list[Composition]:
            drawn.append((random.random(), np.random.random(), float(torch.rand(()))))
            return route(router, setting)

        return draw_and_route

    monkeypatch.setattr(Drawn, "route", drawing(Drawn.route))
    evaluate(tiny, ["base", "random", "random_ood"], tmp_path, 1, QUIET, ["seed=3,4"])
    assert drawn[0] == drawn[2]
    assert drawn[1] == drawn[3]
    assert all(first != second for first, second in zip(drawn[0], drawn[1], strict=True))
    names = ["base", *(f"random{ood}@seed={seed}" for ood in ("", "_ood") for seed in (3, 4))]
    assert sorted(path.stem for path in tmp_path.glob("*.jsonl")) == sorted(names)


@pytest.mark.long
def test_a_stopped_sweep_goes_on_to_the_files_of_an_undisturbed_one(
    tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tiny.model_copy(update={"generation": tiny.generation.model_copy(update={"batch_size": 8})})
    sweep = ["temperature=0.2,1", "k=1,2"]
    evaluate(small, ["mixture"], tmp_path / "undisturbed", 1, QUIET, sweep)
    second = tmp_path / "stopped" / "mixture@k=2,temperature=0.2.jsonl.partial"
    waited_for = [tmp_path / "stopped" / "mixture@k=1.jsonl.partial", second]

    def stop(_: object) -> None:
        if waited_for and waited_for[0].exists() and waited_for[0].stat().st_size:
            del waited_for[0]
            raise KeyboardInterrupt

    before_reading(monkeypatch, stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(small, ["mixture"], tmp_path / "stopped", 1, QUIET, sweep)
    assert (tmp_path / "stopped" / "mixture@k=1.jsonl").exists()
    assert second.exists()
    evaluate(small, ["mixture"], tmp_path / "stopped", 1, QUIET, sweep)
    stopped, undisturbed = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.jsonl*")}
        for folder in ("stopped", "undisturbed")
    )
    assert stopped == undisturbed
    assert set(stopped) == {f"mixture@{v}.jsonl" for v in ("k=1", "k=2,temperature=0.2", "k=2,temperature=1")}


@pytest.mark.slow
def test_a_wider_sweep_repeats_nothing(swept: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(evaluation, "load_backend")  # so any work that is left would raise
    evaluate(tiny, ["selection", "mixture"], swept, 1, QUIET, ["k=4,2"])
    evaluate(tiny, ["mixture"], swept, 1, QUIET, ["temperature=0.2,1", "k=1"])


# Mistakes


@pytest.mark.slow
def test_the_largest_k_is_checked_before_anything_is_loaded(
    tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(evaluation, "load_backend")
    monkeypatch.delattr(setting_module, "load_encoder")
    with pytest.raises(UserError, match=r"mixture_ood@k=19 gives a row k = 19 adapters, but the pool .* leaves 18"):
        evaluate(tiny, ["base", "mixture_ood"], tmp_path, 1, QUIET, ["k=1,19,2"])
    assert not list(tmp_path.glob("*.json*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["kk=1"], "--sweep kk=1: unknown setting 'kk' (known: k, scorer, temperature, seed, procedure)"),
        (["k=1,2", "k=4"], "--sweep k=4: k is swept already"),
        (["k"], "--sweep k: expected NAME=VALUE,VALUE, for example k=1,2,4"),
        (["k=1,,2"], "--sweep k=1,,2: expected NAME=VALUE,VALUE"),
        (["k=two"], "--sweep k=two: retrieval.k: Input should be a valid integer"),
        (["k=0"], "--sweep k=0: retrieval.k: Input should be greater than or equal to 1"),
        (["k=2,02"], "--sweep k=2,02: 2 is named twice"),
        (["temperature=0"], "retrieval.temperature: Input should be greater than 0"),
        (["temperature=inf"], "retrieval.temperature: Input should be a finite number"),
        (["scorer=cosine,bm25"], "unknown scorer 'bm25' (known: "),
        (["seed=-1"], "seed: Input should be greater than or equal to 0"),
    ],
)
def test_an_unusable_sweep_exits_with_2_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sweep: list[str], message: str
) -> None:
    options = [option for text in sweep for option in ("--sweep", text)]
    assert main(["run", "--only", "base", "--results", str(tmp_path / "r"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_command_takes_several_sweeps(tmp_path: Path) -> None:
    arguments = ["run", "--only", "selection", "--limit", "1", "--results", str(tmp_path), "--sweep", "scorer=nearest"]
    assert main([*arguments, "--sweep", "k=1,2"]) == 0
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["selection@scorer=nearest.jsonl"]
