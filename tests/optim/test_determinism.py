"""The same run twice gives the same bits; the number of threads changes round-off at most."""

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import families_and_paths
from tests.training import assert_identical, assert_same, build, run_steps, snapshot
from tests.weights import make_grads, make_weights

# Large enough for every backend to share the work out, and for a row to be split.
SHAPES = [(100, 512), (2, 70_000), (9_000, 4), (50_000,)]
KINDS = ["channel", "layer", "radial"]
KWARGS = {"AdamP": {"weight_decay": 0.1}, "SGDP": {"momentum": 0.9}}
EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())


@pytest.fixture(scope="module")
def large():
    """Weights, and gradients that are made once: only the step may differ between runs."""
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in SHAPES]
    return weights, [make_grads(weights, kind, step) for step, kind in enumerate(KINDS)]


@pytest.fixture
def run_on_threads():
    before = torch.get_num_threads()

    def run(count, family, path, weights, grads):
        torch.set_num_threads(count)
        params = [nn.Parameter(weight.to(path.device, copy=True)) for weight in weights]
        optimizer = build(family, params, path, **KWARGS[family.name])
        run_steps(optimizer, grads)
        return snapshot(optimizer)

    yield run
    torch.set_num_threads(before)


@EVERY_PATH
def test_threads_change_round_off_at_most_and_repeat_bit_for_bit(
    family, path, large, run_on_threads
):
    one, two, again = (run_on_threads(count, family, path, *large) for count in (1, 2, 2))
    assert_same(family, two, one, names=[str(shape) for shape in SHAPES])
    assert_identical(again, two)


@EVERY_PATH
def test_run_repeats_bit_for_bit(family, path):
    def run():
        weights = make_weights(device=path.device)
        optimizer = build(family, weights, path, **KWARGS[family.name])
        for step in range(1, 11):
            run_steps(optimizer, [make_grads(weights.values(), "mix", step)])
        return snapshot(optimizer)

    assert_identical(run(), run())
