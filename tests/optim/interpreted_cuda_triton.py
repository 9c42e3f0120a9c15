"""The CUDA kernels in Triton's interpreter, on the CPU. Run by test_cuda_triton.py, in a process of
its own: TRITON_INTERPRET=1 must be set before triton is imported, and stays.
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import nn
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from hf_adamp.optim import adamp, backends, projection
from hf_adamp.optim.backends import cuda_decision, cuda_kernels, cuda_triton, foreach
from hf_adamp.optim.projection import Extent
from tests.declarations import DECLARED, groups_of
from tests.optim.test_native_decision import draw
from tests.tables.optimizer_options import ADAMP, FAMILIES, GOOD, SGDP_
from tests.tolerances import assert_close
from tests.training import assert_identical, assert_same, build, run_steps, snapshot
from tests.weights import SHAPES, generator, lay_out, make_grads, make_weights

FUSED = {"fused": True}
KWARGS = {"AdamP": {"weight_decay": 0.3}, "SGDP": {"momentum": 0.9, "weight_decay": 0.01}}
# One of each kind: the interpreter takes milliseconds for a tile.
NAMES = [
    "linear",
    "conv2d",
    "embedding",
    "one_row",
    "rows_of_one",
    "zero_row",
    "bias",
    "scalar",
    "no_rows",
    "no_columns",
]
OPTIONS = [
    *((ADAMP, name) for name in ("weight-decay", "no-memory", "delta-large", "delta-zero", "all")),
    *((SGDP_, name) for name in ("defaults", "dampening", "momentum-decay", "all")),
]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(cuda_triton, "_DEVICE", "cpu")
    monkeypatch.setattr(backends, "_FUSED", (cuda_triton,))


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


def good(family, name):
    return next(good for good in GOOD[family.name] if good.name == name).kwargs


def compare(family, weights, kinds, *, dtype=torch.float32, **kwargs):
    """Follows the reference for a step of each kind of gradient."""
    names = list(weights)
    optimizer = build(family, weights, **kwargs, **FUSED)
    half = dtype != torch.float32
    reference = family.reference(
        weights.values(), dtype=torch.float32 if half else torch.float64,
        storage=dtype if half else None, **{**family.base, **kwargs},
    )  # fmt: skip
    for step, kind in enumerate(kinds):
        if half:
            # From our weights anew: a unit in the last place, once tipped over, would stay.
            reference.weights = [w.detach().float() for w in weights.values()]
        grads = make_grads(reference.weights, kind, step)
        grads = [grad.to(dtype) for grad in grads]
        reference.step(grads)
        run_steps(optimizer, [grads])
        expected = [w.to(dtype) for w in reference.weights] if half else reference.weights
        assert_same(family, snapshot(optimizer), (expected, reference.state), names=names)
    return optimizer


def plan_of(optimizer, index=0):
    memos = [memo for kept in optimizer._memory.sections.values() for memo in kept.memos]
    return memos[index][cuda_triton.name]


@pytest.mark.parametrize(("family", "name"), OPTIONS)
def test_interpreted_kernels_follow_the_paper_while_views_flip(family, name):
    steps = 1 if name == "delta-large" else 3
    compare(family, make_weights(names=NAMES), ["mix"] * steps, **good(family, name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "name"), [(ADAMP, "all"), (SGDP_, "momentum-decay")])
def test_interpreted_kernels_round_half_precision_once_a_step(family, name, dtype):
    weights = make_weights(dtype, names=["linear", "conv2d", "zero_row", "bias", "embedding"])
    compare(family, weights, ["mix"] * 3, dtype=dtype, **good(family, name))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("kind", ["radial", "channel", "layer"])
def test_interpreted_rows_of_all_widths_and_split_rows(family, kind, monkeypatch):
    monkeypatch.setattr(cuda_triton, "_TILES", (256, 512))
    shapes = {
        "narrow": (37, 3), "one_tile": (9, 64), "larger_tile": (3, 400), "split": (3, 1200),
        "split_unaligned": (2, 1201), "one_long_row": (1, 4000), "vector": (900,), "odd": (271,),
    }  # fmt: skip
    draw = generator(3)
    weights = {n: nn.Parameter(torch.randn(s, generator=draw)) for n, s in shapes.items()}
    optimizer = compare(family, weights, [kind, kind], **KWARGS[family.name])
    plan = plan_of(optimizer)
    assert {launch.aligned: launch.tile for launch in plan.launches} == {True: 512, False: 256}
    # The rows of 1200 and 4000 elements are split by 512, those of 1201 by 256.
    assert plan.splits[:, 2].tolist() == [3, 3, 3, 5, 5, 8]


@pytest.mark.parametrize("layout", ["unaligned", "channels_last"])
def test_interpreted_kernels_take_every_dense_layout(layout):
    weights = make_weights(names=["conv2d", "linear", "norm"])
    laid_out = {n: nn.Parameter(lay_out(w.detach(), layout)) for n, w in weights.items()}
    kwargs = KWARGS["AdamP"]
    optimizer = build(ADAMP, laid_out, **kwargs, **FUSED)
    other = build(ADAMP, weights, **kwargs, foreach=True)
    for step in range(3):
        grads = make_grads(weights.values(), "mix", step)
        for param, grad in zip(laid_out.values(), grads, strict=True):
            param.grad = lay_out(grad, layout)
        optimizer.step()
        run_steps(other, [grads])
    assert_same(ADAMP, snapshot(optimizer), snapshot(other), names=list(weights))


def test_interpreted_kernels_write_a_steady_view_in_the_first_pass(monkeypatch):
    weights = make_weights(names=["linear", "embedding", "bias"])
    optimizer = build(ADAMP, weights, lr=1e-4, **FUSED)
    written = []
    plain = cuda_triton.apply
    monkeypatch.setattr(
        cuda_triton,
        "apply",
        lambda bucket, *rest: (
            written.append(bucket.memo[cuda_triton.name].written_as.clone()),
            plain(bucket, *rest),
        ),
    )
    kinds = ["channel", "channel", "radial", "radial", "layer", "layer"]
    run_steps(optimizer, [make_grads(weights.values(), k, i) for i, k in enumerate(kinds)])
    none, channel, untouched = 0, 1, 3
    # Before the first step nothing is known; a row that fails the test is no longer written as
    # projected; the layer view needs the whole weight, so its rows wait from then on.
    assert [set(codes.tolist()) for codes in written] == [
        {untouched}, {channel}, {none}, {none}, {none}, {untouched},
    ]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_interpreted_kernels_pass_on_what_is_not_a_number(family, value):
    runs = []
    for flags in (FUSED, {"foreach": True}):
        weights = make_weights(names=["linear", "embedding", "bias"])
        optimizer = build(family, weights, **KWARGS[family.name], **flags)
        steps = [make_grads(weights.values(), "channel", step) for step in range(3)]
        for grad in steps[1]:
            grad.view(-1)[1] = value
        run_steps(optimizer, steps)
        runs.append(snapshot(optimizer))
    assert_same(family, *runs, names=["linear", "embedding", "bias"])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("source", ["counts", "table"])
def test_interpreted_kernels_know_each_weight_s_own_step(source, nesterov):
    counts = [0.0, 3.0, 1e5]
    lr, options = 0.01, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    results = []
    for fused in (True, False):
        draw = generator(5)
        tensors = [[torch.randn(4, 8, generator=draw) for _ in counts] for _ in range(3)]
        tensors += [[torch.rand(4, 8, generator=draw) for _ in counts]]
        adamp(
            *tensors, [torch.tensor(count) for count in counts],
            fused=fused, foreach=not fused, capturable=source == "counts" and fused,
            lr=torch.tensor(lr) if source == "counts" and fused else lr,
            delta=0.1, wd_ratio=0.1, nesterov=nesterov, maximize=False, **options,
        )  # fmt: skip
        results.append(tensors[0])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_interpreted_runs_repeat_bit_for_bit():
    runs = []
    for _ in range(2):
        weights = make_weights(names=["linear", "conv3d", "bias"])
        optimizer = build(ADAMP, weights, **KWARGS["AdamP"], **FUSED)
        run_steps(optimizer, [make_grads(weights.values(), "mix", step) for step in range(3)])
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


@triton.jit
def _offset_of_a_tile(out, tasks, weights):
    _, _, _, offset, own_rows, _, _, exists = cuda_kernels._place_tile(
        tasks, 0, weights, 1, 1024, True
    )
    tl.store(out, offset)
    tl.store(out + 1, own_rows.to(tl.int64))
    tl.store(out + 2, tl.sum(tl.sum(exists.to(tl.int64), 1), 0))


def test_interpreted_offsets_beyond_2_31_elements():
    out = torch.zeros(3, dtype=torch.int64)
    columns, row, part = 2**31 + 4, 3, 2**21
    tasks = torch.tensor([0, row, part, -1], dtype=torch.int32)
    weights = torch.tensor([columns, 5, 0, 10, 1])
    _offset_of_a_tile[(1,)](out, tasks, weights)
    assert out.tolist() == [row * columns + part * 1024, 1, 4]


def test_interpreted_statistics_equal_those_of_the_foreach_path():
    results = []
    for backend in (cuda_triton, foreach):
        stats = {}

        def keep(bucket, own, plain=backend.accumulate, stats=stats, **kwargs):
            state = plain(bucket, own, **kwargs)
            stats["all"] = own.clone()
            return state

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "accumulate", keep)
            weights = make_weights(names=[n for n in SHAPES if not n.startswith("no_")])
            flags = FUSED if backend is cuda_triton else {"foreach": True}
            optimizer = build(ADAMP, weights, **flags)
            optimizer.record_steps = True
            run_steps(optimizer, [make_grads(weights.values(), "mix", 1)])
        results.append(stats["all"])
    assert_close(*results)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_interpreted_kernels_project_what_is_declared(family):
    names = [name for name in DECLARED if name != "conv1d"]
    weights = make_weights(names=names)
    kwargs = {**family.base, **KWARGS[family.name]}
    optimizer = build(family, groups_of(weights), **kwargs, **FUSED)
    declared = [DECLARED[name] for name in names]
    reference = family.reference(weights.values(), declared=declared, **kwargs)
    for step in range(4):
        grads = make_grads(reference.weights, "mix", step)
        reference.step(grads)
        run_steps(optimizer, [[grad.float() for grad in grads]])
        if step == 2:
            # So that the last step's views, by which a step begins to write, are wrong.
            optimizer.param_groups[1]["scale_invariant"] = False
            reference.declared[1:3] = [False] * 2
    assert_same(family, snapshot(optimizer), (reference.weights, reference.state), names=names)


@pytest.mark.parametrize("spoilt", [None, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("delta", [0.0, 0.1, math.inf])
def test_decision_is_that_of_the_pure_functions(delta, spoilt):
    sizes = [(3, 5), (1, 64), (2100, 2), (12, 9), (1, 1)]
    for seed, heads in enumerate([(0, 0, 0, 0, 0), (3, 1, 0, 4, 1)]):
        extents = [
            Extent.of(torch.Size(size), count) for size, count in zip(sizes, heads, strict=True)
        ]
        layout, stats, decays = draw(extents, [delta] * len(extents), seed, spoilt)
        totals = projection.total(stats, layout)
        ours = cuda_decision.total(stats, layout)
        torch.testing.assert_close(ours, totals, rtol=1e-5, atol=1e-6, equal_nan=True)
        decision = cuda_decision.decide(stats, totals, layout, *decays)
        wanted = projection.decide(stats, totals, layout, *decays)
        assert torch.equal(decision.views.codes, wanted.views.codes)
        torch.testing.assert_close(
            decision.shift, wanted.shift, rtol=1e-6, atol=1e-6, equal_nan=True
        )
