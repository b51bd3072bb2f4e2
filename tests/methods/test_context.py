"""A method's view of an evaluation: a method that reads what it has not declared is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from made_up import made_up_context, no_model, reading_everything
from rich.console import Console

from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods import Composition, Method
from lora_retriever.methods.context import Context, Declaration, Reads, Resources, Settings
from lora_retriever.retrieval.index import AdapterIndex

EVERY_READ, EVERY_SETTING = frozenset(get_args(Reads)), frozenset(get_args(Settings))
NAMES = ("a", "b", "c")
Read = Callable[[Context], object]

LOOKS: list[tuple[str, Read, str, str]] = [
    ("k", lambda context: context.k, "settings", "k"),
    ("scorer", lambda context: context.scorer, "settings", "scorer"),
    ("temperature", lambda context: context.temperature, "settings", "temperature"),
    ("seed", lambda context: context.seed, "settings", "seed"),
    ("the profile's index", lambda context: context.index(), "settings", "scorer"),
    ("a search", lambda context: context.search(1), "settings", "scorer"),
    ("queries", lambda context: context.queries, "reads", "encoder"),
    ("an index of a named scorer", lambda context: context.index("cosine"), "reads", "encoder"),
    ("the pool's samples in an index", lambda context: context.index("cosine"), "reads", "pool"),
    ("a search by a named scorer", lambda context: context.search(1, "cosine"), "reads", "encoder"),
    ("names", lambda context: context.names, "reads", "adapters"),
    ("the number of adapters", lambda context: context.available, "reads", "adapters"),
    ("pool", lambda context: context.pool, "reads", "pool"),
    ("model", lambda context: context.generator, "reads", "model"),
]


@pytest.fixture
def context(tiny: Profile, tiny_rows: list[Row]) -> Context:
    samples = np.eye(3, 4, dtype=np.float32)
    index = AdapterIndex.from_embeddings(NAMES, [sample[None] for sample in samples])
    return made_up_context(tiny, tiny_rows[:2], index, np.tile(samples[0], (2, 1)))


def declared(context: Context, reads: frozenset[Any], settings: frozenset[Any]) -> Context:
    """The same context for a method that declares other things."""
    return Context(context._resources, context._profile, Declaration("mine", False, reads, settings))


@pytest.mark.parametrize(("read", "field", "name"), [look[1:] for look in LOOKS], ids=[look[0] for look in LOOKS])
def test_what_is_not_declared_is_refused_and_the_message_says_what_to_add(
    context: Context, read: Read, field: str, name: str
) -> None:
    reads = EVERY_READ - {name} if field == "reads" else EVERY_READ
    settings = EVERY_SETTING - {name} if field == "settings" else EVERY_SETTING
    with pytest.raises(UserError) as error:
        read(declared(context, reads, settings))
    assert str(error.value).startswith("method mine uses the ")
    assert str(error.value).endswith(f"add '{name}' to the method's `{field}`")


@pytest.mark.parametrize("read", [look[1] for look in LOOKS[:-1]], ids=[look[0] for look in LOOKS[:-1]])
def test_what_is_declared_is_given(context: Context, read: Read) -> None:
    read(declared(context, EVERY_READ, EVERY_SETTING))


def test_every_method_may_read_rows_and_whether_adapters_are_masked(context: Context) -> None:
    bare = declared(context, frozenset(), frozenset())
    assert (len(bare.rows), bare.masked, bare.masked_adapters) == (2, False, [None, None])


# What is learned


@pytest.fixture
def learner(tiny: Profile, tiny_rows: list[Row], tiny_pool: list[PoolEntry], tmp_path: Path) -> Callable[..., Context]:
    """Contexts of one results folder, over some rows and some settings."""

    def make(rows: str = "rows", masked: bool = False, encoder: str = "encoder", **settings: Any) -> Context:
        hashes = {part: part for part in ("base", "adapters", "pool")} | {"rows": rows, "encoder": encoder}
        benchmark = Benchmark(tiny_rows[:2], None, tiny_pool, tmp_path, tmp_path, {}, hashes)
        profile = tiny.replaced(settings, "the test") if settings else tiny
        resources = Resources(profile, benchmark, tmp_path, Console(quiet=True), no_model)
        return Context(resources, profile, reading_everything(masked))

    return make


USED: list[tuple[str, Read, dict[str, Any]]] = [
    ("rows", lambda context: [row.inputs for row in context.rows], {"rows": "others"}),
    ("masked", lambda context: context.masked, {"masked": True}),
    ("k", lambda context: context.k, {"k": 2}),
    ("scorer", lambda context: context.scorer, {"scorer": "nearest"}),
    ("temperature", lambda context: context.temperature, {"temperature": 0.5}),
]


@pytest.mark.parametrize(("use", "read", "change"), USED, ids=[use for use, _, _ in USED])
def test_what_is_learned_depends_on_what_it_says_it_uses_and_may_read_nothing_else(
    learner: Callable[..., Context], use: Any, read: Read, change: dict[str, Any]
) -> None:
    context = learner()

    def learn(folder: Path) -> dict[str, Any]:
        return {"seen": read(context)}

    with pytest.raises(UserError) as error:
        context.learned("thing", {}, learn)
    assert str(error.value) == (
        f"method everything: what it learns as 'thing' depends on '{use}' without saying so, so a change of it would "
        f"go unnoticed: pass uses={{'{use}'}} to context.learned"
    )
    folder = context.learned("thing", {}, learn, uses={use})
    assert json.loads((folder / "record.json").read_text())["seen"] == read(context)
    assert context.learned("thing", {}, learn, uses={use}) == folder
    read(context)  # outside of learning, a method may read everything that it declares
    context = learner(**change)
    other = context.learned("thing", {}, learn, uses={use})
    assert other != folder
    assert json.loads((other / "record.json").read_text())["seen"] == read(context)


def test_what_is_learned_with_another_encoder_is_another_thing(learner: Callable[..., Context]) -> None:
    folders = {
        learner(encoder=encoder).learned("thing", {}, lambda folder: {}, uses={"encoder"}) for encoder in ("x", "y")
    }
    assert len(folders) == 2
    context = learner()
    with pytest.raises(UserError, match=r"pass uses=\{'encoder'\} to context\.learned"):
        context.learned("other", {}, lambda folder: {"seen": len(context.queries)})


def test_a_draw_needs_the_seed(learner: Callable[..., Context]) -> None:
    context = learner()
    with pytest.raises(UserError, match=r"depends on 'seed' .*: pass seeded=True to context\.learned"):
        context.learned("thing", {}, lambda folder: {"seed": context.seed}, seeded=False)
    context.learned("thing", {}, lambda folder: {"seed": context.seed})


# Results of routers and gates


@dataclass(frozen=True)
class Giving:
    """A router that gives a value of the test."""

    value: Any

    def route(self, context: Context) -> Any:
        return self.value


@dataclass(frozen=True)
class Fitting:
    """A learned gate that gives a value of the test."""

    value: Any

    def fit(self, context: Context) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "method mine: its router gave NoneType, and not a list of Composition"),
        ("ab", "method mine: its router gave str, and not a list of Composition"),
        ({0: Composition()}, "method mine: its router gave dict, and not a list of Composition"),
        ([Composition()], "method mine: its router gave 1 compositions for 2 rows"),
        ([Composition(), None], "its router gave NoneType, and not a Composition"),
        ([Composition(), {"a": 1.0}], "its router gave dict, and not a Composition"),
    ],
)
def test_a_router_that_gives_something_else_is_refused(context: Context, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Method("mine", "", "", Giving(value)).compositions(context)


def test_compositions_are_checked_row_by_row(context: Context) -> None:
    own = [Composition.of({row.task: 1.0}) for row in context.rows]
    method = Method("mine", "", "", Giving(tuple(own)))
    assert method.compositions(context) == own
    with pytest.raises(UserError, match=r"method mine: row \d+ was given \w+, its own adapter, though masked"):
        replace(method, masked=True).compositions(context)
    with pytest.raises(UserError, match="method mine: it gives rows adapters, so its `reads` must name 'adapters'"):
        replace(method, reads=frozenset()).compositions(context)


@pytest.mark.parametrize("value", [None, 3, "gate", type("Half", (), {"prepare": lambda self, offered: None})()])
def test_what_is_learned_must_be_a_gate(context: Context, value: Any) -> None:
    with pytest.raises(UserError, match=r"method mine: its gate is \w+, which has no `(prepare|weights)`"):
        Method("mine", "", "", Giving([]), gate=Fitting(value)).fitted_gate(context)
    assert Method("mine", "", "", Giving([])).fitted_gate(context) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"router": 3}, "the router of method mine is 3, which has no `route`"),
        ({"reads": {"encodr"}}, r"method mine: `reads` names 'encodr' \(known: adapters, pool, encoder, model\)"),
        ({"reads": "adapters"}, "method mine: `reads` names 'adapters'"),
        (
            {"settings": {"k", "seeds"}},
            r"method mine: `settings` names 'seeds' \(known: k, scorer, temperature, seed\)",
        ),
    ],
)
def test_a_method_with_a_wrong_part_is_refused_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method("mine", "", "", **{"router": Giving([]), **arguments})
