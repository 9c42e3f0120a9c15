"""Declared scale invariance: what is declared is projected, in every step and at its own size."""

import copy
import io
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from hf_adamp import AdamP
from tests.declarations import DECLARED, groups_of
from tests.references import HEAD
from tests.tables.optimizer_options import (
    ADAMP,
    FAMILIES,
    HALVES,
    families_and_paths,
    families_paths_and_dtypes,
)
from tests.tolerances import assert_close
from tests.training import assert_identical, assert_same, build, params_of, run_steps, snapshot
from tests.versions import traced
from tests.weights import (
    KINDS,
    LAYOUTS,
    SHAPES,
    generator,
    lay_out,
    make_grad,
    make_grads,
    make_weights,
)

KWARGS = {
    "AdamP": {"weight_decay": 0.1, "betas": (0.8, 0.95)},
    "SGDP": {"weight_decay": 0.05, "momentum": 0.8, "nesterov": True},
}
GRANULARITIES = ["row", "tensor", ("head", 3), ("head_dim", 2)]
VECTORS = {"row": 6, "tensor": 1, ("head", 3): 3, ("head_dim", 2): 3}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
EXACT = (torch.float32, torch.float64)


def linear(dtype=torch.float64):
    return make_weights(dtype, names=["linear"])["linear"]


def radial_shares(step, weight, vectors):
    """How far the step goes along each of the vectors that the weight consists of."""
    step, weight = step.double().reshape(vectors, -1), weight.double().reshape(vectors, -1)
    return (step * weight).sum(1) / weight.norm(dim=1) / step.norm(dim=1)


@pytest.mark.parametrize(("family", "path", "dtype"), families_paths_and_dtypes(EXACT))
@pytest.mark.parametrize("kind", ["mix", "radial"])
def test_declared_weights_follow_the_reference(family, path, dtype, kind):
    names = list(DECLARED)
    weights = make_weights(dtype, device=path.device, names=names)
    kwargs = {**family.base, **KWARGS[family.name]}
    optimizer = build(family, groups_of(weights), path, **kwargs)
    optimizer.record_steps = True
    declared = list(DECLARED.values())
    reference = family.reference(weights.values(), declared=declared, **kwargs)
    for step in range(20):
        grads = [g.to(dtype) for g in make_grads(reference.weights, kind, step)]
        reference.step(grads)
        run_steps(optimizer, [grads])
        views = {
            id(param): int(view)
            for record in optimizer.last_step
            for param, view in zip(record.params, record.view, strict=True)
        }
        for name, view in zip(names, reference.views, strict=True):
            assert views.get(id(weights[name]), 0) == view, f"step {step}: {name}"
    assert_same(family, snapshot(optimizer), (reference.weights, reference.state), names=names)


@pytest.mark.parametrize(("family", "path", "dtype"), families_paths_and_dtypes(HALVES))
def test_declared_weights_in_half_precision_are_float32_rounded_once_a_step(family, path, dtype):
    weights = make_weights(dtype, device=path.device, names=list(DECLARED))
    kwargs = {**family.base, **KWARGS[family.name]}
    optimizer = build(family, groups_of(weights), path, **kwargs)
    reference = family.reference(
        weights.values(),
        dtype=torch.float32,
        storage=dtype,
        declared=list(DECLARED.values()),
        **kwargs,
    )
    for step in range(5):
        # From our weights anew: a unit in the last place, once tipped over, would stay.
        reference.weights = [w.detach().cpu().float() for w in weights.values()]
        grads = make_grads(weights.values(), "mix", step)
        reference.step(grads)
        run_steps(optimizer, [grads])
        expected = ([w.to(dtype) for w in reference.weights], reference.state)
        assert_same(family, snapshot(optimizer), expected, names=list(weights))


