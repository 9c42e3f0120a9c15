"""Weights of every kind that the optimizers must serve, and gradients that steer the test."""

import torch
from torch import nn

from tests.references import CHANNEL, LAYER, NONE

SHAPES = {
    "linear": (6, 5),
    "conv1d": (4, 3, 5),
    "conv2d": (4, 3, 3, 3),
    "conv3d": (3, 2, 2, 2, 2),
    "embedding": (17, 4),
    "one_row": (1, 12),
    "rows_of_one": (7, 1),
    "one_element": (1, 1),
    "bias": (6,),
    "norm": (5,),
    "scalar": (),
    "no_rows": (0, 4),
    "no_columns": (3, 0),
    "zero": (4, 3),
    "zero_row": (5, 3),
}
# Gradients: of a length along the weight, orthogonal to each row, only to the whole, by turns.
KINDS = ["radial", "channel", "layer", "mix"]
VIEW_OF_KIND = {"radial": NONE, "channel": CHANNEL, "layer": LAYER}


def generator(seed):
    """A generator with its own stream, on the CPU so that every device sees the same numbers."""
    return torch.Generator().manual_seed(seed)


def make_weights(dtype=torch.float32, device="cpu", names=None, seed=0):
    """Contiguous parameters by name; values depend on the seed only, not on names or dtype."""
    draw = generator(seed)
    weights = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    weights["norm"].fill_(1.0)
    weights["zero"].zero_()
    weights["zero_row"][2].zero_()
    chosen = names if names is not None else list(weights)
    return {name: nn.Parameter(weights[name].to(device, dtype)) for name in chosen}


def lay_out(tensor, layout):
    """The same values in other strides, or at another place of their storage."""
    if layout == "contiguous":
        return tensor.clone(memory_format=torch.contiguous_format)
    if layout == "transposed":
        order = list(reversed(range(tensor.ndim)))
        return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(order)
    if layout == "channels_last" and tensor.ndim in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tensor.clone(memory_format=formats[tensor.ndim])
    if layout == "unaligned":
        storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        return storage[1:].view(tensor.shape).copy_(tensor)
    if layout == "strided" and tensor.ndim:
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan).to(tensor)
        return wide[..., 1::2].copy_(tensor)
    return tensor.clone()


LAYOUTS = ["contiguous", "transposed", "channels_last", "unaligned", "strided"]
DENSE_LAYOUTS = ["contiguous", "channels_last", "unaligned"]


def make_grad(weight, kind, draw):
    """A gradient of this kind for a weight, computed in float64 and returned in its dtype.

    Vectors get random numbers. A weight that cannot show a view (one row has no layer view of its
    own) gets the nearest kind.
    """
    w = weight.detach().cpu().double()
    raw = torch.randn(w.shape, generator=draw, dtype=torch.float64)
    if w.ndim < 2 or not w.numel():
        return raw.to(weight)
    w, raw = w.reshape(len(w), -1), raw.reshape(len(w), -1)
    square = w.pow(2).sum(1, keepdim=True)
    alive = square > 0
    radial = torch.where(alive, w / square.clamp(min=1e-30), 0.0)
    tangent = raw - (raw * w).sum(1, keepdim=True) * radial
    if kind == "random":
        grad = raw
    elif kind == "radial":
        grad = 0.3 * tangent + (0.5 + raw[:, :1].abs()) * w
    elif kind == "channel" or alive.sum() < 2:
        grad = tangent
    else:
        # Each row has a part along the weight; over the whole weight these cancel.
        signs = torch.ones(len(w), 1, dtype=torch.float64)
        signs[1::2] = -1
        signs = torch.where(alive, signs, 0.0)
        signs = torch.where(alive, signs - signs.sum() / alive.sum(), 0.0)
        grad = 0.3 * tangent + signs * radial
    # Of the size of 1 whatever the weight's, so that one absolute tolerance serves all.
    grad = grad / grad.pow(2).mean().sqrt().clamp(min=1e-30)
    return grad.reshape(weight.shape).to(weight)


def make_grads(weights, kind, step, seed=1):
    """A gradient for each weight; `mix` changes the kind from weight to weight and step to step."""
    draw = generator(seed * 10_000 + step)
    kinds = [KINDS[(index + step) % 3] if kind == "mix" else kind for index in range(len(weights))]
    return [make_grad(weight, k, draw) for weight, k in zip(weights, kinds, strict=True)]
