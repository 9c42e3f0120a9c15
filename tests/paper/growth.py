"""How far weights grew while they trained, and how far the paper's lemmas say they must.

Everything follows from two facts. A loss that does not change with the length of `w` has a gradient
with `g·w = 0`. And a step moves by `d_t = w_{t+1} − w_t = −η p_t`, so that
`|w_{t+1}|² = |w_t|² + |d_t|² + 2 d_t·w_t`. Only the last term depends on the optimizer.

Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, section 2.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Trace", "growth_ratio", "predicted_squares", "train"]


@dataclass(frozen=True)
class Trace:
    """What happened to W weights in T steps.

    Attributes:
        losses: (T,) the loss before each step.
        squares: (T + 1, W) `|w|²`, before the first step and after each.
        moves: (T, W) `|w_{t+1} − w_t|²`, which is `η²|p_t|²`.
        turns: (T,) effective steps `|ŵ_{t+1} − ŵ_t|`, root mean square over all rows.
        first: the entries of the first weight, before the first step and after each, where asked.
    """

    losses: Tensor
    squares: Tensor
    moves: Tensor
    turns: Tensor
    first: Tensor | None = None


def train(
    weights: Sequence[Tensor],
    optimizer: Optimizer,
    losses: Iterable[Callable[[], Tensor]],
    *,
    keep_first: bool = False,
) -> Trace:
    """Take a step for each loss, and follow the weights."""
    told, squares, moves, turns, first = [], [_squares(weights)], [], [], []
    for compute in losses:
        before = [weight.detach().clone() for weight in weights]
        first.append(before[0].flatten())
        optimizer.zero_grad()
        loss = compute()
        loss.backward()
        optimizer.step()
        after = [weight.detach() for weight in weights]
        told.append(loss.detach())
        squares.append(_squares(after))
        moves.append(_squares([new - old for new, old in zip(after, before, strict=True)]))
        turned = torch.cat([_unit(n) - _unit(o) for n, o in zip(after, before, strict=True)])
        turns.append(turned.square().mean().sqrt())
    first.append(weights[0].detach().clone().flatten())
    path = torch.stack(first) if keep_first else None
    return Trace(*map(torch.stack, (told, squares, moves, turns)), path)


def predicted_squares(trace: Trace, beta: float) -> Tensor:
    """`|w_t|²` from `|w_0|²` and the lengths of the steps alone, (T + 1, W).

    With `beta=0` these are steps at right angles to the weight: `|w_{t+1}|² = |w_t|² + |d_t|²`
    (Lemma 2.1), plain gradient descent's and every projected step. Else they are steps
    `p_t = β p_{t−1} + g_t` without projection (Lemma 2.2), of which `w_t·p_t` keeps what earlier
    steps added, `−2 w_t·η p_t = 2 Σ_{k<t} β^{t−k} |d_k|²`.
    """
    squares, kept = [trace.squares[0]], torch.zeros_like(trace.squares[0])
    for move in trace.moves:
        squares.append(squares[-1] + move + 2 * kept)
        kept = beta * (kept + move)
    return torch.stack(squares)


def growth_ratio(trace: Trace) -> float:
    """How far `|w|²` grew, in units of what the same steps at right angles would have added.

    Without momentum it is 1. With momentum it tends to `1 + 2β/(1 − β)` (Corollary 2.3).
    """
    grown = (trace.squares[-1] - trace.squares[0]).sum()
    return float(grown / trace.moves.sum())


def _squares(weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight.detach().square().sum() for weight in weights])


def _unit(weight: Tensor) -> Tensor:
    """The rows of a weight at length 1, flattened and scaled so that a mean is one over rows."""
    rows = weight.flatten(1)
    return (rows / rows.norm(dim=1, keepdim=True)).flatten() * rows.shape[1] ** 0.5