@EVERY_GRANULARITY
@EVERY_FAMILY
def test_declared_step_is_orthogonal_to_every_vector(family, granularity):
    weight = linear()
    # An eps would leave its share of the radial part: |w|² / (|w| + eps)² is not 1.
    optimizer = build(family, [weight], scale_invariant=granularity, eps=0.0)
    draw = generator(1)
    for _ in range(10):
        old = weight.detach().clone()
        run_steps(optimizer, [[make_grad(weight, "radial", draw)]])
        shares = radial_shares(weight.detach() - old, old, VECTORS[granularity])
        assert shares.abs().max() < 1e-12
    # And to no others: a row that is not a vector of its own keeps what lies along it.
    others = [count for count in (6, 3, 1) if count > VECTORS[granularity]]
    for count in others:
        assert radial_shares(weight.detach() - old, old, count).abs().max() > 1e-3


@EVERY_GRANULARITY
@EVERY_PATH
def test_declared_weight_decay_never_flickers(family, path, granularity):
    """Whatever the gradient, each vector shrinks by the same share along itself."""
    dtype = torch.float32 if torch.float64 not in path.dtypes else torch.float64
    weight = nn.Parameter(linear(dtype).detach().to(path.device))
    options = {"scale_invariant": granularity, "weight_decay": 0.5, "wd_ratio": 0.3, "eps": 1e-12}
    optimizer = build(family, [weight], path, **options)
    share = 0.3 * 0.5 * family.base["lr"]
    draw = generator(2)
    for kind in [*KINDS, "random", *KINDS]:
        old = weight.detach().clone()
        kind = "channel" if kind == "mix" else kind
        run_steps(optimizer, [[make_grad(weight, kind, draw)]])
        shape = (VECTORS[granularity], -1)
        step, was = ((weight.detach() - old).reshape(shape), old.reshape(shape))
        shrunk = -(step.double() * was.double()).sum(1) / was.double().square().sum(1)
        torch.testing.assert_close(
            shrunk, torch.full_like(shrunk, share), rtol=1e-9 if dtype == torch.float64 else 1e-3,
            atol=0,
        )  # fmt: skip


@EVERY_PATH
def test_not_invariant_is_delta_zero_bit_for_bit(family, path):
    runs = []
    for options in ({"scale_invariant": False}, {"delta": 0.0}):
        weights = make_weights(device=path.device)
        optimizer = build(family, weights, path, weight_decay=0.1, **options)
        run_steps(optimizer, [make_grads(make_weights().values(), "channel", s) for s in range(5)])
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


@EVERY_PATH
def test_auto_is_the_default_bit_for_bit(family, path):
    runs = []
    for options in ({"scale_invariant": "auto"}, {}):
        weights = make_weights(device=path.device)
        optimizer = build(family, weights, path, weight_decay=0.1, **options)
        run_steps(optimizer, [make_grads(make_weights().values(), "mix", s) for s in range(5)])
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


@EVERY_PATH
def test_declared_neighbours_leave_auto_weights_their_bits(family, path):
    """Weights are decided together, yet one's heads must not change another's sums."""
    runs = []
    for declared in ({"linear": ("head", 3), "conv2d": "tensor"}, {}):
        weights = make_weights(device=path.device)
        groups = groups_of(weights, {name: declared.get(name, "auto") for name in SHAPES})
        optimizer = build(family, groups, path, weight_decay=0.1)
        run_steps(optimizer, [make_grads(make_weights().values(), "mix", s) for s in range(5)])
        runs.append(
            {n: w.detach().clone() for n, w in weights.items() if n not in ("linear", "conv2d")}
        )
    for name, weight in runs[0].items():
        assert torch.equal(weight, runs[1][name]), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
@EVERY_GRANULARITY
@EVERY_PATH
def test_declared_weight_with_a_gradient_not_finite_has_adamws_outcome(
    family, path, granularity, value
):
    runs = []
    for declared in (granularity, False):
        weight = nn.Parameter(linear(torch.float32).detach().to(path.device))
        optimizer = build(family, [weight], path, scale_invariant=granularity, weight_decay=0.1)
        draw = generator(3)
        run_steps(optimizer, [[make_grad(weight, "radial", draw)] for _ in range(2)])
        optimizer.param_groups[0]["scale_invariant"] = declared
        grad = make_grad(weight, "radial", draw)
        grad[1, 2] = value
        run_steps(optimizer, [[grad]])
        runs.append(snapshot(optimizer))
    (weights, _), (expected, _) = runs
    assert_close(weights[0], expected[0])
    assert (~weights[0].isfinite()).sum() == 1


