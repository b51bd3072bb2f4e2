"""SpectR: the scores are lengths along all of an update's directions, against dense singular value decompositions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from routing_cases import ROWS, gated_logits, looped_logits, model_with_pool, softmax_over_best
from torch import Tensor

from lora_retriever.errors import UserError
from lora_retriever.methods import find_methods
from lora_retriever.methods.parts.spectral import lengths, response_of, spectrum_of
from lora_retriever.methods.spectr import SpectR
from peft_composition import Offered


def spectr_by_svd(top_k: int, temperature: float, singular_values: bool) -> Any:
    def weigh(candidates: Mapping[str, Tensor], x: Tensor) -> dict[str, float]:
        scores = {}
        for name, update in candidates.items():
            _, values, directions = torch.linalg.svd(update)  # [min(d_out, d_in)], [d_in, d_in]
            kept = values > 1e-9 * values[0]
            along = directions[: len(values)][kept] @ x
            scores[name] = float((values[kept] * along if singular_values else along).norm())
        return softmax_over_best(scores, top_k, temperature)

    return weigh


@pytest.mark.slow
@pytest.mark.parametrize("singular_values", [False, True])
@pytest.mark.parametrize(("top_k", "temperature"), [(4, 1.0), (2, 0.3)])
def test_each_token_is_weighed_as_by_dense_decompositions(
    tmp_path: Path, top_k: int, temperature: float, singular_values: bool
) -> None:
    model, parts = model_with_pool(tmp_path)
    names = list(parts)
    offered = torch.ones(len(ROWS), len(names))
    offered[0, names.index("alpha32")] = 0
    actual = gated_logits(model, names, offered, SpectR(top_k, temperature, singular_values))
    for row, is_offered in enumerate(offered.bool().tolist()):
        mine = [name for name, taken in zip(names, is_offered, strict=True) if taken]
        weigh = spectr_by_svd(top_k, temperature, singular_values)
        expected = looped_logits(model.base, parts, mine, weigh, ROWS[row])
        torch.testing.assert_close(actual[row], expected, atol=1e-9, rtol=1e-9)


def offered_of(pairs: list[tuple[Tensor, Tensor]], rank: int) -> Offered:
    """The offer of a module: pairs of A [r, d_in] and B [d_out, r], padded with zeros to a rank."""
    down = torch.zeros(len(pairs), rank, pairs[0][0].shape[1], dtype=torch.float64)
    up = torch.zeros(len(pairs), rank, pairs[0][1].shape[0], dtype=torch.float64)
    for place, (a, b) in enumerate(pairs):
        down[place, : len(a)], up[place, : len(a)] = a, b.T
    return Offered("module", tuple(map(str, range(len(pairs)))), down, up, torch.ones(len(pairs), dtype=torch.bool))


def test_the_spectrum_is_that_of_the_full_matrix_whatever_its_rank() -> None:
    """Adapters of full rank, with padding, with a direction twice in A or B, and an untrained adapter, whose B is 0."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    twice_in_b, twice_in_a = random(9, 4), random(4, 12)
    twice_in_b[:, 3], twice_in_a[3] = twice_in_b[:, 1], -2 * twice_in_a[0]
    pairs = [
        (random(4, 12), random(9, 4)),
        (random(2, 12), random(9, 2)),
        (random(4, 12), twice_in_b),
        (twice_in_a, random(9, 4)),
        (random(4, 12), torch.zeros(9, 4, dtype=torch.float64)),
    ]
    offered, x = offered_of(pairs, 5), random(12)
    spectrum, response = spectrum_of(offered), response_of(offered)
    for place, (a, b) in enumerate(pairs):
        _, values, directions = torch.linalg.svd(b @ a)
        torch.testing.assert_close(spectrum.values[place], values[:5], atol=1e-7, rtol=1e-9)
        along = (directions[:9] @ x).abs() * (values > 1e-9)  # signs mean nothing
        actual = spectrum.coordinates[place] @ (offered.down[place] @ x)
        torch.testing.assert_close(actual.abs(), along[:5], atol=1e-7, rtol=1e-9)
        torch.testing.assert_close(
            (response[place] @ (offered.down[place] @ x)).norm(), (b @ a @ x).norm(), atol=1e-7, rtol=1e-9
        )


def test_directions_that_16_bit_cannot_tell_from_rounding_count_as_none() -> None:
    """A's third direction is 2^-8 of its first. bfloat16 rounds x by about 2^-8, float16 by a quarter of this."""
    a, b = torch.zeros(3, 12), torch.eye(9)[:, :3]
    a[0, 0], a[1, 1], a[2, 2] = 1, 2**-2, 2**-8
    for dtype, rank in ((torch.bfloat16, 2), (torch.float16, 3), (torch.float32, 3)):
        offered = Offered("module", ("one",), a[None].to(dtype), b.T[None].to(dtype), torch.ones(1, dtype=torch.bool))
        spectrum = spectrum_of(offered)
        assert int((spectrum.values > 0).sum()) == int(spectrum.coordinates[0].any(dim=1).sum()) == rank


def test_scaling_counts_only_with_singular_values() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((4, 12), (9, 4)))
    inner = torch.randn(1, 3, 2, 4, generator=draw, dtype=torch.float64)
    inner[:, :, 1] = inner[:, :, 0]  # the two adapters differ in the scaling alone
    offered = offered_of([(a, b), (a, 8 * b)], 4)
    for singular_values, times in ((False, 1), (True, 8)):
        scores = lengths(SpectR(singular_values=singular_values).prepare(offered), inner)  # [1, 3, 2]
        torch.testing.assert_close(scores[..., 1], times * scores[..., 0])


def test_options_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UserError, match="method spectr: option top_k is 0"):
        find_methods(["spectr"], {"spectr": {"top_k": 0}})
