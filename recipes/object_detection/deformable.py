"""A deformable convolution in plain torch: each tap looks where the image tells it to.

torchvision has a compiled one, but its releases fit one release of torch each; this one runs
wherever torch does, in CPU and GPU, at the cost of a copy of the input a tap.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DeformableConv2d"]


class DeformableConv2d(nn.Module):
    """A 3 × 3 convolution whose nine taps are moved and weighted place by place.

    Displacements and weights come from a convolution of the input that begins at zero, so that the
    taps begin on the usual grid, with a weight of a half. Taps between pixels interpolate; outside
    of the map they see zeros.

    Args:
        narrow: channels of the input.
        wide: channels of the output.

    Source: Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
    """

    TAPS = 9

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(wide, narrow, 3, 3))
        self.bias = nn.Parameter(torch.empty(wide))
        self.steering = nn.Conv2d(narrow, 3 * self.TAPS, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin on the usual grid."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.steering.weight)
        nn.init.zeros_(self.steering.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(images, narrow, height, width) to as many places."""
        height, width = features.shape[-2:]
        steering = self.steering(features)
        moves, mask = steering.split([2 * self.TAPS, self.TAPS], dim=1)
        moves = moves.unflatten(1, (self.TAPS, 2))  # row, then column of each tap
        grid = self._grid(height, width, features) + moves.permute(0, 1, 3, 4, 2)
        # grid_sample wants column first, and the middles of the outer pixels at -1 and 1.
        sides = grid.new_tensor([max(height - 1, 1), max(width - 1, 1)])
        shares = (2 * grid / sides - 1).flip(-1).flatten(1, 2)
        seen = functional.grid_sample(
            features, shares, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        seen = seen.unflatten(2, (self.TAPS, height)) * mask.sigmoid().unsqueeze(1)
        weight = self.weight.flatten(2).flatten(1)  # (wide, narrow · taps)
        return functional.conv2d(seen.flatten(1, 2), weight[..., None, None], self.bias)

    def _grid(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return row and column that each tap sees without steering, (1, taps, h, w, 2)."""
        rows = torch.arange(height, device=like.device, dtype=like.dtype)
        columns = torch.arange(width, device=like.device, dtype=like.dtype)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        steps = torch.tensor([-1.0, 0.0, 1.0], device=like.device, dtype=like.dtype)
        taps = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
        return (places[None] + taps[:, None, None])[None]
