"""The CUDA kernels in Triton's interpreter, on the CPU. Run by test_triton_kernels.py, in a process
of its own: TRITON_INTERPRET=1 must be set before triton is imported, and stays.
"""

import pytest
import torch
import triton.language as tl
from torch import nn
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from hf_adamp import SGDP, AdamP
from hf_adamp.optim import backends, projection
from hf_adamp.optim.backends.cuda import TRITON, TritonSection
from hf_adamp.optim.layout import Extent, Layout
from hf_adamp.optim.storage import load_weight
from tests.optim import test_drift
from tests.tables.optimizer_options import ADAMP, FAMILIES, GOOD, SGDP_
from tests.tolerances import assert_close
from tests.training import assert_identical, assert_same, build, run_steps, snapshot
from tests.weights import generator, make_grads, make_weights

FUSED = {"fused": True}
KWARGS = {"AdamP": {"weight_decay": 0.3}, "SGDP": {"momentum": 0.9, "weight_decay": 0.01}}
# One of each kind: the interpreter takes milliseconds for a tile.
NAMES = ["linear", "conv2d", "rows_of_one", "zero_row", "bias", "scalar", "no_rows", "no_columns"]
OPTIONS = [
    *((ADAMP, name) for name in ("weight-decay", "no-memory", "delta-large", "delta-zero", "all")),
    *((SGDP_, name) for name in ("defaults", "momentum-decay", "all")),
]


@pytest.fixture(autouse=True)
def _chosen(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", (TRITON, *backends.BACKENDS))


@pytest.fixture(autouse=True)
def _rounding(monkeypatch):
    """The interpreter cuts bfloat16 off; the compiled kernels round it, as their PTX shows."""
    plain = InterpreterBuilder.cast_impl

    def cast(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(src.data.copy()).to(torch.bfloat16)
            return TensorHandle(rounded.view(torch.int16).numpy().view("uint16"), tl.bfloat16)
        return plain(self, src, dst_type)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)
    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(InterpreterBuilder, name, cast)


def sections(optimizer):
    """What the latest step was made by."""
    return [s.prepared for plan in optimizer._plans.values() for s in plan._sections]


def beside_foreach(family, weights, kinds, **kwargs):
    """Both paths over the same weights, a step for each kind of gradient."""
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights.values()]
    ours = build(family, weights, **kwargs, **FUSED)
    plain = build(family, twins, **kwargs, foreach=True)
    for step, kind in enumerate(kinds):
        grads = make_grads(twins, kind, step)
        run_steps(ours, [grads])
        run_steps(plain, [grads])
    assert all(isinstance(prepared, TritonSection) for prepared in sections(ours))
    return ours, plain


@pytest.mark.parametrize(("family", "name"), OPTIONS)
def test_interpreted_kernels_follow_the_paper_while_views_flip(family, name):
    weights = make_weights(names=NAMES)
    kwargs = {**family.base, **next(g for g in GOOD[family.name] if g.name == name).kwargs}
    reference = family.reference(weights.values(), dtype=torch.float64, **kwargs)
    optimizer = family.cls(list(weights.values()), **kwargs, **FUSED)
    for step in range(1 if name == "delta-large" else 3):
        grads = make_grads(reference.weights, "mix", step)
        reference.step(grads)
        run_steps(optimizer, [grads])
    expected = reference.weights, reference.state
    assert_same(family, snapshot(optimizer), expected, names=list(weights))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_interpreted_rows_of_all_widths(family, monkeypatch):
    monkeypatch.setattr("hf_adamp.optim.backends.cuda._TILE", 256)
    shapes = {
        "narrow": (37, 3), "one_tile": (9, 64), "walked": (3, 400), "unaligned": (2, 401),
        "one_long_row": (1, 1000), "vector": (900,), "odd": (271,),
    }  # fmt: skip
    draw = generator(3)
    weights = {n: nn.Parameter(torch.randn(s, generator=draw)) for n, s in shapes.items()}
    kinds = ("radial", "channel", "layer")
    ours, plain = beside_foreach(family, weights, kinds, **KWARGS[family.name])
    assert_same(family, snapshot(ours), snapshot(plain), names=list(weights))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_interpreted_kernels_write_early_and_add_what_is_missing(family):
    weight = {"weight": nn.Parameter(torch.randn(64, 24, generator=generator(0)))}
    expected = {"radial": [1, 1], "layer": [1, 1], "channel": [0, 0]}
    for kind, early in expected.items():
        ours, plain = beside_foreach(family, weight, [kind], **KWARGS[family.name])
        assert_same(family, snapshot(ours), snapshot(plain), names=["weight"])
        assert sections(ours)[0]._done.tolist() == early


