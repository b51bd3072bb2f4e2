"""A method: a router, a composer and a gate, registered under a name.

    inputs ─► router ─► weights over adapters ─► composer ─► low-rank pairs ─► gate, by token ─► answers

A *router* gives each row its adapters with weights: by the row's input, or one set for all rows. A *composer* makes
low-rank pairs of the adapters. A *gate*, if there is one, weighs the adapters again for each token. The composers and
the protocol of gates are in `peft_composition`. Routers, composers and gates are frozen dataclasses. Their fields are
the method's options, which a profile can change and the record of a run keeps.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import hash_path
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.context import Context, Declaration, Reads, Settings

if TYPE_CHECKING:
    from peft_composition import Composer, Gate

PACKAGES = ("lora_retriever", "peft_composition")
"""The project's own packages. A router, composer or gate from elsewhere is recorded with the hash of its source."""
OOD = "_ood"
"""The end of the name of an out-of-domain variant."""


class Router(Protocol):
    """Gives each row its adapters.

    A router with a field `k` gives each row `k` adapters, or the profile's k if the field is None. A pool with fewer
    adapters is refused.
    """

    def route(self, context: Context) -> list[Composition]:
        """The composition of each row of the context, in the rows' order.

        If `context.masked`, no row may be given the adapter of its own task.
        """
        ...


@runtime_checkable
class LearnedGate(Protocol):
    """A gate that must be learned for a benchmark before rows can be answered."""

    def fit(self, context: Context) -> Gate:
        """The learned gate. `context.learned` keeps the learned files."""
        ...