@EVERY_PATH
def test_declared_delta_plays_no_part(family, path):
    runs = []
    for delta in (0.0, 0.1, 1e3):
        weights = make_weights(device=path.device, names=list(DECLARED))
        optimizer = build(family, groups_of(weights), path, delta=delta, weight_decay=0.1)
        grads = make_grads(make_weights(names=list(DECLARED)).values(), "mix", 1)
        run_steps(optimizer, [grads] * 3)
        runs.append(snapshot(optimizer))
    assert_identical(runs[0], runs[1])
    assert_identical(runs[0], runs[2])


units = st.integers(1, 4)
shapes = st.tuples(units, units, st.lists(st.integers(1, 5), min_size=1, max_size=3))
declarations = st.sampled_from(["head", "head_dim", "row", "tensor", False, "auto"])
drawn_weights = st.lists(
    st.tuples(
        shapes,
        declarations,
        st.sampled_from(LAYOUTS),
        st.sampled_from(LAYOUTS),
        st.sampled_from(["radial", "channel", "layer"]),
        st.sampled_from([torch.float32, torch.float64]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    drawn=drawn_weights,
    flags=st.sampled_from([{}, {"foreach": True}, {"foreach": False}, {"fused": False}]),
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 99),
)
def test_any_declaration_of_any_weights_follows_the_reference(drawn, flags, family, seed):
    draw = generator(seed)
    groups, declared = [], []
    for (heads, size, columns), unit, layout, _, _, dtype in drawn:
        weight = torch.randn(heads * size, *columns, generator=draw).to(dtype)
        declared.append({"head": ("head", heads), "head_dim": ("head_dim", size)}.get(unit, unit))
        param = nn.Parameter(lay_out(weight, layout))
        groups.append({"params": [param], "scale_invariant": declared[-1]})
    kwargs = {**family.base, "weight_decay": 0.1}
    optimizer = family.cls(groups, **kwargs, **flags)
    params = params_of(optimizer)
    reference = family.reference(params, declared=declared, **kwargs)
    for _ in range(3):
        # From our weights anew, so that the tolerance is that of a step.
        reference.weights = [param.detach().double() for param in params]
        grads = [
            lay_out(make_grad(p, kind, draw), layout)
            for p, (_, _, _, layout, kind, _) in zip(params, drawn, strict=True)
        ]
        reference.step(grads)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        for param, expected in zip(params, reference.weights, strict=True):
            assert_close(param, expected.reshape(param.shape))


def declared_optimizer(family=ADAMP, **options):
    weights = make_weights(names=list(DECLARED))
    return build(family, groups_of(weights), weight_decay=0.1, **options)


def grads_of(step, names=DECLARED):
    return make_grads(make_weights(names=list(names)).values(), "mix", step)


def declarations_of(optimizer):
    return [group["scale_invariant"] for group in optimizer.param_groups]


def assert_goes_on_alike(first, second):
    for step in range(3, 6):
        run_steps(first, [grads_of(step)])
        run_steps(second, [grads_of(step)])
    assert_identical(snapshot(second), snapshot(first))


@EVERY_FAMILY
def test_state_dict_saved_without_pickle_brings_declarations_back(family):
    first = declared_optimizer(family)
    run_steps(first, [grads_of(step) for step in range(3)])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    weights = {
        name: nn.Parameter(param.detach().clone())
        for name, param in zip(DECLARED, params_of(first), strict=True)
    }
    undeclared = [{"params": group["params"]} for group in groups_of(weights)]
    second = build(family, undeclared)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert declarations_of(second) == declarations_of(first)
    assert_goes_on_alike(first, second)


def test_declarations_survive_json():
    texts = [json.loads(json.dumps(value)) for value in GRANULARITIES]
    assert texts[2] == ["head", 3]
    for value, text in zip(GRANULARITIES, texts, strict=True):
        first, second = (build(ADAMP, [linear()], scale_invariant=v) for v in (value, text))
        run_steps(first, [[make_grad(linear(), "radial", generator(1))]])
        run_steps(second, [[make_grad(linear(), "radial", generator(1))]])
        assert_identical(snapshot(second), snapshot(first))


def test_copy_takes_declarations_along():
    first = declared_optimizer()
    run_steps(first, [grads_of(step) for step in range(3)])
    second = copy.deepcopy(first)
    assert declarations_of(second) == declarations_of(first)
    assert_goes_on_alike(first, second)


@EVERY_FAMILY
def test_checkpoint_from_before_the_option_keeps_what_is_declared_now(family):
    first = declared_optimizer(family)
    run_steps(first, [grads_of(step) for step in range(3)])
    saved = copy.deepcopy(first.state_dict())
    for group in saved["param_groups"]:
        del group["scale_invariant"]
    second = declared_optimizer(family)
    for param, value in zip(params_of(second), params_of(first), strict=True):
        param.data.copy_(value.data)
    second.load_state_dict(saved)
    assert declarations_of(second) == declarations_of(first)
    assert_goes_on_alike(first, second)


def test_pickle_from_before_the_option_is_auto():
    optimizer = build(ADAMP, [linear()])
    state = optimizer.__getstate__()
    state = copy.deepcopy({k: state[k] for k in ("defaults", "state", "param_groups")})
    del state["defaults"]["scale_invariant"], state["param_groups"][0]["scale_invariant"]
    old = AdamP.__new__(AdamP)
    old.__setstate__(state)
    assert declarations_of(old) == ["auto"]
    old.add_param_group({"params": [linear()]})
    assert declarations_of(old) == ["auto", "auto"]


def test_checkpoint_that_does_not_suit_the_weights_is_refused_untouched():
    first, second = (build(ADAMP, [linear()], scale_invariant=("head", h)) for h in (3, 2))
    run_steps(first, [[make_grad(linear(), "radial", generator(1))]])
    run_steps(second, [[make_grad(linear(), "radial", generator(1))]])
    saved = copy.deepcopy(first.state_dict())
    saved["param_groups"][0]["scale_invariant"] = ("head", 4)
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(ValueError, match=r"needs a multiple of 4 rows, but .* \(6, 5\) has 6"):
        second.load_state_dict(saved)
    assert declarations_of(second) == [("head", 2)]
    assert torch.equal(second.state_dict()["state"][0]["exp_avg"], before["state"][0]["exp_avg"])


@pytest.mark.parametrize("declared", [("head", 4), ("head_dim", 4)], ids=str)
@EVERY_FAMILY
def test_heads_that_do_not_divide_the_rows_are_refused(family, declared):
    message = r"scale_invariant=.*needs a multiple of 4 rows, but \S+ of shape \(6, 5\) has 6"
    with pytest.raises(ValueError, match=message):
        build(family, [linear()], scale_invariant=declared)
    optimizer = build(family, [linear()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [linear()], "scale_invariant": declared})
    assert len(optimizer.param_groups) == 1
    run_steps(optimizer, [[make_grad(linear(), "radial", generator(1))]])


def test_refusal_names_the_weight():
    with pytest.raises(ValueError, match=r"but q_proj\.weight of shape \(6, 5\) has 6; give"):
        AdamP([("q_proj.weight", linear())], lr=0.1, scale_invariant=("head", 4))


def test_vectors_in_a_declared_group_are_never_projected():
    runs = []
    for declared in (("head", 7), False):
        weights = make_weights(names=["bias", "norm", "scalar"])
        optimizer = build(ADAMP, weights, scale_invariant=declared, weight_decay=0.1)
        run_steps(optimizer, [grads_of(step, weights) for step in range(3)])
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


@pytest.mark.parametrize(
    ("value", "match"),
    [("rows", "must be"), (("head", 4), "multiple of 4 rows")],
)
def test_declaration_changed_to_a_bad_one_is_refused_before_the_step(value, match):
    optimizer = build(ADAMP, [linear()], scale_invariant="row")
    run_steps(optimizer, [[make_grad(linear(), "radial", generator(1))]])
    before = snapshot(optimizer)
    optimizer.param_groups[0]["scale_invariant"] = value
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


@EVERY_PATH
def test_declaration_may_change_between_steps(family, path):
    weight = nn.Parameter(linear(path.dtypes[0]).detach().to(path.device))
    optimizer = build(family, [weight], path, scale_invariant="row")
    declared = ["row", ("head", 3), "tensor", False, "auto", ("head_dim", 2), "row"]
    reference = family.reference([weight], **family.base)
    draw = generator(5)
    for value in declared:
        optimizer.param_groups[0]["scale_invariant"] = value
        reference.declared = [value]
        grad = make_grad(weight, "radial", draw)
        reference.step([grad])
        run_steps(optimizer, [[grad]])
        assert_close(weight, reference.weights[0])


@EVERY_PATH
def test_records_say_what_heads_do(family, path):
    weight = nn.Parameter(linear(torch.float32).detach().to(path.device))
    optimizer = build(family, [weight], path, scale_invariant=("head", 3), weight_decay=0.1)
    optimizer.record_steps = True
    old = weight.detach().clone()
    run_steps(optimizer, [[make_grad(weight, "radial", generator(1))]])
    (record,) = optimizer.last_step
    assert record.view.tolist() == [HEAD]
    assert_close(record.weight_norm[0], old.norm())
    torch.testing.assert_close(
        record.update_norm[0], (weight.detach() - old).norm(), rtol=1e-4, atol=0
    )
    w, g = old, weight.grad
    cosine = (w * g).sum().abs() / w.norm() / g.norm()
    torch.testing.assert_close(record.layer_margin[0], cosine * 30**0.5)
    rows = torch.nn.functional.cosine_similarity(w, g, dim=1).abs()
    torch.testing.assert_close(record.max_cosine[0], rows.max())


@pytest.mark.parametrize("declared", ["row", ("head", 2)], ids=str)
def test_declared_weights_flattened_by_a_framework_are_refused_even_at_delta_zero(declared):
    weight = linear()
    weight._fsdp_flattened = True
    with pytest.raises(RuntimeError, match="flattened FSDP1 shard"):
        AdamP([weight], lr=0.1, delta=0.0, scale_invariant=declared)
    AdamP([weight], lr=0.1, scale_invariant=False)


@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
@EVERY_GRANULARITY
@EVERY_FAMILY
def test_gradient_through_declared_steps_equals_finite_differences(family, granularity):
    def function(weight, grad):
        weight = weight.clone()
        optimizer = family.cls(
            [weight.detach().requires_grad_()],
            differentiable=True,
            scale_invariant=granularity,
            **family.base,
        )
        optimizer.param_groups[0]["params"] = [weight]
        weight.grad = grad
        optimizer.step()
        optimizer.step()
        return weight

    draw = generator(0)
    inputs = [torch.randn(6, 2, dtype=torch.float64, generator=draw) for _ in range(2)]
    assert gradcheck(function, [x.requires_grad_() for x in inputs], atol=1e-5)


@traced
@pytest.mark.slow
@EVERY_FAMILY
def test_compiled_declared_step_is_one_graph_and_equals_eager(family):
    optimizers = [declared_optimizer(family) for _ in range(2)]
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="inductor")
    def compiled_step():
        optimizers[1].step()

    for step in range(3):
        run_steps(optimizers[0], [grads_of(step)])
        for weight, grad in zip(params_of(optimizers[1]), grads_of(step), strict=True):
            weight.grad = grad.clone()
        compiled_step()
    assert_same(family, snapshot(optimizers[1]), snapshot(optimizers[0]), names=list(DECLARED))


