"""Cut weights into blocks of rows that stay in cache from one operator to the next.

A large weight makes several blocks. Small weights of one shape make one, joined, because calling
an operator takes longer than what it does on a thousand elements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Block", "blocks", "row_dots", "row_norms"]

# Measured on weights of BERT's and ResNet-50's shapes, with one thread and with two.
_BLOCK_ELEMENTS = 1 << 20
_JOINED_ELEMENTS = 1 << 14
# From here on a dot product a row is faster than a product of matrices and its sum.
_DOT_COLUMNS = 192
_DOTS = torch.ops.aten._embedding_bag_per_sample_weights_backward.default


@dataclass(frozen=True)
class Block:
    """Rows of one weight, or all rows of several weights of one shape.

    Attributes:
        weights: indices of the weights.
        part: which rows of each.
        rows: places of these rows in a buffer that holds those of all weights.
        elements: in all of them.
    """

    weights: list[int]
    part: slice
    rows: slice | Tensor
    elements: int

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """(rows, columns): a view where the block is of one weight, else a copy."""
        if len(self.weights) == 1:
            return _as_rows(tensors[self.weights[0]])[self.part]
        return _as_rows(torch.cat([tensors[index] for index in self.weights]))

    def pieces(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Views: rows of the one weight, or all of each of several."""
        if len(self.weights) == 1:
            return [self.joined(tensors)]
        return [tensors[index] for index in self.weights]

    def split(self, matrix: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Views of a matrix that match `pieces(like)`."""
        if len(self.weights) == 1:
            return [matrix]
        shape = like[self.weights[0]].shape
        return list(matrix.view(-1, *shape).unbind())


def blocks(
    weights: Sequence[int], params: Sequence[Tensor], starts: Sequence[int], *, whole: bool
) -> Iterator[Block]:
    """Cut these weights.

    Args:
        weights: indices in params, of weights that are row-major.
        params: all weights.
        starts: where the rows of each begin in the buffer.
        whole: whether a weight stays in one block, however large.
    """
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for index in weights:
        param = params[index]
        if param.numel() <= _JOINED_ELEMENTS and param.is_contiguous():
            alike[param.shape].append(index)
            continue
        count = param.shape[0]
        step = count if whole else max(1, _BLOCK_ELEMENTS * count // param.numel())
        for begin in range(0, count, step):
            end = min(begin + step, count)
            rows = slice(starts[index] + begin, starts[index] + end)
            yield Block([index], slice(begin, end), rows, param.numel() // count * (end - begin))
    for shape, indices in alike.items():
        step = max(1, _BLOCK_ELEMENTS // shape.numel())
        for begin in range(0, len(indices), step):
            yield _join(indices[begin : begin + step], shape, starts)


def _join(weights: list[int], shape: torch.Size, starts: Sequence[int]) -> Block:
    first, count = starts[weights[0]], shape[0]
    rows: slice | Tensor = slice(first, first + count)
    if len(weights) > 1:
        begins = torch.tensor([starts[index] for index in weights])
        rows = (begins[:, None] + torch.arange(count)).flatten()
    return Block(weights, slice(0, count), rows, len(weights) * shape.numel())


def row_dots(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """(rows,) the dot products of the rows of two matrices; scratch has as many elements."""
    rows, columns = a.shape
    if columns < _DOT_COLUMNS:
        return torch.mul(a, b, out=scratch[: a.numel()].view_as(a)).sum(1)
    # The gradient of an embedding bag's weights, of one sample each, is a dot product a row. It
    # is torch's one operator that takes such without writing the products.
    own = _numbers(rows)
    dots: Tensor = _DOTS(a, b, own, own, own, 0)
    return dots


def row_norms(a: Tensor) -> Tensor:
    """(rows,) the norms of the rows."""
    norms: Tensor = torch.linalg.vector_norm(a, dim=1)
    return norms


@lru_cache(maxsize=64)
def _numbers(count: int) -> Tensor:
    return torch.arange(count)


def _as_rows(tensor: Tensor) -> Tensor:
    """(rows, columns) view of a row-major tensor, columns in memory order."""
    columns = tensor.numel() // tensor.shape[0]
    return tensor.as_strided((tensor.shape[0], columns), (columns, 1))
