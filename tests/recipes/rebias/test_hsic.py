"""HSIC against its definition summed in float64, against independence, and against permutations."""

from itertools import permutations

import numpy as np
import pytest
import torch

from recipes.rebias.hsic import hsic, median_distance


def by_definition(x, y, sigma_x, sigma_y):
    """The unbiased estimate as sums over all tuples of different examples, in float64.

    Song et al., 2012: E[k(a,b) l(a,b)] + E[k(a,b) l(c,d)] − 2 E[k(a,b) l(a,c)], each mean taken
    over tuples of different examples.
    """

    def kernel(points, sigma):
        squares = ((points[:, None] - points[None]) ** 2).sum(-1)
        return np.exp(-squares / (2 * sigma**2))

    k, l = kernel(x, sigma_x), kernel(y, sigma_y)  # noqa: E741  the letters of the paper
    m = range(len(x))
    same = np.mean([k[a, b] * l[a, b] for a, b in permutations(m, 2)])
    apart = np.mean([k[a, b] * l[c, d] for a, b, c, d in permutations(m, 4)])
    mixed = np.mean([k[a, b] * l[a, c] for a, b, c in permutations(m, 3)])
    return same + apart - 2 * mixed


def draw(count, seed=0):
    """Features of which some are shared: x, y (count, 5) and (count, 3), float64."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 5))
    return x, x[:, :3] ** 2 + 0.3 * generator.normal(size=(count, 3))


@pytest.mark.parametrize("count", [4, 7, 12])
def test_hsic_equals_the_sum_over_tuples(count):
    x, y = draw(count)
    expected = by_definition(x, y, 1.5, 0.7)
    in_double = hsic(torch.from_numpy(x), torch.from_numpy(y), 1.5, 0.7)
    assert in_double.dtype == torch.float64
    assert in_double.item() == pytest.approx(expected, rel=1e-11, abs=1e-14)
    in_single = hsic(torch.from_numpy(x).float(), torch.from_numpy(y).float(), 1.5, 0.7)
    assert in_single.item() == pytest.approx(expected, abs=2e-6)


def test_hsic_is_computed_in_float32_under_autocast():
    x, y = (torch.from_numpy(side).float() + 30 for side in draw(12))
    expected = hsic(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hsic(x, y), expected)


def test_hsic_gradient_equals_finite_differences():
    x, y = (torch.from_numpy(side).requires_grad_() for side in draw(6))
    assert torch.autograd.gradcheck(lambda a, b: hsic(a, b, 1.5, 0.7), (x, y))


def test_hsic_has_mean_zero_where_independent():
    values = []
    for seed in range(200):
        x, _ = draw(16, seed)
        y, _ = draw(16, 1000 + seed)
        values.append(hsic(torch.from_numpy(x), torch.from_numpy(y), 2.0, 2.0).item())
    # Unbiased: a mean of 200 is within three of its standard errors, and half are below zero.
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_hsic_of_dependent_features_is_above_those_of_permuted_ones():
    x, y = (torch.from_numpy(side) for side in draw(64))
    found = hsic(x, y, 2.0, 2.0)
    permuted = [hsic(x, y[torch.randperm(64)], 2.0, 2.0) for _ in range(200)]
    assert found > max(permuted)


def test_hsic_of_independent_features_is_among_those_of_permuted_ones():
    ranks = []
    for seed in range(40):
        x, y = (torch.from_numpy(draw(32, s)[0]) for s in (seed, 500 + seed))
        found = hsic(x, y, 2.0, 2.0)
        permuted = [hsic(x, y[torch.randperm(32)], 2.0, 2.0) for _ in range(19)]
        ranks.append(sum(bool(found > other) for other in permuted))
    # All 20 ranks are equally probable: one of twenty is the highest, and their mean is 9.5.
    assert np.mean(np.array(ranks) == 19) <= 0.15
    assert abs(np.mean(ranks) - 9.5) < 3 * np.std(ranks) / np.sqrt(len(ranks))


@pytest.mark.parametrize("sizes", [(3, 3), (5, 6)])
def test_hsic_refuses_what_it_cannot_estimate(sizes):
    with pytest.raises(ValueError, match="at least 4 examples in pairs"):
        hsic(torch.zeros(sizes[0], 2), torch.zeros(sizes[1], 2))


def test_median_distance_equals_numpys():
    batches = [torch.from_numpy(draw(9, seed)[0]) for seed in range(3)]
    squares = [((b[:, None] - b[None]) ** 2).sum(-1).numpy().ravel() for b in batches]
    expected = np.sqrt(np.median(np.concatenate(squares)))
    assert median_distance(batches) == pytest.approx(expected, rel=1e-12)
