"""The register of methods: its methods, how options reach a method, and how a user's own method is added."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tiny_runs import QUIET, tiny_profile, write_profile

from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.files import hash_path
from lora_retriever.methods import (
    Composition,
    Method,
    Router,
    find_methods,
    methods_of,
    paper,
    registered,
    with_ood,
)
from lora_retriever.methods.context import Context
from lora_retriever.methods.paper import Own
from lora_retriever.running import evaluate as evaluate_module
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.sweep import expand

EIGHT = ["base", "selection", "selection_ood", "fusion", "fusion_ood", "mixture", "mixture_ood", "best_selection"]

# A user's own method, in a file beside the profile.
TOY = """
    from dataclasses import dataclass

    from lora_retriever.methods import Composition, Method, with_ood


    @dataclass(frozen=True)
    class Always:
        adapter: str = "passive"

        def route(self, context):
            return [Composition.of({self.adapter: 1.0})] * len(context.rows)


    @dataclass(frozen=True)
    class Plain:
        density: float = 1.0

        def __call__(self, stack, active):
            raise AssertionError("a registry composes nothing")


    @dataclass(frozen=True)
    class Even:
        sharpness: float = 1.0

        def __post_init__(self):
            if self.sharpness <= 0:
                raise ValueError(f"sharpness is {self.sharpness}, but must be above 0")

        def prepare(self, offered):
            raise AssertionError("a registry composes nothing")

        def weights(self, prepared, tokens):
            raise AssertionError("a registry composes nothing")


    ALWAYS = Method("always", "the same adapter for every row", "nobody 2026", Always())
    MADE = with_ood(Method("made", "router, composer and gate of its own", "nobody 2026", Always(), Plain(), Even()))
    TAKEN = Method("mixture", "a name that is taken", "nobody 2026", Always())
    NUMBER = 7
"""


@pytest.fixture(autouse=True)
def _imported_anew() -> Iterator[None]:
    """A user's modules are forgotten after every test, as they are when a command has ended."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "pytest-of" in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder with the module `toy`."""
    (tmp_path / "toy.py").write_text(dedent(TOY))
    return tmp_path


def names(methods: list[Method]) -> list[str]:
    return [method.name for method in methods]


# What is registered


def test_the_papers_eight_come_first_and_in_its_order() -> None:
    assert list(registered())[:8] == EIGHT == [method.name for method in paper.METHODS]
    assert len(registered()) > 8


def test_methods_are_found_in_the_registers_order_once_each() -> None:
    assert names(find_methods(["mixture", "base", "mixture"])) == ["base", "mixture"]


def test_all_stands_for_every_registered_method_and_paper_for_its_eight() -> None:
    assert find_methods(["all"]) == list(registered().values())
    assert find_methods(["base", "all"]) == list(registered().values())
    assert names(find_methods(["paper"])) == EIGHT
    assert names(find_methods(["arrow", "paper"])) == [*EIGHT, "arrow"]
    assert find_methods(["paper", "all"]) == find_methods(["all"])


@pytest.mark.parametrize("name", list(registered()))
def test_every_method_says_what_it_is_and_where_it_is_described(name: str) -> None:
    method = registered()[name]
    assert method.name == name
    assert re.fullmatch(r"[a-z0-9_]+", name)  # the name of a file; a sweep adds @k=2
    for text in (method.summary, method.citation):
        assert text.strip() == text != ""
        assert "\n" not in text
        assert not text.endswith(".")  # the line of the table goes on after this text


@pytest.mark.slow
@pytest.mark.parametrize("name", list(registered()))
def test_every_method_describes_itself_in_json_with_its_options(name: str) -> None:
    described = json.loads(json.dumps(registered()[name].describe()))
    assert described.keys() == {"name", "router", "mode", "gate", "masked"}
    assert described["name"] == name
    assert described["router"]["kind"]
    assert hash(registered()[name]) == hash(find_methods([name])[0])


def test_an_out_of_domain_variant_is_its_method_masked() -> None:
    variants = [name for name in registered() if name.endswith("_ood")]
    assert {"selection_ood", "fusion_ood", "mixture_ood"} <= set(variants)
    for name, method in registered().items():
        assert method.masked == (name in variants)
    for variant in variants:
        assert with_ood(registered()[variant.removesuffix("_ood")])[1] == registered()[variant]


