"""Attacks: projected gradient descent for training, and a library's stronger ones for evaluation.

Images have values in [0, 1], and stay there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

__all__ = ["PARTS", "Logits", "ThreatModel", "frozen", "pgd", "survivors", "total_cross_entropy"]

NORMS = ("linf", "l2")
# AutoAttack's four parts, and APGD on the untargeted margin, which is cheaper than the targeted.
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
SLACK = 1e-5  # what float32 may add to a radius


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do: move an image by `radius` in a norm, within [0, 1].

    Args:
        norm: "linf" or "l2".
        radius: in units of the pixels, above 0.

    Raises:
        ValueError: `norm` is unknown, or `radius` is not above 0.
    """

    norm: str
    radius: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is unknown; known norms: {', '.join(NORMS)}.")
        if not self.radius > 0:
            raise ValueError(f"radius={self.radius} must be above 0, such as 8/255.")

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Return how far each image is from its other, (N,)."""
        difference = (others - images).flatten(1)
        return difference.abs().amax(1) if self.norm == "linf" else difference.norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return each image's direction of steepest ascent, of length 1 in the norm."""
        return gradient.sign() if self.norm == "linf" else gradient / _lengths(gradient)

    def project(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the nearest images that the attacker may show."""
        moved = others - images
        if self.norm == "linf":
            moved = moved.clamp(-self.radius, self.radius)
        else:
            moved = moved * (self.radius / _lengths(moved)).clamp(max=1)
        # A pixel that is clamped comes nearer to the image's, so the radius still holds.
        return (images + moved).clamp(0, 1)

    def random(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a random image that the attacker may show, uniform in the ball."""
        if self.norm == "linf":
            noise = _random(torch.rand, images.shape, images, generator)
            return self.project(images, images + self.radius * (2 * noise - 1))
        direction = self.steepest(_random(torch.randn, images.shape, images, generator))
        shape = (len(images), *[1] * (images.ndim - 1))
        share = _random(torch.rand, shape, images, generator) ** (1 / images[0].numel())
        return self.project(images, images + self.radius * share * direction)


def _lengths(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (images.ndim - 1))


def _random(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    images: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw where the generator lives, which may be another device."""
    device = images.device if generator is None else generator.device
    return draw(*shape, generator=generator, device=device, dtype=images.dtype).to(images.device)


def pgd(
    objective: Callable[[Tensor], Tensor],
    images: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
) -> Tensor:
    """Climb an objective by projected steps of steepest ascent.

    Args:
        objective: maps images (N, C, H, W) to a number that each image adds its own share to.
        images: where the attacker starts from, values in [0, 1].
        threat: what the attacker may do.
        steps: number of steps.
        step_size: length of a step in the threat's norm.
        start: the first images, such as `threat.random(images)`. Default: `images`.

    Returns:
        The last images, without a graph. No parameter gets a gradient.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
    2018, section 2.1.
    """
    shown = (images if start is None else start).detach()
    with torch.enable_grad():
        for _ in range(steps):
            shown = shown.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(shown), shown)
            climbed = shown.detach() + step_size * threat.steepest(gradient)
            shown = threat.project(images, climbed)
    return shown


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for an attack, and each module back afterwards.

    Batch statistics would make an image's loss depend on the other images, and running statistics
    would learn from attacked images twice.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Logits(nn.Module):
    """A classifier that answers as Transformers' do, as a function from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes), float32."""
        return self.model(pixel_values=images)["logits"].float()


def _library_attack(
    part: str, model: nn.Module, threat: ThreatModel, steps: int, queries: int, classes: int
) -> torchattacks.attack.Attack:
    shared = {"eps": threat.radius, "norm": {"linf": "Linf", "l2": "L2"}[threat.norm], "seed": 0}
    if part in {"apgd-ce", "apgd-dlr"}:
        return torchattacks.APGD(model, steps=steps, loss=part.removeprefix("apgd-"), **shared)
    if part == "apgd-t":
        return torchattacks.APGDT(model, steps=steps, n_classes=classes, **shared)
    if part == "fab-t":
        return torchattacks.FAB(
            model, steps=steps, multi_targeted=True, n_classes=classes, **shared
        )
    if part == "square":
        return torchattacks.Square(model, n_queries=queries, **shared)
    raise ValueError(f"strong_attacks has unknown part {part!r}; known parts: {', '.join(PARTS)}.")


def survivors(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    parts: Sequence[str],
    steps: int,
    queries: int,
    batch_size: int = 256,
    progress: bool = True,
) -> dict[str, float]:
    """Return the share of images still classified rightly after each attack on those left so far.

    Args:
        model: its output has `logits`; it is attacked in evaluation mode.
        images: values in [0, 1], (N, C, H, W).
        labels: class numbers, (N,).
        threat: what the attacker may do.
        parts: which of `PARTS`, in their order; the last share is that of the worst case.
        steps: of the gradient attacks.
        queries: of Square, which sees logits only, so that no masked gradient misleads it.
        batch_size: images at once.
        progress: whether to show a bar.

    Raises:
        ValueError: a part is unknown.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", ICML 2020; the attacks are those of torchattacks.
    """
    device = next(model.parameters()).device
    # The attacks set the global seeds.
    with torch.random.fork_rng(), frozen(model):
        function = Logits(model)
        with torch.no_grad():
            classes = function(images[:1].to(device)).shape[1]
        attacks = [
            (part, _library_attack(part, function, threat, steps, queries, classes))
            for part in parts
        ]
        left = []
        for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            shown, wanted = batch.to(device), targets.to(device)
            with torch.no_grad():
                left.append(function(shown).argmax(1) == wanted)
        shares = {"clean": torch.cat(left).float().mean().item()}
        for part, attack in attacks:
            bar = tqdm(range(len(left)), desc=part, disable=not progress, leave=False)
            for number in bar:
                chunk = slice(number * batch_size, (number + 1) * batch_size)
                kept = left[number].nonzero().flatten()
                if len(kept) > 0:
                    shown, wanted = (own[chunk].to(device)[kept] for own in (images, labels))
                    left[number][kept] = _withstands(function, attack, shown, wanted, threat)
            shares[part] = torch.cat(left).float().mean().item()
    return shares


def _withstands(
    function: nn.Module,
    attack: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
) -> Tensor:
    """Which images are still classified rightly after an attack, or were not attacked in bounds."""
    attacked = attack(images, labels).clamp(0, 1)
    # FAB looks for the nearest wrong image, which may be too far.
    beyond = threat.distance(images, attacked) > threat.radius + SLACK
    with torch.no_grad():
        return (function(attacked).argmax(1) == labels) | beyond


def total_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what an attacker of a classifier climbs: the cross-entropy, summed over images."""
    return functional.cross_entropy(logits, labels, reduction="sum")
