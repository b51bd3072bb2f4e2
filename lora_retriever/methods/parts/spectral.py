"""Singular values and right singular vectors of adapters' updates s B A = U S V^T, for gates.

The updates are never multiplied out. With the Gram matrices G_A = A A^T and G_B = (s B)^T (s B) of a rank-r adapter,
both [r, r], the matrix G_A^½ G_B G_A^½ = W S² W^T has the squares of the update's singular values, and
V^T = W^T G_A^-½ A, because v^T v = 1 and A^T G_B A v = σ² v. So V^T x is a product with A x, which a gate gets. All
these matrices are computed in float64 on the CPU, so that they are the same on every device.

A x (`tokens.inner`, which SpectR and LoGo use) is rounded to the dtype of the model's products, with a relative error
of 2^-7 in bfloat16 and 2^-10 in float16. In V^T x, and so in SpectR's scores, G_A^-½ enlarges this error along the
directions in which A is small. Directions in which A's singular value is below eps times the largest would be rounding
errors only, so these directions are left out. LoGo's ‖s B A x‖ needs no inverse, and has the error of A x. Arrow uses x
itself, and its prototypes are rounded to float32 only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peft_composition import Offered

NEGLIGIBLE = 1e-12
"""Eigenvalues of a Gram matrix, the squares of singular values, count as 0 below this share of the largest."""


@dataclass(frozen=True)
class Spectrum:
    """The updates' singular values, largest first, and the coordinates of an input along their right singular vectors.

    An update of a rank below r, for example because of padding, has singular values of 0 and rows of zeros. A direction
    that the dtype of A x cannot resolve has a singular value of 0, too.
    """

    values: Tensor  # S, [P, r] float64
    coordinates: Tensor  # W^T G_A^-½, [P, r, r] float64: V^T x = coordinates (A x)


def spectrum_of(offered: Offered) -> Spectrum:
    """The spectra of all adapters' updates at a module, on the CPU."""
    down = offered.down.cpu().double()  # [P, r, d_in]
    negligible = max(NEGLIGIBLE, torch.finfo(offered.down.dtype).eps ** 2)
    squares, basis = _eigen(down @ down.mT, negligible)  # [P, r], [P, r, r]: G_A = basis diag(squares) basis^T
    roots = squares.sqrt()
    inverse = torch.where(squares > 0, 1 / roots, 0)  # [P, r]; 0 in directions that A does not reach
    root = (basis * roots[:, None]) @ basis.mT  # G_A^½, [P, r, r]
    inverse_root = (basis * inverse[:, None]) @ basis.mT  # G_A^-½, [P, r, r]
    squares, vectors = _eigen(root @ _gram(offered.up) @ root)  # S² [P, r], W [P, r, r]
    coordinates = (vectors.mT @ inverse_root).where((squares > 0)[..., None], 0)  # [P, r, r]
    return Spectrum(squares.sqrt(), coordinates)


def response_of(offered: Offered) -> Tensor:
    """F [P, r, r] float64, on the CPU, with ‖F A x‖ = ‖s B A x‖. F A x has r numbers, and the output has d_out."""
    squares, basis = _eigen(_gram(offered.up))  # [P, r], [P, r, r]
    return (basis * squares.sqrt()[:, None]).mT  # [P, r, r]


def computing_dtype(offered: Offered) -> torch.dtype:
    """The dtype of a gate's computations: float32, or float64 for a model in float64."""
    return torch.promote_types(offered.down.dtype, torch.float32)


def lengths(factor: Tensor, inner: Tensor) -> Tensor:
    """‖M_p (A_p x)‖ [batch, n, P] for factors M [P, q, r] and inner products A x [batch, n, P, r]."""
    return products(factor, inner).norm(dim=-1)


def products(factor: Tensor, inner: Tensor) -> Tensor:
    """M_p (A_p x) [batch, n, P, q] for factors M [P, q, r] and inner products A x [batch, n, P, r]."""
    return torch.einsum("bnpr,pqr->bnpq", inner.to(factor.dtype), factor)


def _gram(up: Tensor) -> Tensor:
    up = up.cpu().double()  # (s B)^T, [P, r, d_out]
    return up @ up.mT  # [P, r, r]


def _eigen(gram: Tensor, negligible: float = NEGLIGIBLE) -> tuple[Tensor, Tensor]:
    """Eigenvalues [P, r], the largest first and negligible eigenvalues as 0, and eigenvectors as columns [P, r, r]."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(-1), vectors.flip(-1)
    return values.where(values > negligible * values[:, :1].clamp(min=0), 0), vectors