UNEQUAL = ("rows", (1, 3, 2))
STACKS = [("experts", "out_in"), ("experts", "in_out")]


def as_rows(stack, granularity):
    """A stack of experts as one matrix, every output of every expert a row."""
    outputs_first = stack if granularity[1] == "out_in" else stack.transpose(1, 2)
    return outputs_first.reshape(-1, outputs_first.shape[2])


@EVERY_PATH
@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_unequal_rows_are_projected_one_by_one(family, path, kind):
    """As parts of the weight would be that are declared to be one vector each."""
    weight = make_weights(device=path.device)["linear"]
    parts = [nn.Parameter(part.detach().clone()) for part in weight.split(UNEQUAL[1])]
    whole = build(family, [weight], path, scale_invariant=UNEQUAL, **KWARGS[family.name])
    apart = build(family, parts, path, scale_invariant="tensor", **KWARGS[family.name])
    whole.record_steps = True
    for step in range(5):
        grad = make_grad(weight.detach(), kind, generator(step))
        run_steps(whole, [[grad]])
        run_steps(apart, [grad.split(UNEQUAL[1])])
        assert_close(weight, torch.cat([part.detach() for part in parts]))
        assert whole.last_step[0].view.tolist() == [HEAD]


MIXED = ("rows", (2, -3, 1))


