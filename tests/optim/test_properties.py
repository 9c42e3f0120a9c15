"""Any shapes, strides, dtypes and options against the paper in float64, a step at a time."""

import math

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.references import CHANNEL, cosines
from tests.tables.optimizer_options import ADAMP, DTYPES, HALVES, SGDP_
from tests.tolerances import assert_close
from tests.training import set_grads
from tests.weights import KINDS, LAYOUTS, generator, lay_out, make_grad

BOUNDED = settings(
    max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
FLAGS = [{}, {"foreach": True}, {"foreach": False}, {"fused": False}]

sizes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
wide = st.tuples(st.integers(1, 3), st.sampled_from([31, 64, 257, 1025]))
weights = st.lists(
    st.tuples(
        st.one_of(sizes, sizes.filter(lambda s: len(s) > 1 and 0 not in s), wide),
        st.sampled_from(LAYOUTS),  # of the weight
        st.sampled_from(LAYOUTS),  # of its gradients
        st.sampled_from([*KINDS, "random", "none"]),
        st.sampled_from([1e-3, 1.0, 30.0]),  # the weight's scale
        st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=4,
)
unit = st.sampled_from([0.0, 0.1, 0.5, 1.0])
common = {
    "lr": st.sampled_from([0.0, 1e-4, 1e-2, 0.5]),
    "eps": st.sampled_from([1e-8, 1e-6, 1e-3]),
    "weight_decay": st.sampled_from([0.0, 1e-2, 0.7]),
    "delta": st.sampled_from([0.0, 0.1, 0.8, 3.0]),
    "wd_ratio": unit,
    "maximize": st.booleans(),
}
betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.9, 0.999]))
adamp_options = st.fixed_dictionaries({**common, "betas": betas, "nesterov": st.booleans()})
sgdp_options = st.fixed_dictionaries(
    {
        **common,
        "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "dampening": unit,
        "nesterov": st.booleans(),
    }
).map(lambda options: {**options, "nesterov": options["nesterov"] and options["momentum"] > 0})


def is_undecided(weight, grad, options):
    """Whether round-off may settle the test: a cosine all but equal to its limit."""
    if weight.ndim < 2 or not weight.numel():
        return False
    for rows in (len(weight), 1):
        w, g = weight.double().reshape(rows, -1), grad.double().reshape(rows, -1)
        limit = options["delta"] / math.sqrt(w.shape[1])
        # A cosine is a sum that cancels: its error is that of its terms.
        if (cosines(w, g, options["eps"]).max() - limit).abs() < 1e-5:
            return True
    return False


def check(family, drawn, options, flags, seed):
    draw = generator(seed)
    params, kinds, grad_layouts = [], [], []
    for shape, layout, grad_layout, kind, scale, dtype in drawn:
        weight = (scale * torch.randn(shape, generator=draw)).to(dtype)
        params.append(nn.Parameter(lay_out(weight, layout)))
        kinds.append(kind)
        grad_layouts.append(grad_layout)
    optimizer = family.cls(params, **options, **flags)
    references = [
        family.reference(
            [param],
            dtype=torch.float32 if param.dtype in HALVES else torch.float64,
            storage=param.dtype if param.dtype in HALVES else None,
            **options,
        )
        for param in params
    ]
    for step in range(3):
        grads = [
            None
            if kind == "none"
            else make_grad(param, KINDS[(step + i) % 3] if kind == "mix" else kind, draw)
            for i, (kind, param) in enumerate(zip(kinds, params, strict=True))
        ]
        pairs = zip(params, grads, strict=True)
        assume(not any(g is not None and is_undecided(p.detach(), g, options) for p, g in pairs))
        set_grads(params, grads)
        for param, layout in zip(params, grad_layouts, strict=True):
            if param.grad is not None:
                param.grad = lay_out(param.grad, layout)
        for reference, param, grad in zip(references, params, grads, strict=True):
            # From our weights anew, or one tipped rounding would be compared over and over.
            reference.weights = [param.detach().to(reference.dtype)]
            reference.step([grad])
        optimizer.step()
        for i, (reference, param) in enumerate(zip(references, params, strict=True)):
            what = f"weight {i} {tuple(param.shape)} after step {step + 1}, view {reference.views}"
            assert_scaled(param, reference, what)
            for key in family.moments:
                if key in reference.state[0]:
                    assert_close(optimizer.state[param][key], reference.state[0][key], what=key)


def assert_scaled(actual, reference, what):
    """Within the table, relative to the largest number of the sum where that is above 1.

    A step that is mostly radial cancels in the projection, and leaves its round-off behind.
    """
    (expected,), (reach,) = reference.weights, reference.reach
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    scale = max(1.0, largest, reach)
    actual, dtype = actual.detach().double(), actual.dtype
    assert_close(actual / scale, expected.double() / scale, dtype=dtype, what=what)


@BOUNDED
@given(weights, adamp_options, st.sampled_from(FLAGS), st.integers(0, 2**16))
def test_adamp_equals_the_paper_for_anything(drawn, options, flags, seed):
    check(ADAMP, drawn, options, flags, seed)


@BOUNDED
@given(weights, sgdp_options, st.sampled_from(FLAGS), st.integers(0, 2**16))
def test_sgdp_equals_the_paper_for_anything(drawn, options, flags, seed):
    check(SGDP_, drawn, options, flags, seed)


@BOUNDED
@given(
    st.tuples(st.integers(1, 6), st.integers(2, 40)),
    st.sampled_from([ADAMP, SGDP_]),
    st.sampled_from(FLAGS),
    st.integers(0, 2**16),
)
def test_projected_step_is_orthogonal_to_every_row(shape, family, flags, seed):
    """What the channel view promises, and so a row's length never shrinks without weight decay."""
    draw = generator(seed)
    weight = nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64))
    optimizer = family.cls([weight], lr=0.1, eps=0.0, **flags)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = make_grad(before, "channel", draw)
        optimizer.record_steps = True
        optimizer.step()
        (record,) = optimizer.last_step
        assert record.view.tolist() == [CHANNEL]
        moved = weight.detach() - before
        along = (moved * before).sum(1) / before.norm(dim=1)
        assert along.abs().max() < 1e-12
        assert (weight.detach().norm(dim=1) >= before.norm(dim=1) - 1e-12).all()


@BOUNDED
@given(
    st.tuples(st.integers(2, 6), st.integers(2, 40)),
    st.sampled_from([ADAMP, SGDP_]),
    st.sampled_from([0.1, 3.0, 100.0]),
    st.integers(0, 2**16),
)
def test_scaling_a_projected_weight_keeps_the_decision(shape, family, scale, seed):
    """Cosines know no lengths, so neither does the view."""
    weight = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    views = []
    for factor in (1.0, scale):
        param = nn.Parameter(factor * weight)
        param.grad = make_grad(weight, "random", generator(seed + 1))
        assume(not is_undecided(weight, param.grad, {"delta": 0.1, "eps": 1e-8}))
        optimizer = family.cls([param], lr=0.1)
        optimizer.record_steps = True
        optimizer.step()
        views.append(optimizer.last_step[0].view.tolist())
    assert views[0] == views[1]