@pytest.mark.parametrize(
    "options",
    [
        {"scale_invariant": "tensor"},
        {"scale_invariant": "row"},
        {"scale_invariant": ("head", 2)},
        {"scale_invariant": ("rows", (3, 5))},
        {"scale_invariant": False},
    ],
    ids=str,
)
def test_interpreted_kernels_take_declared_weights(options):
    weights = {"w": nn.Parameter(torch.randn(8, 12, generator=generator(1)))}
    kinds = ("radial", "layer", "channel")
    ours, plain = beside_foreach(ADAMP, weights, kinds, **options, weight_decay=0.1)
    assert_same(ADAMP, snapshot(ours), snapshot(plain), names=["w"])


def test_interpreted_declared_neighbours_leave_a_weight_its_bits():
    """What is added up over many rows depends on the order, and so on who adds it up."""
    draw = generator(4)
    values, grad = (torch.randn(3000, 4, generator=draw) for _ in range(2))
    # Orthogonal to the whole weight, whose sums then say what is taken away.
    grad -= (grad * values).sum() / values.square().sum() * values
    alone, beside = (nn.Parameter(values.clone()) for _ in range(2))
    heads = nn.Parameter(torch.randn(8, 12, generator=draw))
    groups = [{"params": [beside]}, {"params": [heads], "scale_invariant": ("head", 2)}]
    run_steps(AdamP([alone], lr=1.0, weight_decay=0.1, **FUSED), [[grad]])
    run_steps(AdamP(groups, lr=1.0, weight_decay=0.1, **FUSED), [[grad, torch.ones(8, 12)]])
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_interpreted_kahan_keeps_what_rounding_cuts_off(family, dtype):
    weights = make_weights(dtype, names=["linear", "conv2d", "bias"])
    ours, plain = beside_foreach(family, weights, ["mix"] * 3, rounding="kahan")
    for weight, twin in zip(*(o.param_groups[0]["params"] for o in (ours, plain)), strict=True):
        wide, wanted = (
            load_weight(param.detach(), optimizer.state[param]["compensation"])
            for param, optimizer in ((weight, ours), (twin, plain))
        )
        # The compensation itself is a number of 16 bits; what it is of may be off by round-off.
        torch.testing.assert_close(wide, wanted, rtol=2**-14, atol=1e-5)


@pytest.mark.parametrize("bits", ["weights", "moments"])
def test_interpreted_stochastic_rounding_is_right_on_average(bits):
    """A step too small for bfloat16 comes out as a mean over many elements, and is repeatable."""
    dtype = torch.bfloat16 if bits == "weights" else torch.float32
    start = torch.ones(8, 1000, dtype=dtype)
    low = {"rounding": "stochastic"} if bits == "weights" else {"state_dtype": "bfloat16"}

    def stepped():
        weight = nn.Parameter(start.clone())
        optimizer = SGDP([weight], lr=2**-11, momentum=0.5, delta=0.0, **low, **FUSED)
        grad = torch.full_like(start, 1.0 if bits == "weights" else 1.0 + 2**-9)
        run_steps(optimizer, [[grad]])
        return optimizer, weight.detach().float(), optimizer.state[weight]["momentum"].float()

    optimizer, weight, momentum = stepped()
    drawn, exact, unit = (
        (weight, 1 - 2**-11, 2**-8) if bits == "weights" else (momentum, 1 + 2**-9, 2**-7)
    )
    assert set(drawn.unique().tolist()) == {1.0, 1 - unit if bits == "weights" else 1 + unit}
    # 8,000 draws of one of two values that are a unit apart: four standard errors.
    assert abs(drawn.mean().item() - exact) < 4 * unit * 0.5 / 8000**0.5
    assert_identical(snapshot(optimizer), snapshot(stepped()[0]))