@EVERY_PATH
@pytest.mark.parametrize("kind", KINDS)
def test_groups_that_are_not_invariant_are_left_to_weight_decay(family, path, kind):
    """As parts of the weight would be, some declared to be a vector and some not invariant."""
    weight = make_weights(device=path.device)["linear"]
    sizes = [abs(rows) for rows in MIXED[1]]
    parts = [nn.Parameter(part.detach().clone()) for part in weight.split(sizes)]
    options = {**family.base, **KWARGS[family.name], "weight_decay": 0.1, "wd_ratio": 0.25}
    groups = [
        {"params": [part], "scale_invariant": "tensor" if rows > 0 else False}
        for part, rows in zip(parts, MIXED[1], strict=True)
    ]
    whole = family.cls([weight], **options, **path.flags, scale_invariant=MIXED)
    apart = family.cls(groups, **options, **path.flags)
    whole.record_steps = True
    for step in range(5):
        grad = make_grad(weight.detach(), kind, generator(step))
        run_steps(whole, [[grad]])
        run_steps(apart, [grad.split(sizes)])
        assert_close(weight, torch.cat([part.detach() for part in parts]))
        assert whole.last_step[0].view.tolist() == [HEAD]


@EVERY_PATH
def test_groups_that_are_not_invariant_fail_together_with_the_others(family, path):
    """A gradient that is not finite has AdamW's outcome for all rows."""
    weight = make_weights(device=path.device)["linear"]
    twin = nn.Parameter(weight.detach().clone())
    declared = build(family, [weight], path, scale_invariant=MIXED, **KWARGS[family.name])
    other = build(family, [twin], path, scale_invariant=False, **KWARGS[family.name])
    grad = torch.randn_like(weight)
    grad[3] = torch.nan
    run_steps(declared, [[grad]])
    run_steps(other, [[grad]])
    torch.testing.assert_close(weight, twin, equal_nan=True)