def test_two_files_that_register_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "METHODS", (*paper.METHODS, paper.METHODS[0]))
    with pytest.raises(ValueError, match=r"paper\.py registers the method 'base', which is registered already"):
        registered.__wrapped__()


@pytest.mark.slow
def test_results_are_read_without_torch() -> None:
    """Printing a table must not wait for the import of torch, so no module on this path may import a method's file."""
    check = "import sys, lora_retriever.analysis.runs, lora_retriever.analysis.summary; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# Options


def test_options_reach_router_composer_and_gate_and_the_variant(toy: Path) -> None:
    options = {"made": {"adapter": "city_qa", "density": 0.5, "sharpness": 2.0}}
    found = find_methods(["toy:MADE"], options, toy)
    assert names(found) == ["made", "made_ood"]
    code = {"module": "toy", "source": hash_path(toy / "toy.py")}
    for method in found:
        assert method.describe() == {
            "name": method.name,
            "router": {"kind": "Always", "adapter": "city_qa", **code},
            "mode": {"kind": "Plain", "density": 0.5, **code},
            "gate": {"kind": "Even", "sharpness": 2.0, **code},
            "masked": method.name == "made_ood",
        }
    untouched, _ = find_methods(["toy:MADE"], {"made": {"density": 0.5}}, toy)
    assert untouched.router == find_methods(["toy:ALWAYS"], {}, toy)[0].router
    assert untouched.describe()["gate"] == {"kind": "Even", "sharpness": 1.0, **code}


