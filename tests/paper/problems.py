"""Two problems whose weights are scale-invariant: two numbers, and a net on handwritten digits."""

import math
from collections.abc import Callable, Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from hf_adamp import SGDP, AdamP
from tests.paper.growth import Trace, train

__all__ = ["ARMS", "MOMENTUM", "PLANE", "digits", "plane"]

MOMENTUM = 0.9
_LR, _ADAM_LR = 0.1, 3e-3
_EPS = 1e-30

Arm = Callable[[list[Tensor]], Optimizer]

PLANE: dict[str, Arm] = {
    "GD": lambda weights: torch.optim.SGD(weights, lr=_LR),
    "GD + momentum": lambda weights: torch.optim.SGD(weights, lr=_LR, momentum=MOMENTUM),
    "momentum + projection (SGDP)": lambda weights: SGDP(weights, lr=_LR, momentum=MOMENTUM),
}

ARMS: dict[str, Arm] = {
    "SGD": PLANE["GD"],
    "SGD + momentum": PLANE["GD + momentum"],
    "SGDP": PLANE["momentum + projection (SGDP)"],
    "Adam": lambda weights: torch.optim.Adam(weights, lr=_ADAM_LR),
    "AdamP": lambda weights: AdamP(weights, lr=_ADAM_LR),
}


def plane(arm: Arm, steps: int, angle: float = 0.8 * math.pi) -> Trace:
    """Turn a vector of length 1 in the plane towards (1, 0): `f(w) = 1 − cos(w, (1, 0))`."""
    start = [[math.cos(angle), math.sin(angle)]]
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def loss() -> Tensor:
        return 1 - weight[0, 0] / weight.norm()

    return train([weight], arm([weight]), [loss] * steps, keep_first=True)


class Net(nn.Module):
    """Two convolutions and a classifier, each followed by a BatchNorm, without gains or biases.

    Its `eps` is lost when added to a variance: a larger one would leave the net only nearly
    scale-invariant, and torch refuses 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(1, 16, 3, bias=False)
        self.wide = nn.Conv2d(16, 32, 3, stride=2, bias=False)
        self.classify = nn.Linear(32 * 2 * 2, 10, bias=False)
        for name, channels in (("first", 16), ("second", 32), ("last", 10)):
            setattr(self, name, nn.BatchNorm2d(channels, eps=_EPS, affine=False))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, 10)."""
        hidden = functional.relu(self.first(self.narrow(images)))
        hidden = functional.relu(self.second(self.wide(hidden)))
        return self.last(self.classify(hidden.flatten(1))[..., None, None])[..., 0, 0]


def digits(arm: Arm, steps: int, seed: int) -> tuple[Trace, float]:
    """Train on scikit-learn's digits, batches of 64, in float64; also the accuracy on the test set.

    The last 360 of the 1,797 images are for the test.
    """
    data = load_digits()
    images = torch.tensor(data.images / 8 - 1)[:, None]
    labels = torch.tensor(data.target)
    torch.manual_seed(seed)
    model = Net().double()

    def losses() -> Iterator[Callable[[], Tensor]]:
        for _ in range(steps):
            batch = torch.randint(len(images) - 360, (64,))
            yield lambda batch=batch: functional.cross_entropy(model(images[batch]), labels[batch])

    weights = list(model.parameters())
    trace = train(weights, arm(weights), losses())
    model.eval()
    with torch.no_grad():
        right = model(images[-360:]).argmax(1) == labels[-360:]
    return trace, float(right.double().mean())
