"""Strides and places in storage change no result: weights, gradients and state in any of them."""

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import FAMILIES, families_and_paths
from tests.training import assert_same, build, run_steps, snapshot
from tests.weights import DENSE_LAYOUTS, LAYOUTS, lay_out, make_grads, make_weights

NAMES = ["linear", "conv1d", "conv2d", "conv3d", "bias", "scalar", "zero_row"]
KWARGS = {
    "AdamP": {"weight_decay": 0.1},
    "SGDP": {"momentum": 0.9, "weight_decay": 0.01},
}


def run(family, path, weight_layout, grad_layout, *, steps=4, spoil_state=None):
    """Steps of mixed views, with gradients made for contiguous copies of the weights."""
    weights = {
        name: nn.Parameter(lay_out(weight.detach(), weight_layout))
        for name, weight in make_weights(names=NAMES, device=path.device).items()
    }
    strides = [weight.stride() for weight in weights.values()]
    optimizer = build(family, weights, path, **KWARGS[family.name])
    for step in range(1, steps + 1):
        grads = make_grads([w.detach().contiguous() for w in weights.values()], "mix", step)
        for weight, grad in zip(weights.values(), grads, strict=True):
            weight.grad = lay_out(grad, grad_layout)
        optimizer.step()
        if spoil_state and step == 1:
            spoil_state(optimizer)
    assert [weight.stride() for weight in weights.values()] == strides
    return snapshot(optimizer)


LAYOUT_PAIRS = [(w, g) for w in LAYOUTS for g in LAYOUTS if w != "contiguous" or g != w]


@pytest.mark.parametrize(("weight_layout", "grad_layout"), LAYOUT_PAIRS)
@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: not p.dense_only))
def test_any_strides_give_the_result_of_contiguous_ones(family, path, weight_layout, grad_layout):
    expected = run(family, path, "contiguous", "contiguous")
    actual = run(family, path, weight_layout, grad_layout)
    assert_same(family, actual, expected, names=NAMES)


@pytest.mark.parametrize("layout", DENSE_LAYOUTS[1:])
@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: p.dense_only))
def test_fused_serves_channels_last_and_unaligned_weights(family, path, layout):
    expected = run(family, path, "contiguous", "contiguous")
    assert_same(family, run(family, path, layout, layout), expected, names=NAMES)


def into_one_storage(optimizer):
    """Move all moments into one flat tensor, one beside the other at odd offsets."""
    moments = [(state, key) for state in optimizer.state.values() for key in state if key != "step"]
    total = sum(state[key].numel() for state, key in moments)
    flat = torch.empty(total + 1, device=moments[0][0][moments[0][1]].device)[1:]
    begin = 0
    for state, key in moments:
        piece = flat[begin : begin + state[key].numel()].view(state[key].shape)
        state[key] = piece.copy_(state[key])
        begin += piece.numel()


@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_moments_may_be_slices_of_one_storage(family, path):
    expected = run(family, path, "contiguous", "contiguous")
    actual = run(family, path, "contiguous", "contiguous", spoil_state=into_one_storage)
    assert_same(family, actual, expected, names=NAMES)


def into_other_strides(optimizer):
    for state in optimizer.state.values():
        for key in state.keys() - {"step"}:
            state[key] = lay_out(state[key], "transposed")


@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: not p.dense_only))
def test_moments_may_have_other_strides_than_the_weight(family, path):
    expected = run(family, path, "contiguous", "contiguous")
    actual = run(family, path, "contiguous", "contiguous", spoil_state=into_other_strides)
    assert_same(family, actual, expected, names=NAMES)


@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: not p.dense_only))
def test_expanded_gradients_serve(family, path):
    """The gradient of a sum is one number, expanded."""
    results = []
    for contiguous in (False, True):
        weight = make_weights(names=["linear"], device=path.device)["linear"]
        weight.sum().backward()
        if contiguous:
            weight.grad = weight.grad.contiguous()
        optimizer = build(family, [weight], path)
        optimizer.step()
        results.append(snapshot(optimizer))
    assert_same(family, *results, names=["linear"])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_moments_lie_in_memory_as_the_weight_does(family):
    weight = nn.Parameter(lay_out(torch.randn(4, 3, 2, 2), "channels_last"))
    optimizer = build(family, [weight], **KWARGS[family.name])
    run_steps(optimizer, [make_grads([weight], "channel", 1)])
    for key in family.moments:
        assert optimizer.state[weight][key].stride() == weight.stride()


# More elements than any backend takes in one block or decides at once.
LARGE = {"tall": (70_000, 3), "wide": (3, 150_000), "square": (600, 700), "flat": (1_200_000,)}


@pytest.mark.parametrize("kind", ["channel", "layer", "radial"])
@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_weights_larger_than_a_block_equal_the_reference(family, path, kind):
    torch.manual_seed(3)
    weights = {n: nn.Parameter(torch.randn(s, device=path.device)) for n, s in LARGE.items()}
    kwargs = {**family.base, **KWARGS[family.name]}
    reference = family.reference(weights.values(), **kwargs)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    for step in (1, 2):
        grads = make_grads(reference.weights, kind, step)
        grads = [grad.float() for grad in grads]
        reference.step(grads)
        run_steps(optimizer, [grads])
    expected = (reference.weights, reference.state)
    assert_same(family, snapshot(optimizer), expected, names=list(LARGE))
