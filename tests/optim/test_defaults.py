"""torch's global defaults change no number: no tensor of ours takes its kind from them."""

import contextlib

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import families_and_paths
from tests.training import assert_identical, build, run_steps, snapshot
from tests.weights import make_grads, make_weights

EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
KWARGS = {"AdamP": {"weight_decay": 0.1}, "SGDP": {"momentum": 0.9, "weight_decay": 0.01}}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(family, path, default, **options):
    """Steps of all views, with a record, under a default; what they leave."""
    large = torch.linspace(-1, 1, 60_000, device=path.device).view(300, 200)
    weights = {**make_weights(device=path.device), "large": nn.Parameter(large)}
    grads = [
        make_grads(weights.values(), kind, step)
        for step, kind in enumerate(("channel", "layer", "mix"))
    ]
    with default():
        optimizer = build(family, weights, path, **{**KWARGS[family.name], **options})
        optimizer.record_steps = True
        run_steps(optimizer, grads)
        margins = [record.layer_margin for record in optimizer.last_step]
    return snapshot(optimizer), margins


DEFAULTS = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
}


@EVERY_PATH
@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_change_no_number(family, path, default):
    expected, margins = run(family, path, contextlib.nullcontext)
    actual, theirs = run(family, path, DEFAULTS[default])
    assert_identical(actual, expected)
    assert [m.dtype for m in theirs] == [m.dtype for m in margins]
    assert all(map(torch.equal, theirs, margins))


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("options", [{"rounding": "kahan"}, {"state_dtype": "bfloat16"}], ids=str)
def test_defaults_change_no_number_in_low_precision(default, options):
    family, path = families_and_paths()[0].values
    expected, _ = run(family, path, contextlib.nullcontext, **options)
    actual, _ = run(family, path, DEFAULTS[default], **options)
    assert_identical(actual, expected)
