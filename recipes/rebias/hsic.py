"""The Hilbert-Schmidt independence criterion (HSIC) with Gaussian kernels, unbiased.

    HSIC(X, Y) = [tr(K L) + 1ᵀK1 · 1ᵀL1 / ((m − 1)(m − 2)) − 2/(m − 2) · 1ᵀK L1] / (m (m − 3))

for kernel matrices K and L of m paired examples whose diagonals are set to 0. Its expectation is 0
exactly where X and Y are independent; the estimate itself may be negative.

Source: Song et al., "Feature Selection via Dependence Maximization", JMLR 13 (2012), equation 5;
used by Bahng et al., "Learning De-biased Representations with Biased Representations", ICML 2020.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["FEWEST", "hsic", "median_distance"]

FEWEST = 4  # examples: the estimate divides by m (m − 3)


def hsic(x: Tensor, y: Tensor, sigma_x: float = 1.0, sigma_y: float = 1.0) -> Tensor:
    """Estimate the dependence of two sets of features, in float32 or their own wider type.

    Args:
        x: features of m examples, (m, any).
        y: other features of the same examples, (m, any).
        sigma_x: width of the Gaussian kernel of `x`, above 0. Default: 1.0.
        sigma_y: that of `y`. Default: 1.0.

    Returns:
        The estimate, a scalar that gradients flow through.

    Raises:
        ValueError: there are fewer than four examples, or not equally many.
    """
    if len(x) != len(y) or len(x) < FEWEST:
        raise ValueError(
            f"hsic needs at least {FEWEST} examples in pairs, not {len(x)} and {len(y)}; raise "
            "batch_size."
        )
    # Distances cancel: float16 and bfloat16 would leave nothing of them.
    with torch.autocast(x.device.type, enabled=False):
        kernel_x, kernel_y = _kernel(x, sigma_x), _kernel(y, sigma_y)
        m = len(x)
        rows_x, rows_y = kernel_x.sum(0), kernel_y.sum(0)
        paired = (kernel_x * kernel_y).sum()
        apart = rows_x.sum() * rows_y.sum() / ((m - 1) * (m - 2))
        mixed = 2 * rows_x.dot(rows_y) / (m - 2)
        return (paired + apart - mixed) / (m * (m - 3))


def median_distance(batches: Iterable[Tensor]) -> float:
    """Return the median distance between examples of one batch, over all batches.

    Pairs of an example with itself count, as in the published code.

    Args:
        batches: features of some examples each, (m, any).
    """
    squares = torch.cat([_squared_distances(batch.detach()).flatten() for batch in batches])
    ordered = squares.sort().values
    middle = ordered[(len(ordered) - 1) // 2].item(), ordered[len(ordered) // 2].item()
    return math.sqrt(sum(middle) / 2)


def _squared_distances(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    gram = flat @ flat.T
    squares = gram.diagonal()
    return (squares[:, None] + squares[None] - 2 * gram).clamp(min=0)


def _kernel(features: Tensor, sigma: float) -> Tensor:
    kernel = torch.exp(-_squared_distances(features) / (2 * sigma**2))
    return kernel - torch.diag(kernel.diagonal())