def test_options_of_a_profile_are_its_methods(tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path, methods=["all"], options={"mixture": {"k": 2}})
    found = {method.name: method for method in methods_of(profile)}
    assert {name: found[name].adapters_needed(3) for name in ("mixture", "mixture_ood", "fusion")} == {
        "mixture": 2, "mixture_ood": 2, "fusion": 3,
    }  # fmt: skip
    assert methods_of(profile, ["mixture"]) == [found["mixture"]]
    assert registered()["mixture"].adapters_needed(3) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["mixtur"]}, "unknown method 'mixtur' (known: base, selection, selection_ood, fusion, "),
        ({"methods": ["mixtur"]}, ", all and paper)"),
        ({"options": {"mixture": {"kk": 2}}}, "method mixture has no option 'kk' (known: k)"),
        ({"options": {"base": {"k": 2}}}, "method base has no option 'k' (known: none)"),
        ({"options": {"mixtur": {"k": 2}}}, "options: no method 'mixtur' (known: base, selection, fusion, mixture, "),
        ({"options": {"mixture_ood": {"k": 2}}}, "options: no method 'mixture_ood' (known: base, selection, fusion, "),
        ({"methods": ["toy:MADE"], "options": {"made": {"x": 2}}},
         "method made has no option 'x' (known: adapter, density, sharpness)"),
        ({"methods": ["toy:MADE"], "options": {"made": {"sharpness": -1}}},
         "method made: sharpness is -1.0, but must be above 0"),
        ({"options": {"mixture": {"k": 0}}}, "method mixture: option k is 0: Input should be greater than or equal"),
        ({"options": {"mixture": {"k": "three"}}}, "method mixture: option k is 'three': Input should be a valid int"),
        ({"options": {"mixture": {"k": True}}}, "method mixture: option k is True: Input should be a valid"),
        ({"options": {"lorauter": {"temperature": True}}}, "option temperature is True: Input should be a valid"),
        ({"options": {"lorauter": {"temperature": 0}}}, "option temperature is 0: Input should be greater than 0"),
        ({"options": {"calibrated": {"nearest": 0}}}, "option nearest is 0: Input should be greater than or equal"),
    ],
)  # fmt: skip
def test_an_unknown_method_or_option_is_named_with_what_is_known(
    toy: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_profile(toy, **changes)
    with pytest.raises(UserError) as error:
        methods_of(load_profile(path))
    assert str(error.value).startswith(f"profile {Path(path).stem}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# A user's own


@pytest.mark.slow
def test_a_users_own_method_runs_from_its_file_beside_the_profile(toy: Path) -> None:
    path = write_profile(toy, methods=["toy:ALWAYS", "best_selection"], options={"always": {"adapter": "city_qa"}})
    profile = load_profile(path)
    evaluate(profile, None, toy / "results", 1, QUIET)
    mine, oracles = (
        {line["task"]: line for line in map(json.loads, (toy / "results" / f"{name}.jsonl").read_text().splitlines())}
        for name in ("always", "best_selection")
    )
    assert mine.keys() == oracles.keys()
    assert {(*line["adapters"], *line["weights"]) for line in mine.values()} == {("city_qa", 1.0)}
    assert mine["city_qa"]["predicted_answer"] == oracles["city_qa"]["predicted_answer"]
    assert any(mine[task]["predicted_answer"] != oracles[task]["predicted_answer"] for task in mine)
    meta = json.loads((toy / "results" / "always.meta.json").read_text())
    assert meta["finished"]
    router = meta["configuration"]["method"]["router"]
    assert router == {"kind": "Always", "adapter": "city_qa", "module": "toy", "source": hash_path(toy / "toy.py")}
    other = tiny_profile(toy, methods=["toy:ALWAYS"])
    with pytest.raises(UserError, match=r"another configuration: method\.router\.adapter: city_qa → passive"):
        evaluate(other, None, toy / "results", 1, QUIET)


@pytest.mark.slow
def test_the_list_of_methods_names_a_users_own(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_profile(toy, methods=["base", "toy:ALWAYS"], options={"always": {"adapter": "city_qa"}})
    assert main(["methods", "--profile", path]) == 0
    printed = capsys.readouterr().out
    lines = {line[2:].split()[0]: line for line in printed.splitlines()[: printed.splitlines().index("")]}
    assert re.fullmatch(
        r"\* always +the same adapter for every row \(adapter=city_qa\)\. nobody 2026", lines.pop("always")
    )
    assert list(lines) == [
        f"{name}[_ood]" if f"{name}_ood" in registered() else name for name in registered() if not name.endswith("_ood")
    ]
    assert [name for name, line in lines.items() if line.startswith("*")] == ["base"]
    for name, line in lines.items():
        method = registered()[name.removesuffix("[_ood]")]
        assert method.summary in line
        assert line.endswith(method.citation)


def test_a_users_own_come_after_the_registered(toy: Path) -> None:
    assert names(find_methods(["toy:ALWAYS", "mixture", "base"], {}, toy)) == ["base", "mixture", "always"]
    assert find_methods(["toy:ALWAYS", "all"], {}, toy)[:-1] == list(registered().values())


def test_the_path_is_as_before_once_a_module_is_loaded(toy: Path) -> None:
    before = list(sys.path)
    find_methods(["toy:ALWAYS"], {}, toy)
    assert sys.path == before


@pytest.mark.parametrize("methods", [["mixture", "toy:TAKEN"], ["toy:ALWAYS", "toy:ALWAYS"], ["all", "toy:TAKEN"]])
def test_two_methods_of_one_name_are_refused(toy: Path, methods: list[str]) -> None:
    name = "mixture" if "toy:TAKEN" in methods else "always"
    with pytest.raises(UserError, match=f"two methods are named '{name}'; the name of a run must be unique"):
        find_methods(methods, {}, toy)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("METHOD = (", "SyntaxError: '(' was never closed"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
        ("OTHER = 1", "AttributeError: module 'broken' has no attribute 'METHOD'"),
    ],
)
def test_a_module_that_fails_is_a_line_to_its_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, reason: str
) -> None:
    (tmp_path / "broken.py").write_text(source + "\n")
    path = write_profile(tmp_path, methods=["broken:METHOD"])
    assert main(["run", "--profile", path, "--results", str(tmp_path / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"lora-retriever: profile {Path(path).stem}: methods: method broken:METHOD: cannot be loaded: {reason}"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("toy:NUMBER", "method toy:NUMBER: expected a lora_retriever.methods.Method, or a list of them"),
        ("toy:Always", "method toy:Always: expected a lora_retriever.methods.Method"),
        ("toi:ALWAYS", "method toi:ALWAYS: cannot be loaded: ModuleNotFoundError: No module named 'toi'"),
    ],
)
def test_what_is_no_method_is_refused(toy: Path, location: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find_methods([location], {}, toy)


@pytest.mark.slow
def test_code_of_a_user_that_has_changed_is_another_configuration(toy: Path) -> None:
    path = write_profile(toy, methods=["toy:ALWAYS"], options={"always": {"adapter": "city_qa"}})
    evaluate(load_profile(path), None, toy / "results", 1, QUIET)
    with (toy / "toy.py").open("a", encoding="utf-8") as file:
        file.write("# other code\n")
    sys.modules.pop("toy")
    with pytest.raises(UserError, match=r"another configuration: method\.router\.source"):
        evaluate(load_profile(path), None, toy / "results", 1, QUIET)


# Runs of methods


@dataclass(frozen=True)
class Short:
    """Forgets the last row."""

    def route(self, context: Context) -> list[Composition]:
        return Own().route(context)[:-1]


@dataclass(frozen=True)
class Layers(Short):
    layers: Any


def made(name: str, router: Router, masked: bool = False) -> Method:
    return Method(name, "a toy", "nobody 2026", router, masked=masked)


@pytest.mark.slow
def test_a_method_that_cannot_be_planned_costs_the_others_nothing(
    tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One router gives masked rows their own adapters, one router forgets a row; the oracle comes after these two."""
    methods = [made("leak", Own(), masked=True), made("short", Short()), registered()["best_selection"]]
    monkeypatch.setattr(evaluate_module, "methods_of", lambda profile, names=None: methods)
    with pytest.raises(UserError) as error:
        evaluate(tiny, None, tmp_path, 1, QUIET)
    assert "2 runs could not be begun; the others are done:" in str(error.value)
    assert re.search(r"leak: method leak: row \d+ was given \w+, its own adapter, though masked", str(error.value))
    assert "short: method short: its router gave 18 compositions for 19 rows" in str(error.value)
    assert json.loads((tmp_path / "best_selection.meta.json").read_text())["finished"]
    assert not list(tmp_path.glob("leak.*"))


@pytest.mark.slow
def test_vllm_refuses_at_once_what_it_cannot_do(tiny: Profile, tmp_path: Path) -> None:
    profile = tiny.model_copy(update={"backend": "vllm"})
    with pytest.raises(UserError, match=r"as arrow, logo_ood, lorahub, smear need\. Name the other methods"):
        evaluate(profile, ["mixture", "arrow", "logo_ood", "lorahub", "smear"], tmp_path, 1, QUIET)


def test_an_option_k_is_not_swept_over(tiny: Profile) -> None:
    methods = find_methods(["mixture"], {"mixture": {"k": 4}})
    assert [variant.name for variant in expand(tiny, methods, ["k=1,2"])] == ["mixture"]


def test_what_is_drawn_follows_the_profiles_seed(tiny: Profile) -> None:
    variants = expand(tiny, find_methods(["dare", "mixture"]), ["seed=0,3"])
    modes = {variant.name: variant.method.describe()["mode"] for variant in variants}
    assert (modes["dare@seed=0"]["seed"], modes["dare@seed=3"]["seed"]) == (0, 3)
    assert modes["mixture"] == "mixture"


def test_weights_of_other_number_types_become_floats() -> None:
    """Results files are JSON, which cannot hold numpy's numbers."""
    composition = Composition.of({"a": np.float32(0.5), "b": np.int64(2), "c": 0})
    assert composition.weights == {"a": 0.5, "b": 2.0}
    assert {type(weight) for weight in composition.weights.values()} == {float}


def test_options_are_recorded_as_they_will_be_read_again() -> None:
    """JSON turns a tuple into a list, and a finished run must not be refused because of this difference."""
    assert made("tuples", Layers((1, 2))).describe()["router"]["layers"] == [1, 2]
    with pytest.raises(UserError, match="method sets: its options cannot be recorded as JSON"):
        made("sets", Layers(frozenset({1}))).describe()


def test_a_composition_without_a_finite_weight_for_every_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight of adapter 'b' is nan, which is no finite number"):
        Composition({"a": 1.0, "b": float("nan")})
    with pytest.raises(ValueError, match="the weight of adapter 'a' is None, which is no finite number"):
        Composition.of({"a": None})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="the weight of adapter 'a' is True, which is no finite number"):
        Composition({"a": True})
    with pytest.raises(ValueError, match="a weight belongs to 3, which is no adapter's name"):
        Composition({3: 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="weights must be a mapping from adapters' names to numbers"):
        Composition(["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapter 'b' has a retrieval score but no weight"):
        Composition({"a": 1.0}, {"a": 0.5, "b": 0.5})
