"""The changes that each fault of the original makes to a run: other adapters, other weights, or other prompts.

Most faults can be expressed as another composition, so that the project's own engine answers the rows with the fault:

- An adapter whose s = alpha/r is multiplied by a factor f is another adapter, here with the name `NAME*f`.
- Where one adapter of a batch acts alone, the row's composition is this adapter with the sum of the row's weights.

Batches are made as in the original: rows in the order of the file, 8 in a batch. The original takes the order of a
batch's adapters from a Python set of strings. This order is the same within a process and differs between processes.
Here a hash with a seed takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lora_retriever.data.rows import Row
from lora_retriever.generation.composition import Composition, adapters_of
from lora_retriever.generation.prompt import Prompt

BATCH = 8
"""Number of rows in a batch of the original."""
UNEQUAL = (1.0, 4.0)
"""Values of s for the fault `last-scaling`: adapters take these values in turn, in alphabetical order."""
SEED = 0
"""Seed of the order of a batch's adapters."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the answers of one run.

    Attributes:
        prompts, compositions: of each row of the benchmark.
        mode: "mixture" or "fusion".
        temperature: the temperature at which tokens are drawn. None: greedy decoding.
    """

    prompts: Sequence[Prompt]
    compositions: Sequence[Composition]
    mode: str
    temperature: float | None = None


@dataclass(frozen=True)
class Setting:
    """The data to which faults are applied. All sequences have one element for each row of the benchmark's file.

    Attributes:
        right: the plan of each method, without a fault.
        larger: the compositions of each method that retrieves, from the larger pool. Empty: there is no larger pool.
        uncut: the prompts, not cut at the profile's maximum.
        scalings: s = alpha/r of each adapter.
    """

    rows: Sequence[Row]
    right: Mapping[str, Plan]
    larger: Mapping[str, Sequence[Composition]]
    uncut: Sequence[Prompt]
    scalings: Mapping[str, float]

    def batches(self, size: int = BATCH) -> Iterator[range]:
        """The positions of the rows of each batch."""
        return (range(start, min(start + size, len(self.rows))) for start in range(0, len(self.rows), size))


Fault = Callable[[Setting, str], Plan]
"""From a setting and the name of a method to the plan of the method with the fault."""


def scaled(name: str, factor: float) -> str:
    """The name of an adapter whose s is multiplied by a factor."""
    return name if factor == 1 else f"{name}*{factor:g}"


def factor_of(name: str) -> tuple[str, float]:
    """The adapter and the factor of a name that `scaled` made."""
    plain, star, factor = name.rpartition("*")
    return (plain, float(factor)) if star else (name, 1.0)


def ordered(names: Sequence[str], seed: int = SEED) -> list[str]:
    """The adapters of a batch in an order that depends only on names and seed. The original has the order of a set."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def scale_left_out(setting: Setting, method: str) -> Plan:
    """Every s is 1: the factor of an adapter is 1/s."""
    plan = setting.right[method]
    return replace(plan, compositions=[_with_factors(c, _inverse(setting.scalings)) for c in plan.compositions])


def last_scaling(setting: Setting, method: str) -> Plan:
    """Every adapter of a batch has the s of the batch's last adapter, in a pool whose adapters have different s.

    The pool is imagined: the adapters have the s of `UNEQUAL` in turn, and B is changed so that s B A stays the same.
    Without the fault such a pool gives the same answers. With the fault the factor of an adapter is the last s over its
    own s.
    """
    plan = setting.right[method]
    own = {name: UNEQUAL[place % len(UNEQUAL)] for place, name in enumerate(sorted(setting.scalings))}
    compositions: list[Composition] = []
    for batch in setting.batches():
        rows = [plan.compositions[row] for row in batch]
        last = own[ordered(adapters_of(rows))[-1]]
        compositions += [_with_factors(row, {name: last / own[name] for name in row.weights}) for row in rows]
    return replace(plan, compositions=compositions)


def one_adapter(setting: Setting, method: str, size: int) -> Plan:
    """From the second batch on, one adapter of the batch acts alone, with the sum of each row's weights."""
    plan = setting.right[method]
    compositions: list[Composition] = []
    for batch in setting.batches(size):
        rows = [plan.compositions[row] for row in batch]
        first = ordered(adapters_of(rows))[0]
        acting = [Composition.of({first: round(sum(row.weights.values()), 6)}) for row in rows]
        compositions += acting if batch.start else rows
    return replace(plan, compositions=compositions)


def one_weight(setting: Setting, method: str) -> Plan:
    """One adapter of each row acts alone, with its own weight 1/k. The others are lost."""
    plan = setting.right[method]
    rows = [(row, ordered(list(row.weights))[0]) for row in plan.compositions]
    return replace(plan, compositions=[Composition.of({first: row.weights[first]}) for row, first in rows])


def larger_pool(setting: Setting, method: str) -> Plan:
    """Adapters are retrieved from the larger pool."""
    plan = setting.right[method]
    return replace(plan, compositions=setting.larger.get(method, plan.compositions))


def not_cut(setting: Setting, method: str) -> Plan:
    """No prompt is cut."""
    return replace(setting.right[method], prompts=setting.uncut)


def shared_retrieval(setting: Setting, method: str) -> Plan:
    """Rows with equal inputs in a batch share adapters and mask: each gets the adapters and the mask of the last."""
    plan = setting.right[method]
    compositions: list[Composition] = []
    for batch in setting.batches():
        last = {setting.rows[row].inputs: plan.compositions[row] for row in batch}
        compositions += [last[setting.rows[row].inputs] for row in batch]
    return replace(plan, compositions=compositions)


def drawn(setting: Setting, method: str, temperature: float) -> Plan:
    """Tokens are drawn at a temperature."""
    return replace(setting.right[method], temperature=temperature)


FAULTS: dict[str, tuple[str, Fault]] = {
    "scale": ("scaling alpha/r left out", scale_left_out),
    "one-of-1": ("one adapter of each row acts, with weight 1", lambda s, m: one_adapter(s, m, 1)),
    "one-of-8": ("one adapter of each batch of 8 acts, with weight 1", lambda s, m: one_adapter(s, m, BATCH)),
    "one-weight": ("one adapter of each row acts, with weight 1/k", one_weight),
    "larger-pool": ("adapters from the larger pool", larger_pool),
    "last-scaling": ("the last adapter's scaling for all, in a pool of scalings 1 and 4", last_scaling),
    "drawn-0.001": ("tokens drawn at temperature 0.001", lambda s, m: drawn(s, m, 0.001)),
    "drawn-1": ("tokens drawn at temperature 1", lambda s, m: drawn(s, m, 1.0)),
    "not-cut": ("no prompt cut", not_cut),
    "shared-retrieval": ("equal inputs of a batch share one retrieval", shared_retrieval),
}
"""The title of each fault, and the fault, by name."""


def _with_factors(composition: Composition, factors: Mapping[str, float]) -> Composition:
    return Composition.of({scaled(name, factors[name]): weight for name, weight in composition.weights.items()})


def _inverse(scalings: Mapping[str, float]) -> dict[str, float]:
    return {name: 1 / scaling for name, scaling in scalings.items()}
