"""What CenterNet's heads are trained on: heat maps of centres, sizes and offsets of boxes.

Source: Zhou et al., "Objects as Points", 2019, section 3, and
https://github.com/xingyizhou/CenterNet; the radius is CornerNet's (Law and Deng, ECCV 2018).
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MIN_OVERLAP", "Targets", "encode", "gaussian_radius", "heat_map"]

MIN_OVERLAP = 0.7  # of a box and one whose corners are moved by a radius


class Targets(NamedTuple):
    """Targets of one image with n boxes, on a map of (height, width) cells.

    Attributes:
        heat: 1 at the centres' cells, falling off around them, (classes, height, width).
        cells: number of each centre's cell, row by row, int64 (n,).
        sizes: width and height in cells, (n, 2).
        offsets: where in its cell a centre lies, x and y in [0, 1), (n, 2).
    """

    heat: Tensor
    cells: Tensor
    sizes: Tensor
    offsets: Tensor


def gaussian_radius(sizes: Tensor, overlap: float = MIN_OVERLAP) -> Tensor:
    """Return how far around a centre a prediction is punished less, in whole cells, (n,).

    Three ways in which both corners can move are considered: both outwards, both inwards, or both
    in one direction. The published formula leaves out the division by a quadratic equation's first
    coefficient, so its radius is about three times that of its derivation; it is kept, since the
    published numbers come from it.

    Args:
        sizes: width and height of boxes in cells, (n, 2).
        overlap: that a moved box keeps. Default: 0.7.
    """
    width, height = sizes.double().ceil().unbind(-1)
    total, area = width + height, width * height
    radii = []
    for first, second, last in (
        (1.0, -total, area * (1 - overlap) / (1 + overlap)),
        (4.0, -2 * total, (1 - overlap) * area),
        (4 * overlap, 2 * overlap * total, (overlap - 1) * area),
    ):
        radii.append((-second + (second.square() - 4 * first * last).sqrt()) / 2)
    return torch.stack(radii).amin(0).clamp(min=0).floor()


def heat_map(cells: Tensor, classes: Tensor, radii: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Draw a bell around each centre, cut off at its radius; where bells meet, the higher counts.

    Args:
        cells: column and row of each centre, int64 (n, 2).
        classes: int64 (n,).
        radii: in whole cells, (n,); the bell's standard deviation is a third of radius and a half.
        shape: classes, height and width of the map.
    """
    heat = torch.zeros(shape, device=cells.device)
    if not len(cells):
        return heat
    rows, columns = (torch.arange(side, device=cells.device) for side in shape[1:])
    across = columns[None, None] - cells[:, 0, None, None]
    down = rows[None, :, None] - cells[:, 1, None, None]
    reach = radii.to(heat.dtype)[:, None, None]
    sigma = (2 * reach + 1) / 6
    bells = torch.exp(-(across.square() + down.square()) / (2 * sigma.square()))
    bells = bells * ((across.abs() <= reach) & (down.abs() <= reach))
    places = classes[:, None, None].expand_as(bells)
    return heat.scatter_reduce_(0, places, bells.to(heat.dtype), "amax")


def encode(boxes: Tensor, classes: Tensor, shape: tuple[int, int, int]) -> Targets:
    """Turn the boxes of an image into targets; boxes without area are left out.

    Args:
        boxes: centre x and y, width and height, as shares of the image's sides, (n, 4).
        classes: int64 (n,).
        shape: classes, height and width of the map.
    """
    _, height, width = shape
    scaled = boxes.float() * boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    there = (scaled[:, 2:] > 0).all(-1)
    scaled, classes = scaled[there], classes[there]
    centres, sizes = scaled[:, :2], scaled[:, 2:]
    limits = torch.tensor([width - 1, height - 1], device=boxes.device)
    places = torch.minimum(centres.floor().long().clamp(min=0), limits)
    return Targets(
        heat_map(places, classes, gaussian_radius(sizes), shape),
        places[:, 1] * width + places[:, 0],
        sizes,
        centres - places,
    )
