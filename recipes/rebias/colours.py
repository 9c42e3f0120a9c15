"""Biased-MNIST: digits in white on a background whose colour gives the class away, or does not.

With probability ρ a digit gets the colour of its class, otherwise one of the nine others. A network
may learn colours in place of shapes then, and fails where ρ is 0.1 and a colour says nothing.

Source: Bahng et al., ICML 2020, section 4.2; the colours are those of
https://github.com/clovaai/rebias.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["COLOURS", "UNBIASED", "assign_colours", "paint"]

# Red, green and blue of each class's background.
COLOURS = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (225, 225, 0),
    (225, 0, 225),
    (0, 255, 255),
    (255, 128, 0),
    (255, 0, 128),
    (128, 0, 255),
    (128, 128, 128),
)
UNBIASED = 0.1  # ρ at which all ten colours are equally frequent in each class


def assign_colours(labels: np.ndarray, rho: float, seed: int) -> np.ndarray:
    """Choose a background for each digit.

    Frequencies are exact: of the n digits of a class, int(ρ·n) get its own colour; the rest is
    dealt to the other colours in equal parts, as published, whose sizes are rounded up.

    Args:
        labels: the digits' classes, (digits,).
        rho: the share with the colour of the class, in [0, 1].
        seed: of the choice.

    Returns:
        Numbers of `COLOURS`, (digits,).

    Raises:
        ValueError: `rho` is no share.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho={rho} must be in [0, 1]; 0.1 is unbiased.")
    draw = np.random.default_rng(seed)
    colours = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = draw.permutation(np.flatnonzero(labels == label))
        own = int(len(places) * rho)
        others = draw.permutation([c for c in range(len(COLOURS)) if c != label])
        part = max(1, -(-(len(places) - own) // len(others)))
        colours[places[:own]] = label
        colours[places[own:]] = others[np.arange(len(places) - own) // part]
    return colours


def paint(digits: np.ndarray, colours: np.ndarray, pooling: int = 1) -> Tensor:
    """Turn grey digits into white ones on coloured grounds.

    Args:
        digits: grey values from 0 to 255, (digits, 28, 28); all but 0 becomes white.
        colours: numbers of `COLOURS`, (digits,).
        pooling: blocks of so many pixels a side are averaged; 1 is the published size.

    Returns:
        Images from -1 to 1, float32, (digits, 3, side, side).
    """
    ground = torch.tensor(COLOURS, dtype=torch.float32)[torch.from_numpy(colours)]
    white = torch.from_numpy(np.asarray(digits) > 0)[:, None]
    images = torch.where(white, 255.0, ground[..., None, None])
    images = torch.nn.functional.avg_pool2d(images, pooling) if pooling > 1 else images
    return images / 127.5 - 1
