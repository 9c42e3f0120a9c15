"""AdamP and SGDP written out from the paper, one weight after the other, to test against.

Slow and plain on purpose; nothing is shared with the package. In float64 they are the truth that
every backend must meet to round-off; in float32 `ReferenceSGDP` stands in for adamp 0.3.0, whose
SGDP without Nesterov momentum projects its momentum buffer in place, unlike the paper.

Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, Algorithms 1 and 2.
"""

import math
from typing import ClassVar

import torch

NONE, CHANNEL, LAYER, HEAD = 0, 1, 2, 3  # the views, numbered as in `hf_adamp.StepRecord.view`


def cosines(weight, grad, eps=1e-8):
    """(rows,) `|cos(w_r, g_r)|`, each norm at least eps."""
    norms = [x.pow(2).sum(1).sqrt().clamp(min=eps) for x in (weight, grad)]
    return (weight * grad).sum(1).abs() / (norms[0] * norms[1])


def views_of(weight, grad, *, delta=0.1, eps=1e-8):
    """How the paper's test sees this weight (Algorithm 2, lines 8 to 12)."""
    if weight.ndim < 2 or weight.numel() == 0:
        return NONE
    for view, rows in ((CHANNEL, weight.shape[0]), (LAYER, 1)):
        w, g = weight.reshape(rows, -1), grad.reshape(rows, -1)
        if cosines(w, g, eps).max() < delta / math.sqrt(w.shape[1]):
            return view
    return NONE


def declared_view(weight, grad, declared):
    """How a weight is seen that is declared scale-invariant: the view, and the number of heads."""
    if weight.ndim < 2 or weight.numel() == 0 or not declared or not grad.isfinite().all():
        return NONE, 1
    if isinstance(declared, str):
        return {"row": CHANNEL, "tensor": LAYER}[declared], 1
    heads = {"head": declared[1], "head_dim": weight.shape[0] // declared[1]}[declared[0]]
    return (HEAD if heads > 1 else LAYER), heads


def without_radial_part(update, weight, view, eps, heads=1):
    """`Π_w(u) = u − (ŵ·u) ŵ`, for every row, every head or the whole."""
    if view == NONE:
        return update
    rows = weight.shape[0] if view == CHANNEL else heads
    w, u = weight.reshape(rows, -1), update.reshape(rows, -1)
    unit = w / (w.pow(2).sum(1, keepdim=True).sqrt() + eps)
    return (u - unit * (unit * u).sum(1, keepdim=True)).reshape(update.shape)


class Reference:
    """What both algorithms share: weights, their state, the projected step.

    Attributes:
        weights: the weights, in `dtype`.
        state: one dictionary a weight; empty until its first gradient.
        views: the views of the latest step, None for a weight without a gradient.
        reach: the largest element of each weight's latest step before projection.
        storage: a dtype that weights are rounded to after each step, or None.
        declared: `scale_invariant` for each weight.
    """

    def __init__(self, weights, *, dtype=torch.float64, storage=None, declared=None, **options):
        self.dtype, self.storage = dtype, storage
        self.options = {**self.defaults, **options}
        self.declared = declared or ["auto"] * len(list(weights))
        self.weights = [w.detach().cpu().to(dtype).clone() for w in weights]
        self.state = [{} for _ in weights]
        self.views = [None] * len(self.weights)
        self.reach = [0.0] * len(self.weights)

    def step(self, grads):
        """One step; `grads` holds a tensor or None for each weight."""
        for index, grad in enumerate(grads):
            self.views[index] = None
            if grad is not None:
                grad = grad.detach().cpu().to(self.dtype)
                self._step_weight(index, -grad if self.options["maximize"] else grad)

    def _step_weight(self, index, grad):
        o, weight = self.options, self.weights[index]
        update = self.direction(grad, self.state[index])
        self.reach[index] = o["lr"] * float(update.abs().max()) if update.numel() else 0.0
        view, heads = views_of(weight, grad, delta=o["delta"], eps=o["eps"]), 1
        if self.declared[index] != "auto":
            view, heads = declared_view(weight, grad, self.declared[index])
        update = without_radial_part(update, weight, view, o["eps"], heads)
        decay = self.decay() * (1 if view == NONE else o["wd_ratio"])
        stepped = weight * (1 - decay) - o["lr"] * update
        if self.storage:
            stepped = stepped.to(self.storage).to(self.dtype)
        self.weights[index] = stepped
        self.views[index] = view


class ReferenceAdamP(Reference):
    """Algorithm 2."""

    defaults: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "delta": 0.1,
        "wd_ratio": 0.1,
        "nesterov": False,
        "maximize": False,
    }

    def direction(self, grad, state):
        (beta1, beta2), eps = self.options["betas"], self.options["eps"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(grad))
        state["step"] += 1
        state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * grad
        state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad * grad
        ahead = state["exp_avg"]
        if self.options["nesterov"]:
            ahead = beta1 * ahead + (1 - beta1) * grad
        corrected = ahead / (1 - beta1 ** state["step"])
        root = state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2 ** state["step"])
        return corrected / (root + eps)

    def decay(self):
        return self.options["lr"] * self.options["weight_decay"]


class ReferenceSGDP(Reference):
    """Algorithm 1, with dampening and Nesterov momentum as in torch.optim.SGD.

    Weight decay is scaled by `1 / (1 − momentum)` and the buffer starts at zero, as in adamp 0.3.0.
    """

    defaults: ClassVar = {
        "lr": 0.1,
        "momentum": 0,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "eps": 1e-8,
        "delta": 0.1,
        "wd_ratio": 0.1,
        "maximize": False,
    }

    def direction(self, grad, state):
        momentum, dampening = self.options["momentum"], self.options["dampening"]
        buffer = state.get("momentum", torch.zeros_like(grad))
        buffer = momentum * buffer + (1 - dampening) * grad
        if momentum:
            state["momentum"] = buffer
        return grad + momentum * buffer if self.options["nesterov"] else buffer

    def decay(self):
        o = self.options
        return o["lr"] * o["weight_decay"] / (1 - o["momentum"])
