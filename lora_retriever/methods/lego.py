"""LoRA-LEGO: the rank units of the best k adapters, clustered, and one unit put in place of each cluster.

Zhao et al. 2024, "Merging LoRAs like Playing LEGO", arXiv 2409.16167. A rank unit of an adapter is a row of A with its
column of B, u_j = [a_j; s b_j]. The update of an adapter is the sum of its units, s B A = Σ_j s b_j a_jᵀ, and the order
of the units does not matter. The units of all adapters are clustered by k-means, and the centroids are the units of
the merged adapter.

The paper's formulas of the two rescalings were not available. This project takes: every centroid is scaled to the mean
length of its cluster's units, and the update is multiplied by √(r / c), with r the rank of the row's adapters and c the
number of clusters. By default c is r, so the factor is 1. The scaling s belongs to the units. The weights have no
effect: an adapter takes part with all its units, or the adapter does not take part. k-means starts with the longest
unit and goes on with the unit that is farthest from the units chosen, so nothing is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.top_k import RETRIEVAL, TOP_K, Nearest

if TYPE_CHECKING:
    from torch import Tensor

    from peft_composition.pairs import ActiveSlots, ModuleStack, Pair


@dataclass(frozen=True)
class Lego:
    """Clusters the rank units of a row's adapters at a module.

    Attributes:
        units: c, the number of clusters. None: the largest rank of the row's adapters.
        rounds: maximum number of rounds of k-means.
    """

    units: Count | None = None
    rounds: Count = 20

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """The merged pair of each row: A [batch, c, d_in] and (s B)^T [batch, c, d_out]."""
        import torch

        from peft_composition.pairs import Pair, product_dtype

        down, up = stack.gather(active)  # [batch, k, r, d_in], [batch, k, r, d_out]
        slots: list[list[int]] = active.slots.tolist()
        ranks = torch.tensor([[stack.ranks.get(slot, 0) for slot in row] for row in slots])  # [batch, k]
        there = (torch.arange(down.shape[2]) < ranks[..., None]).flatten(1).to(down.device)  # [batch, k * r]
        rank = ranks.amax(dim=1).to(down.device)  # [batch]
        wanted = rank if self.units is None else torch.full_like(rank, self.units)  # [batch]
        wide = torch.promote_types(down.dtype, torch.float32)
        units = torch.cat([down, up], dim=-1).to(wide).flatten(1, 2)  # [batch, k * r, d_in + d_out]
        clusters = clustered(units, there, wanted, self.rounds)  # [batch, k * r, c] bool
        size = clusters.sum(dim=1).clamp(min=1)[..., None]  # [batch, c, 1]
        members = clusters.mT.to(wide)  # [batch, c, k * r]
        centroids = members @ units / size  # [batch, c, d_in + d_out]
        length = members @ units.norm(dim=-1, keepdim=True) / size  # [batch, c, 1], mean length of the members
        centroids = centroids * length / centroids.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
        factor = (rank.to(wide) / wanted).sqrt()[:, None, None]  # √(r / c), [batch, 1, 1]
        dtype = product_dtype(stack.up.device, stack.up.dtype)
        d_in = down.shape[-1]
        return Pair(centroids[..., :d_in].to(dtype), (centroids[..., d_in:] * factor).to(dtype))


def clustered(units: Tensor, there: Tensor, wanted: Tensor, rounds: int) -> Tensor:
    """Which unit belongs to which cluster, [batch, n, c] bool, by k-means with Euclidean distances.

    Args:
        units: [batch, n, d].
        there: [batch, n] bool, which units are real. The others belong to no cluster.
        wanted: [batch], the number of clusters of each row. A row with fewer different units has fewer clusters.
        rounds: maximum number of rounds.
    """
    import torch

    batch, _, d = units.shape
    count, rows = int(wanted.max()), torch.arange(batch, device=units.device)
    centres = units.new_zeros(batch, count, d)
    used = torch.zeros(batch, count, dtype=torch.bool, device=units.device)
    distance = units.norm(dim=-1).masked_fill(~there, 0)  # [batch, n], at first from the origin
    for cluster in range(count):
        farthest = distance.argmax(dim=1)  # [batch]
        used[:, cluster] = (distance[rows, farthest] > 0) & (cluster < wanted)
        centres[:, cluster] = units[rows, farthest]
        to_centre = (units - centres[:, cluster, None]).norm(dim=-1).masked_fill(~there, 0)  # [batch, n]
        distance = to_centre if cluster == 0 else torch.minimum(distance, to_centre)
    known = torch.zeros(0)
    for _ in range(rounds):
        apart = torch.cdist(units, centres).masked_fill(~used[:, None], torch.inf)  # [batch, n, c]
        nearest = apart.argmin(dim=-1)  # [batch, n]
        if known.shape == nearest.shape and bool((known == nearest).all()):
            break
        known = nearest
        belongs = torch.nn.functional.one_hot(nearest, count).bool() & there[..., None] & used[:, None]  # [batch, n, c]
        size = belongs.sum(dim=1)[..., None]  # [batch, c, 1]
        means = belongs.mT.to(units.dtype) @ units / size.clamp(min=1)  # [batch, c, d]
        centres = means.where(size > 0, centres)
    return belongs


METHODS = with_ood(
    Method(
        "lego",
        "the rank units of the best k adapters, clustered into one adapter",
        "Zhao et al. 2024, arXiv 2409.16167",
        Nearest(),
        Lego(),
        reads=RETRIEVAL,
        settings=TOP_K,
    )
)