def test_interpreted_kernels_count_and_read_rates_on_the_device(monkeypatch):
    # It refuses capturable=True on a CPU, which here stands for the device.
    monkeypatch.setattr(AdamP, "_check_gradients", lambda self: None)
    weights = make_weights(names=["linear", "bias"])
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights.values()]
    rate = torch.tensor(0.01)
    ours = AdamP(list(weights.values()), lr=rate, capturable=True, weight_decay=0.1, **FUSED)
    plain = AdamP(twins, lr=0.01, weight_decay=0.1, foreach=True)
    for step in range(3):
        grads = make_grads(twins, "mix", step)
        run_steps(ours, [grads])
        run_steps(plain, [grads])
        rate.mul_(0.5)
        plain.param_groups[0]["lr"] *= 0.5
    assert_same(ADAMP, snapshot(ours), snapshot(plain), names=list(weights))


def test_interpreted_decision_is_that_of_projection():
    extents = [Extent(rows, 20, rows * 20) for rows in (1, 5, 1100)]
    draw = generator(0)
    stats = torch.randn(5, 1106, generator=draw)
    stats[1:3] = stats[1:3].square() * 400
    stats[0, :6] = 0
    layout = Layout.build(
        extents, [0.1] * 3, [1e-8] * 3, dtype=torch.float32, device=torch.device("cpu")
    )
    weights = [nn.Parameter(torch.ones(extent.rows, 20)) for extent in extents]
    optimizer = AdamP(weights, lr=0.1, weight_decay=0.1, **FUSED)
    run_steps(optimizer, [[torch.ones_like(weight) for weight in weights]])
    totals, decision = sections(optimizer)[0]._decide(stats)
    decay = torch.full((3,), 0.01)
    wanted = projection.decide(stats, projection.total(stats, layout), layout, decay, decay * 0.1)
    assert_close(totals, projection.total(stats, layout))
    assert decision.views.codes.tolist() == wanted.views.codes.tolist()
    assert len(set(wanted.views.codes.tolist())) > 1
    assert_close(decision.shift, wanted.shift)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_interpreted_bad_gradients_are_as_in_foreach(bad):
    weights = {"w": nn.Parameter(torch.randn(6, 8, generator=generator(2)))}
    twin = nn.Parameter(weights["w"].detach().clone())
    ours, plain = build(ADAMP, weights, **FUSED), build(ADAMP, [twin], foreach=True)
    grad = torch.randn(6, 8, generator=generator(3))
    grad[2, 3] = bad
    for optimizer in (ours, plain):
        run_steps(optimizer, [[grad]])
    assert_same(ADAMP, snapshot(ours), snapshot(plain), names=["w"])


def test_interpreted_records_are_those_of_foreach():
    weights = make_weights(names=["linear", "conv2d", "bias"])
    ours, plain = beside_foreach(ADAMP, weights, ["mix"], weight_decay=0.1)
    grads = make_grads([weight.detach() for weight in weights.values()], "mix", 1)
    for optimizer in (ours, plain):
        optimizer.record_steps = True
        run_steps(optimizer, [grads])
    for own, wanted in zip(ours.last_step, plain.last_step, strict=True):
        for name in ("view", "max_cosine", "layer_margin", "weight_norm", "update_norm"):
            assert_close(getattr(own, name).float(), getattr(wanted, name).float(), what=name)


@pytest.mark.parametrize("kinds", [("channel", "layer", "none"), ("layer",)], ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_interpreted_error_grows_no_faster_than_a_plain_loops(family, kinds, monkeypatch):
    # A few of the other paths' steps, since the interpreter takes a tenth of a second for each. A
    # bias of half a unit a step would be three times as far as their random walk by then.
    monkeypatch.setattr(test_drift, "STEPS", 40)
    arguments = kinds, 1e-2, (40, 16)
    plain = test_drift.drift.__wrapped__(family.name, (("foreach", False),), *arguments)
    ours = test_drift.drift.__wrapped__(family.name, tuple(FUSED.items()), *arguments)
    assert ours < 2 * plain + 1
