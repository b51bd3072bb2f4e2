"""Merges: compositions whose result is one adapter of low rank, for any number of adapters in a row.

These are four recipes of PEFT's `add_weighted_adapter`, computed for each row. Linear, TIES and DARE merge the factors
A and the factors B separately, as PEFT does. The result is of low rank, but differs from the papers, which merge whole
updates ΔW = s B A. The product of two merged factors has cross terms between adapters. Also, a factorisation is one of
many (B M and M⁻¹ A give the same ΔW), so the signs of entries of separately trained adapters need not correspond. Only
`Svd` approximates the mixture Σ_p w_p s_p B_p A_p itself.

An adapter that does not target a module takes no part in the merge of that module. An adapter of weight 0 takes part in
no merge, and has no vote on signs. There are three differences from PEFT: adapters of different rank, which PEFT
refuses, are padded with zeros; a single adapter, which PEFT copies unchanged, is pruned or cut like several; and an
adapter of scaling 0, which has a vote in PEFT, takes no part. All sums are computed in float32 or wider.

This file has the recipes with their options, and imports no torch; `merging` has the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from peft_composition.errors import CompositionError

if TYPE_CHECKING:
    from torch import Tensor

    from peft_composition.pairs import ActiveSlots, ModuleStack, Pair

Majority = Literal["total", "frequency"]


@dataclass(frozen=True)
class Linear:
    """Task arithmetic on the factors (arXiv 2212.04089 defines it on ΔW), PEFT's "linear".

    A = Σ_p sign(w_p s_p) √|w_p s_p| A_p and B = Σ_p √|w_p s_p| B_p. A single adapter of weight w acts with w here, and
    with w² in a fusion.
    """

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        from peft_composition.merging import merged

        return merged(stack, active, lambda factor, adapter, half: factor)


@dataclass(frozen=True)
class Ties:
    """TIES (trim, elect sign, merge; arXiv 2306.01708) on each factor, PEFT's "ties".

    Each A_p and B_p keeps the share `density` of its entries that are largest in magnitude. The elected sign of an
    entry is the sign of the unweighted sum over the row's adapters ("total"), or the sign that more adapters have
    ("frequency"). The entries of the elected sign, weighted as in `Linear`, are summed and divided by their number. The
    weights therefore need not sum to 1: n adapters that agree give their mean if each has weight 1.

    Unlike in PEFT, entries equal to the smallest kept entry are kept too. Adapters in bfloat16 have equal entries, and
    a sort orders equal entries differently on different devices.
    """

    density: float = 0.5
    majority: Majority = "total"

    def __post_init__(self) -> None:
        """Raise `CompositionError` for an invalid option."""
        _check_density("TIES", self.density)
        if self.majority not in ("total", "frequency"):
            raise CompositionError(f"TIES elects signs by 'total' or 'frequency', not by {self.majority!r}")

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        from peft_composition.merging import merged, trimmed

        return merged(stack, active, lambda factor, adapter, half: trimmed(factor, self.density), self.majority)


@dataclass(frozen=True)
class Dare:
    """DARE (drop at random, rescale; arXiv 2311.03099) on each factor, PEFT's "dare_linear" and "dare_ties".

    Each entry of A_p and B_p is kept with probability `density` and divided by `density`; the other entries are
    dropped. The factors are then merged as in `Linear`, or, with `ties`, as in `Ties` by "total". The masks depend on
    `seed`, `density`, the module, the name under which the adapter was loaded, and the shape of the factor. The masks
    do not depend on batch, order, slot or device.
    """

    density: float = 0.5
    seed: int = 0
    ties: bool = False

    def __post_init__(self) -> None:
        """Raise `CompositionError` for an invalid option."""
        _check_density("DARE", self.density)

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        from peft_composition.merging import merged

        def dropped(factor: Tensor, adapter: str, half: str) -> Tensor:
            return factor * self.mask(stack.module, adapter, half, factor).to(factor.device) / self.density

        return merged(stack, active, dropped, "total" if self.ties else None)

    def mask(self, module: str, adapter: str, half: str, factor: Tensor) -> Tensor:
        """Return which entries of a factor are kept, bool on the CPU: [r, d_in] for "A", [r, d_out] for "B" (B^T)."""
        from peft_composition.merging import dare_mask

        return dare_mask("\0".join((str(self.seed), module, adapter, half)), factor, self.density)


@dataclass(frozen=True)
class Svd:
    """The best approximation of the mixture Σ_p w_p s_p B_p A_p with a given rank (Eckart and Young), PEFT's "svd".

    With `rank` None, the rank of each row and module is the largest rank of the row's adapters at this module (PEFT
    takes their largest rank at any module). The approximation is computed from the factors, without a matrix of d_out ×
    d_in. No gradient reaches the weights.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        """Raise `CompositionError` for an invalid option."""
        if self.rank is not None and self.rank < 1:
            raise CompositionError(f"the rank of an SVD merge must be at least 1, not {self.rank}")

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row. Raises `CompositionError` if the weights require a gradient."""
        from peft_composition.merging import approximated

        return approximated(stack, active, self.rank)


def _check_density(method: str, density: float) -> None:
    if not 0 < density <= 1:
        raise CompositionError(f"the density of {method} is a share of entries, above 0 and at most 1, not {density}")
