"""The two-player game of ReBias: g learns to be like f, f to be unlike g, in turns.

    min_g  CE(g) − λ_g · HSIC(g, f)        then        min_f  CE(f) + λ_f · HSIC(f, g)

Each has an optimizer of its own, and in a player's turn the other does not move. g can express
nothing but the bias, so that f is left with the rest.

Source: Bahng et al., "Learning De-biased Representations with Biased Representations", ICML 2020,
section 3.3; https://github.com/clovaai/rebias
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .hsic import hsic

__all__ = ["Game", "Player", "extract"]


def extract(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (images, classes), and features after pooling (images, channels)."""
    output = model(pixel_values, output_hidden_states=True)
    return output.logits, output.hidden_states[-1].mean(dim=(-2, -1))


@dataclass
class Player:
    """A network, its optimizer, and what its features are measured with.

    Attributes:
        model: any classifier of Transformers that returns its last map as a hidden state.
        optimizer: holds this network's weights, and no others.
        weight: λ, what the dependence counts beside the cross-entropy.
        sigma: width of the kernel on the network's features.
    """

    model: nn.Module
    optimizer: Any
    weight: float = 1.0
    sigma: float = 1.0


class Game:
    """Takes both players' turns on a batch.

    f's weights are the same in both turns, so it looks at the images once for both; the published
    code does so twice, with the same numbers but for the running statistics of its BatchNorms.

    Args:
        f: the network that is to be free of the bias.
        g: the one that shall have it.
        backward: how a loss is differentiated, such as `accelerator.backward`.
    """

    def __init__(self, f: Player, g: Player, backward: Any = torch.Tensor.backward) -> None:
        self.f, self.g = f, g
        self._backward = backward

    def step(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Let g and then f learn from a batch; return their losses, not yet read from the device.

        Args:
            pixel_values: (images, channel, height, width), at least four images.
            labels: class numbers, (images,).
        """
        f_logits, f_features = extract(self.f.model, pixel_values)
        g_logits, g_features = extract(self.g.model, pixel_values)
        alike = hsic(g_features, f_features.detach(), self.g.sigma, self.f.sigma)
        g_loss = functional.cross_entropy(g_logits, labels)
        self._turn(self.g, g_loss - self.g.weight * alike)

        with torch.no_grad():
            _, g_features = extract(self.g.model, pixel_values)
        alike = hsic(f_features, g_features, self.f.sigma, self.g.sigma)
        f_loss = functional.cross_entropy(f_logits, labels)
        self._turn(self.f, f_loss + self.f.weight * alike)
        return {"f_loss": f_loss.detach(), "g_loss": g_loss.detach(), "hsic": alike.detach()}

    def _turn(self, player: Player, loss: Tensor) -> None:
        player.optimizer.zero_grad()
        self._backward(loss)
        player.optimizer.step()
