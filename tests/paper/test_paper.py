"""The lemmas of Heo et al., section 2, hold to round-off; and the page's script runs."""

import math

import pytest
import torch

from hf_adamp import SGDP, AdamP
from tests.paper.__main__ import main
from tests.paper.growth import growth_ratio, predicted_squares
from tests.paper.problems import MOMENTUM, digits, plane

ROUND_OFF = 1e-12  # some hundred steps, each adding a few times 2e-16


def sgd(momentum):
    return lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=momentum)


def sgdp(momentum, **options):
    # eps joins the norm that projection divides by; 0 leaves the paper's Π.
    return lambda weights: SGDP(weights, lr=0.1, momentum=momentum, **{"eps": 0.0, **options})


def adamp(weights):
    return AdamP(weights, lr=3e-3, eps=1e-30)


def distance(trace, beta):
    return float((predicted_squares(trace, beta) / trace.squares - 1).abs().max())


@pytest.mark.parametrize("on_digits", [False, True], ids=["plane", "digits"])
@pytest.mark.parametrize(
    ("arm", "beta"),
    [(sgd(0.0), 0.0), (sgd(0.9), 0.9), (sgd(0.5), 0.5), (sgdp(0.9), 0.0), (adamp, 0.0)],
    ids=["lemma-2.1", "lemma-2.2", "lemma-2.2-half", "sgdp", "adamp"],
)
def test_norms_grow_as_the_lemmas_say(arm, beta, on_digits):
    trace = digits(arm, 40, seed=0)[0] if on_digits else plane(arm, 100)
    assert float(trace.squares[-1].sum()) > 1.001 * float(trace.squares[0].sum())
    assert distance(trace, beta) < ROUND_OFF


def test_the_lemma_of_another_momentum_does_not_fit():
    trace = plane(sgd(0.9), 100)
    assert distance(trace, 0.0) > 0.5
    assert distance(trace, 0.89) > 0.05


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.95])
def test_growth_ratio_at_convergence_is_the_corollarys(beta):
    trace = plane(sgd(beta), 800)
    assert float(trace.losses[-1]) < 1e-12
    assert growth_ratio(trace) == pytest.approx(1 + 2 * beta / (1 - beta), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.95])
def test_projection_restores_the_growth_ratio_of_plain_descent(beta):
    assert growth_ratio(plane(sgdp(beta), 400)) == pytest.approx(1.0, rel=1e-9)


def test_default_eps_is_all_that_parts_sgdp_from_the_lemma():
    assert distance(plane(sgdp(0.9, eps=1e-8), 100), 0.0) < 1e-6


def test_projection_leaves_the_effective_direction():
    torch.manual_seed(0)
    start, push = torch.randn(1, 30, dtype=torch.float64), torch.randn(1, 30, dtype=torch.float64)
    gradient = torch.randn(1, 30, dtype=torch.float64)
    gradient -= start * (gradient * start).sum() / start.square().sum()
    ends = []
    for optimizer, name in ((sgd(MOMENTUM), "momentum_buffer"), (sgdp(MOMENTUM), "momentum")):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        stepper = optimizer([weight])
        stepper.state[weight][name] = push.clone()
        stepper.step()
        ends.append(weight.detach())
    plain, projected = (tangent(start, end) for end in ends)
    assert not torch.allclose(ends[0], ends[1])
    assert float((plain * projected).sum()) == pytest.approx(1.0, abs=1e-14)


def tangent(start, end):
    """Where `end` lies as seen from `start`, on the sphere: a unit vector."""
    along = end - start * (end * start).sum() / start.square().sum()
    return along / along.norm()


def test_page_is_made_in_few_steps(tmp_path, capsys):
    sections = main(["--steps", "8", "--seeds", "2", "--pictures", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert all("nan" not in text for text in sections.values())
    assert "SGDP" in capsys.readouterr().out
    assert math.isclose(float(sections["paper-ratio"].splitlines()[2].split("|")[2]), 1.0)
