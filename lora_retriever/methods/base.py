"""The seam of every method: a router, a composer and a gate, registered under a name.

    inputs ─► router ─► weights over adapters ─► composer ─► low-rank pairs ─► gate, by token ─► answers

A *router* gives every row its adapters with weights, whether by input or one set for all rows. A *composer* makes
low-rank pairs of them; a *gate*, if there is one, weighs them anew for every token. The composers and the seam of gates
are `peft_composition`'s. Routers, composers and gates are frozen dataclasses: their fields are the method's options,
which a profile can change and a run's record keeps.

Knows nothing of any method; each has a file of its own in this folder.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from lora_retriever.errors import UserError
from lora_retriever.files import hash_path

if TYPE_CHECKING:
    from lora_retriever.setting import Setting
    from peft_composition import Composer, Gate

Reads = Literal["adapters", "pool", "encoder", "model"]
"""What a method's answers may depend on beside the base model."""
Settings = Literal["k", "scorer", "temperature"]
"""The settings of a profile that a method may use; the seed is every method's."""
PACKAGES = ("lora_retriever", "peft_composition")
"""Code that a run's record knows by the packages' versions; any other's by its hash."""


@dataclass(frozen=True)
class Retrieved:
    """The best adapters of one row's search, more than are used, so that another k can be studied without searching.

    Attributes:
        probabilities: that each is the row's own, calibrated on the pool; empty where the scorer has none.
    """

    adapters: tuple[str, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Composition:
    """What one row is answered with: `adapters` with their `weights` and retrieval `scores` (None: not retrieved).

    Under a gate these are the adapters that it may choose from.
    """

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float | None, ...] = ()
    retrieved: Retrieved | None = None

    def __post_init__(self) -> None:
        """See that every adapter has its weight, a finite number, and its score.

        Raises:
            ValueError: it has not, or is named twice.
        """
        if not len(set(self.adapters)) == len(self.adapters) == len(self.weights) == len(self.scores):
            raise ValueError(
                f"adapters {self.adapters} want a weight and a score each, not {self.weights}, {self.scores}"
            )
        if not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights {self.weights} of adapters {self.adapters} are not all finite numbers")

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Composition:
        """The composition of adapters that were not retrieved, by their weights; those of weight 0 are left out."""
        used = {name: float(weight) for name, weight in weights.items() if weight}
        return cls(tuple(used), tuple(used.values()), (None,) * len(used))


class Router(Protocol):
    """Gives rows their adapters.

    A router with a field `k` gives every row that many adapters, the profile's where it is None; pools that have fewer
    are refused.
    """

    def route(self, setting: Setting) -> list[Composition]:
        """The composition of every row of the setting, in their order.

        Where `setting.masked`, a row must not be given the adapter of its own task.
        """
        ...


@runtime_checkable
class LearnedGate(Protocol):
    """A gate that has to be learned, or made, for a benchmark first."""

    def fit(self, setting: Setting) -> Gate:
        """The gate itself."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to answer rows with a pool of adapters.

    Attributes:
        name: of its run in a results folder.
        summary: a line for the list of methods.
        citation: where it is described: the paper, with its arXiv number.
        mode: how adapters are composed: the name of a composer in `peft_composition.MODES`, or one itself.
        gate: what weighs them by token, if anything does.
        masked: whether a row's own adapter is out of reach (out-of-domain).
        reads: what its answers depend on, for the record.
        settings: which of the profile's settings it uses.
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

    def adapters_needed(self, k: int) -> int:
        """How many adapters a row is given under a profile's `k`, if the method has such a number; else 0."""
        own: int | None = getattr(self.router, "k", None)
        return own if own is not None else k if "k" in self.settings else 0

    def depends_on(self, setting: str, k: int) -> bool:
        """Whether a setting that can be swept bears on the method under a profile's `k`.

        A run's name and the hash of its configuration keep these settings alone.
        """
        if setting == "seed":
            return True
        if setting == "k" and getattr(self.router, "k", None) is not None:
            return False  # an option decides
        if setting == "temperature" and self.adapters_needed(k) == 1:
            return False  # a single adapter's weight is 1
        return setting in self.settings

    def seeded(self, seed: int) -> Method:
        """The method under a profile's seed, which is added to the option `seed` of whatever part has one."""
        parts: dict[str, Any] = {"router": self.router, "mode": self.mode, "gate": self.gate}
        drawing = {name: part for name, part in parts.items() if hasattr(part, "seed")}
        return replace(self, **{name: replace(part, seed=part.seed + seed) for name, part in drawing.items()})

    def describe(self) -> dict[str, Any]:
        """The method as a run's record keeps it, with all its options.

        Raises:
            UserError: an option is nothing that JSON can hold.
        """
        described = {
            "name": self.name,
            "router": description(self.router),
            "mode": self.mode if isinstance(self.mode, str) else description(self.mode),
            "gate": None if self.gate is None else description(self.gate),
            "masked": self.masked,
        }
        try:
            read: dict[str, Any] = json.loads(json.dumps(described))  # as it will be read again: a tuple is a list
        except (TypeError, ValueError) as error:
            raise UserError(f"method {self.name}: its options cannot be recorded as JSON: {error}") from error
        return read

    def with_options(self, options: Mapping[str, Any]) -> Method:
        """The method with other values of some fields of its router, composer or gate.

        Raises:
            UserError: none of them has such a field, or it takes no such value.
        """
        parts: dict[str, Any] = {"router": self.router, "mode": self.mode, "gate": self.gate}
        parts = {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}
        known = {field.name: name for name, part in parts.items() for field in dataclasses.fields(part)}
        for option in options:
            if option not in known:
                raise UserError(
                    f"method {self.name} has no option {option!r} (known: {', '.join(sorted(known)) or 'none'})"
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
    """A method and its out-of-domain twin, under which a row's own adapter is masked."""
    return method, replace(method, name=f"{method.name}_ood", masked=True)


def typed(part: Any, option: str, value: Any) -> Any:
    """A value of a part's option as its annotation has it.

    Raises:
        ValueError: it is none.
    """
    try:
        return TypeAdapter(get_type_hints(type(part))[option]).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"option {option} is {value!r}: {error.errors()[0]['msg']}") from error


def description(part: Any) -> dict[str, Any]:
    """A router, composer or gate as records keep it: its kind and options; of code that is a user's own, its hash."""
    kind = part if inspect.isfunction(part) else type(part)
    described: dict[str, Any] = {"kind": kind.__qualname__}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        described |= dataclasses.asdict(part)
    if kind.__module__.partition(".")[0] not in PACKAGES:
        source = inspect.getsourcefile(kind)
        described |= {"module": kind.__module__, "source": None if source is None else hash_path(Path(source))}
    return described