@dataclass(frozen=True)
class Method:
    """An algorithm that answers rows with a pool of adapters.

    Attributes:
        name: the name of the method's run in a results folder.
        summary: one line for the list of methods.
        citation: the paper that describes the method, with its arXiv number.
        mode: how adapters are composed: the name of a composer in `peft_composition.MODES`, or a composer.
        gate: the gate that weighs the adapters by token. None: the router's weights hold for all tokens.
        masked: whether each row's own adapter is masked (out-of-domain).
        reads: the parts of the experiment that decide the method's answers. A method that searches by the profile's
            scorer reads what this scorer reads, so such a method names `encoder` only if it reads embeddings itself.
        settings: the settings of the profile that the method uses; `seed` if the method draws anything.
    """

    name: str
    summary: str
    citation: str
    router: Router
    mode: str | Composer = "mixture"
    gate: Gate | LearnedGate | None = None
    masked: bool = False
    reads: frozenset[Reads] = frozenset({"adapters"})
    settings: frozenset[Settings] = frozenset()

    def __post_init__(self) -> None:
        """Check the parts, so that a mistake in a user's own method is found when its file is loaded.

        Raises:
            ValueError: the router has no `route`, or `reads` or `settings` name something unknown.
        """
        if not callable(getattr(self.router, "route", None)):
            raise ValueError(f"the router of method {self.name} is {self.router!r:.80}, which has no `route`")
        for field, known in (("reads", get_args(Reads)), ("settings", get_args(Settings))):
            named = getattr(self, field)
            if isinstance(named, str) or (strange := sorted(map(str, set(named) - set(known)))):
                shown = named if isinstance(named, str) else strange[0]
                raise ValueError(f"method {self.name}: `{field}` names {shown!r} (known: {', '.join(known)})")
            object.__setattr__(self, field, frozenset(named))

    @property
    def declaration(self) -> Declaration:
        """The parts and settings that the method declares to read."""
        return Declaration(self.name, self.masked, self.reads, self.settings)

    @property
    def plain_name(self) -> str:
        """The name without `_ood`, under which a profile gives the method's options."""
        return self.name.removesuffix(OOD)

    @property
    def draws(self) -> bool:
        """Whether the seed decides the method's answers: the method declares so, or a part has an option `seed`."""
        return "seed" in self.settings or any(hasattr(part, "seed") for part in (self.router, self.mode, self.gate))

    def needs_encoder(self, profile: Profile) -> bool:
        """Whether the method reads embeddings: itself, or by the profile's scorer.

        Raises:
            UserError: the profile's scorer is a user's own and cannot be loaded.
        """
        return "encoder" in self.reads or ("scorer" in self.settings and profile.scorer.needs_embeddings)

    def adapters_needed(self, k: int) -> int:
        """The number of adapters that a row is given under the profile's `k`. 0: the method has no fixed number."""
        own: int | None = getattr(self.router, "k", None)
        return own if own is not None else k if "k" in self.settings else 0

    def depends_on(self, setting: str, k: int) -> bool:
        """Whether a setting that can be swept changes the method's answers under the profile's `k`.

        The name of a run and the hash of its configuration keep only such settings.
        """
        if setting == "seed":
            return self.draws
        if setting == "procedure":
            return True
        if setting == "k" and getattr(self.router, "k", None) is not None:
            return False  # the router's own option decides
        if setting == "temperature" and self.adapters_needed(k) == 1:
            return False  # a single adapter's weight is 1
        return setting in self.settings

    def seeded(self, seed: int) -> Method:
        """The method under a profile's seed, which is added to the option `seed` of each part that has this option."""
        parts: dict[str, Any] = {"router": self.router, "mode": self.mode, "gate": self.gate}
        drawing = {name: part for name, part in parts.items() if hasattr(part, "seed")}
        return replace(self, **{name: replace(part, seed=part.seed + seed) for name, part in drawing.items()})

    def compositions(self, context: Context) -> list[Composition]:
        """The composition of each row of a context, by the method's router.

        Raises:
            UserError: the router gives something other than compositions, or a masked adapter, or the method does not
                declare that it reads adapters.
        """
        found: Any = self.router.route(context)
        if not isinstance(found, list | tuple):
            raise UserError(
                f"method {self.name}: its router gave {type(found).__name__}, and not a list of Composition"
            )
        rows = context.rows
        if len(found) != len(rows):
            raise UserError(f"method {self.name}: its router gave {len(found)} compositions for {len(rows)} rows")
        for row, composition in zip(rows, found, strict=True):
            where = f"method {self.name}: row {row.id}"
            if not isinstance(composition, Composition):
                raise UserError(f"{where}: its router gave {type(composition).__name__}, and not a Composition")
            if composition.weights and "adapters" not in self.reads:
                raise UserError(f"method {self.name}: it gives rows adapters, so its `reads` must name 'adapters'")
            if self.masked and composition.weights.get(row.task):
                raise UserError(f"{where} was given {row.task}, its own adapter, though masked")
        return list(found)

    def fitted_gate(self, context: Context) -> Gate | None:
        """The method's gate, learned now if necessary. None: the method has no gate.

        Raises:
            UserError: the gate cannot be learned, or the learning gives no gate.
        """
        gate: Any = self.gate.fit(context) if isinstance(self.gate, LearnedGate) else self.gate
        if gate is not None or isinstance(self.gate, LearnedGate):
            for part in ("prepare", "weights"):
                if not callable(getattr(gate, part, None)):
                    raise UserError(f"method {self.name}: its gate is {type(gate).__name__}, which has no `{part}`")
        return gate

    def describe(self) -> dict[str, Any]:
        """The description of the method in a run's record, with all options.

        Raises:
            UserError: JSON cannot hold an option's value.
        """
        described = {
            "name": self.name,
            "router": description(self.router),
            "mode": self.mode if isinstance(self.mode, str) else description(self.mode),
            "gate": None if self.gate is None else description(self.gate),
            "masked": self.masked,
        }
        try:
            read: dict[str, Any] = json.loads(json.dumps(described))  # the form that JSON reads: a tuple becomes a list
        except (TypeError, ValueError) as error:
            raise UserError(f"method {self.name}: its options cannot be recorded as JSON: {error}") from error
        return read

    def with_options(self, options: Mapping[str, Any]) -> Method:
        """The method with other values of some fields of its router, composer or gate.

        Raises:
            UserError: no part has such a field, or the field takes no such value.
        """
        parts: dict[str, Any] = {"router": self.router, "mode": self.mode, "gate": self.gate}
        parts = {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}
        known = {field.name: name for name, part in parts.items() for field in dataclasses.fields(part)}
        for option in options:
            if option not in known:
                raise UserError(
                    f"method {self.name} has no option {quoted(option)} (known: {', '.join(sorted(known)) or 'none'})"
                )
        changed: dict[str, Any] = {}
        for name, part in parts.items():
            given = {option: value for option, value in options.items() if known[option] == name}
            try:
                changed[name] = replace(part, **{option: typed(part, option, value) for option, value in given.items()})
            except (TypeError, ValueError) as error:
                raise UserError(f"method {self.name}: {error}") from error
        return replace(self, **changed)


def with_ood(method: Method) -> tuple[Method, Method]:
    """A method and its out-of-domain variant, which masks each row's own adapter."""
    return method, replace(method, name=f"{method.name}{OOD}", masked=True)


def typed(part: Any, option: str, value: Any) -> Any:
    """The value of a part's option, converted to the type that the option's annotation names.

    Raises:
        ValueError: the value cannot be converted.
    """
    try:
        return TypeAdapter(get_type_hints(type(part), include_extras=True)[option]).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"option {option} is {quoted(value)}: {error.errors()[0]['msg']}") from error


def description(part: Any) -> dict[str, Any]:
    """A router, composer or gate in a record: its kind, its options, and, for a user's own code, its source's hash."""
    kind = part if inspect.isfunction(part) else type(part)
    described: dict[str, Any] = {"kind": kind.__qualname__}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        described |= dataclasses.asdict(part)
    if kind.__module__.partition(".")[0] not in PACKAGES:
        source = inspect.getsourcefile(kind)
        described |= {"module": kind.__module__, "source": None if source is None else hash_path(Path(source))}
    return described