@EVERY_PATH
@pytest.mark.parametrize("granularity", STACKS, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 300, 200)], ids=str)
def test_outputs_of_a_stack_of_experts_are_projected_one_by_one(family, path, granularity, shape):
    """As the same numbers would be in a matrix whose rows are declared."""
    draw = generator(0)
    stack = nn.Parameter(torch.randn(shape, generator=draw).to(path.device))
    matrix = nn.Parameter(as_rows(stack.detach(), granularity).clone())
    flags = path.flags
    if path.fused and granularity[1] == "in_out":
        optimizer = build(family, [stack], path, scale_invariant=granularity)
        stack.grad = torch.ones_like(stack)
        with pytest.raises(RuntimeError, match="the elements of a row side by side"):
            optimizer.step()
        return
    ours = family.cls([stack], **family.base, **KWARGS[family.name], **flags,
                      scale_invariant=granularity)  # fmt: skip
    rows = family.cls([matrix], **family.base, **KWARGS[family.name], **flags,
                      scale_invariant="row")  # fmt: skip
    for _ in range(4):
        grad = torch.randn(shape, generator=draw).to(path.device)
        run_steps(ours, [[grad]])
        run_steps(rows, [[as_rows(grad, granularity)]])
    assert_close(as_rows(stack.detach(), granularity), matrix)


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (("rows", (2, 3)), (6, 5), r"needs 5 rows, but .* of shape \(6, 5\) has 6"),
        (("experts", "out_in"), (6, 5), r"needs three dimensions, but .* has shape \(6, 5\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(value, shape, message):
    with pytest.raises(ValueError, match=message):
        AdamP([nn.Parameter(torch.ones(shape))], scale_invariant=value)
