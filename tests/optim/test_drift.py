"""Over thousands of steps the error grows no faster than a plain loop's in float32.

A weight that is written by a guess and repaired takes a way of its own to the same number. A
rounding that always goes the same way would show here, as an error that grows with every step.
"""

from functools import cache

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import ADAMP, FAMILIES, SGDP_, families_and_paths
from tests.weights import generator

STEPS = 3000
OPTIONS = {
    ADAMP.name: {"lr": 1e-3, "betas": (0.9, 0.99)},
    SGDP_.name: {"lr": 0.01, "momentum": 0.9},
}
PLAIN = {"foreach": False}
CHOSEN = families_and_paths(lambda _, path: path.name not in ("default", "single_tensor"))


def gradient(weight, kind, draw):
    """Orthogonal to each row, only to the whole, or along the weight."""
    raw = torch.randn(weight.shape, generator=draw, dtype=weight.dtype).to(weight.device)
    if kind == "none":
        return raw + weight
    vectors = weight.shape[0] if kind == "channel" else 1
    w, g = weight.view(vectors, -1), raw.view(vectors, -1)
    along = (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True)
    return (g - along * w).view(weight.shape)


@cache
def drift(name, flags, kinds, decay, shape, device="cpu"):
    """The root mean square error against float64, in half units of float32's last place at 1."""
    family = next(family for family in FAMILIES if family.name == name)
    draw = generator(0)
    weight = nn.Parameter(torch.randn(shape, generator=draw).to(device))
    exact = nn.Parameter(weight.detach().double())
    options = {**OPTIONS[name], "weight_decay": decay}
    ours = family.cls([weight], **options, **dict(flags))
    reference = family.cls([exact], **options, **PLAIN)
    for step in range(STEPS):
        grad = gradient(exact.detach(), kinds[step % len(kinds)], draw).float()
        weight.grad, exact.grad = grad, grad.double()
        ours.step()
        reference.step()
        # What is off in the moments is another matter: both go on with these.
        for key in family.moments:
            reference.state[exact][key].copy_(ours.state[weight][key])
    return (weight.detach().double() - exact.detach()).square().mean().sqrt().item() / 2**-24


# The second shape has more elements than are decided at once: its rows are guessed, and repaired.
CASES = [
    ((8, 16), ("channel", "layer", "none"), 1e-2),
    ((264, 128), ("layer",), 1e-9),
    ((264, 128), ("channel", "layer", "none"), 1e-9),
    ((264, 128), ("channel", "layer", "none"), 1e-2),
]


@pytest.mark.parametrize(("family", "path"), CHOSEN)
@pytest.mark.parametrize(("shape", "kinds", "decay"), CASES, ids=str)
def test_error_grows_no_faster_than_a_plain_loops(family, kinds, decay, path, shape):
    arguments = kinds, decay, shape, path.device
    plain = drift(family.name, tuple(PLAIN.items()), *arguments)
    ours = drift(family.name, tuple(path.flags.items()), *arguments)
    # Both are a random walk; a bias of a part of a unit in each step would be many times as far.
    assert ours < 2 * plain + 1
