"""A weight as a matrix: which of its elements make a row, where rows can be told in several ways.

The first dimension numbers the rows, as everywhere. In a stack of experts, (experts, out, in) or
(experts, in, out), every output of every expert may be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ROWS", "Grouping", "foldings", "row_dots", "row_squares", "spread"]

ROWS = "rows"
# What each row's elements are summed over.
_DIMS = {"out_in": 2, "in_out": 1}
_EQUATIONS = {"out_in": "eab,eab->ea", "in_out": "eab,eab->eb"}


@dataclass(frozen=True)
class Grouping:
    """Groups of consecutive rows that are scaled on their own.

    Attributes:
        sizes: the rows of each group; negative where a group is left as it is.
        folding: which elements make a row.
    """

    sizes: tuple[int, ...]
    folding: str = ROWS

    @classmethod
    def equal(cls, groups: int, rows: int, folding: str = ROWS) -> Grouping:
        """As many groups of the same size."""
        return cls((rows // groups,) * groups, folding)

    @property
    def count(self) -> int:
        """How many groups are scaled."""
        return sum(size > 0 for size in self.sizes)

    @property
    def is_whole(self) -> bool:
        """Whether every group is scaled."""
        return min(self.sizes) > 0

    @property
    def groups(self) -> int | None:
        """The number of groups where they are equal, all scaled, and made of plain rows."""
        same = len(set(self.sizes)) == 1 and self.is_whole and self.folding == ROWS
        return len(self.sizes) if same else None

    def factors(self, of_groups: Tensor) -> Tensor:
        """(rows,) the factor of each row's group, 1 for what is left as it is."""
        sizes = torch.tensor(self.sizes, device="cpu")
        kept = torch.where(sizes > 0, of_groups, 1.0)
        return torch.repeat_interleave(kept, sizes.abs())


def foldings(shape: Sequence[int]) -> tuple[str, ...]:
    """The ways in which a weight of this shape has rows."""
    is_stack = len(shape) == 3 and min(shape) > 1
    return (ROWS, *_DIMS) if is_stack else (ROWS,)


def row_dots(one: Tensor, other: Tensor, folding: str) -> Tensor:
    """(rows,) the inner product of each two rows."""
    if folding != ROWS:
        return torch.einsum(_EQUATIONS[folding], one, other).flatten()
    return torch.einsum("rc,rc->r", *(t.reshape(_rows(t), -1) for t in (one, other)))


def row_squares(tensor: Tensor, folding: str = ROWS) -> Tensor:
    """(rows,) `|t|²` of every row."""
    if folding != ROWS:
        tensor = torch.linalg.vector_norm(tensor, dim=_DIMS[folding]).flatten()
        return tensor.square()
    norms: Tensor = torch.linalg.vector_norm(tensor.reshape(_rows(tensor), -1), dim=1)
    return norms.square()


def spread(factors: Tensor, shape: Sequence[int], folding: str) -> Tensor:
    """The rows' factors in a shape that a weight can be multiplied by."""
    if folding == ROWS:
        return factors.reshape(-1, *(1 for _ in shape[1:]))
    return factors.reshape(shape[0], -1).unsqueeze(_DIMS[folding])


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 1
