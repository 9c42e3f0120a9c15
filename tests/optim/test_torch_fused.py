"""The path without a compiler cuts and joins weights: no cut, joint or view changes a result."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_adamp.optim.backends import row_blocks
from tests.references import CHANNEL, LAYER, NONE
from tests.tables.optimizer_options import families_and_paths
from tests.tolerances import assert_close
from tests.training import assert_identical, assert_same, build, run_steps, snapshot
from tests.weights import VIEW_OF_KIND, generator, make_grads

# Three of one shape are joined, or three times two where a block holds no more.
SHAPES = {
    "joined": (3, 4),
    "row": (1, 30),
    "joined_2": (3, 4),
    "no_rows": (0, 4),
    "long_rows": (3, 150),
    "bias": (5,),
    "joined_3": (3, 4),
    "many_rows": (40, 6),
    "convolution": (6, 3, 2, 2),
    "rows_of_one": (50, 1),
    "joined_conv": (2, 3, 2, 1),
    "joined_conv_2": (2, 3, 2, 1),
    "scalar": (),
    "convolution_2": (6, 3, 2, 2),
}
KWARGS = {
    "AdamP": {"weight_decay": 0.1},
    "SGDP": {"momentum": 0.9, "weight_decay": 0.01},
}
CUTS = [
    pytest.param(SimpleNamespace(block=1 << 20, joined=1 << 14, dot=192), id="as-shipped"),
    pytest.param(SimpleNamespace(block=64, joined=30, dot=5), id="small-blocks"),
    pytest.param(SimpleNamespace(block=64, joined=0, dot=1), id="nothing-joined"),
    pytest.param(SimpleNamespace(block=1, joined=1 << 14, dot=1000), id="row-by-row"),
]
TORCH_FUSED = families_and_paths(lambda family, path: path.fused == "torch_fused")


@pytest.fixture(params=CUTS)
def cut(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "_BLOCK_ELEMENTS", request.param.block)
    monkeypatch.setattr(row_blocks, "_JOINED_ELEMENTS", request.param.joined)
    monkeypatch.setattr(row_blocks, "_DOT_COLUMNS", request.param.dot)


def make_weights(dtype=torch.float32):
    draw = generator(3)
    weights = [torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES.values()]
    for index, name in enumerate(SHAPES):
        if name.startswith("convolution"):
            weights[index] = weights[index].to(memory_format=torch.channels_last)
    return [nn.Parameter(weight) for weight in weights]


def laid_out_like(weights, grads):
    """This path serves gradients only that lie in memory as their weights do."""
    pairs = zip(weights, grads, strict=True)
    return [torch.empty_like(w).copy_(g) for w, g in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("kind", ["radial", "channel", "layer", "mix"])
@pytest.mark.parametrize(("family", "path"), TORCH_FUSED)
@pytest.mark.usefixtures("cut")
def test_cuts_and_joints_give_the_reference_result(family, path, kind, recording, dtype):
    weights = make_weights(dtype)
    reference = family.reference(weights, **{**family.base, **KWARGS[family.name]})
    optimizer = build(family, weights, path, **KWARGS[family.name])
    optimizer.record_steps = recording
    seen = set()
    for step in range(1, 7):
        grads = make_grads(reference.weights, kind, step)
        reference.step(grads)
        run_steps(optimizer, [laid_out_like(weights, grads)])
        seen |= set(reference.views)
    assert VIEW_OF_KIND.get(kind, LAYER) in seen
    assert seen >= ({NONE, CHANNEL, LAYER} if kind == "mix" else set())
    expected = (reference.weights, reference.state)
    assert_same(family, snapshot(optimizer), expected, names=list(SHAPES))


@pytest.mark.parametrize(("family", "path"), TORCH_FUSED)
@pytest.mark.usefixtures("cut")
def test_heads_are_projected_one_by_one_wherever_blocks_end(family, path):
    weights = [nn.Parameter(torch.randn(shape, generator=generator(5))) for shape in [(6, 4)] * 3]
    options = {**KWARGS[family.name], "scale_invariant": ("head", 3)}
    declared = [("head", 3)] * len(weights)
    reference = family.reference(
        weights, declared=declared, **{**family.base, **KWARGS[family.name]}
    )
    optimizer = build(family, weights, path, **options)
    for step in range(1, 7):
        grads = make_grads(reference.weights, "radial", step)
        reference.step(grads)
        run_steps(optimizer, [grads])
    expected = (reference.weights, reference.state)
    assert_same(family, snapshot(optimizer), expected, names=["a", "b", "c"])


@pytest.mark.parametrize(("family", "path"), TORCH_FUSED)
def test_weights_that_do_not_project_keep_their_bits_beside_those_that_do(family, path):
    """They are left to torch's own operator, joined with nothing."""
    weights, alone = make_weights(), make_weights()
    kwargs = {**family.base, **KWARGS[family.name]}
    optimizer = build(family, weights, path, **KWARGS[family.name])
    kinds = ["channel" if index % 2 else "radial" for index in range(len(weights))]
    radial = [index for index, kind in enumerate(kinds) if kind == "radial"]
    apart = build(family, [alone[i] for i in radial], path, **{**kwargs, "delta": 0.0})
    for step in range(1, 5):
        drawn = {kind: make_grads([w.detach() for w in weights], kind, step) for kind in set(kinds)}
        grads = [drawn[kind][index] for index, kind in enumerate(kinds)]
        grads = laid_out_like(weights, grads)
        run_steps(optimizer, [grads])
        run_steps(apart, [[grads[i] for i in radial]])
    both = snapshot(optimizer)
    assert_identical(([both[0][i] for i in radial], [both[1][i] for i in radial]), snapshot(apart))


@pytest.mark.parametrize("columns", [1, 7, 191, 192, 1000, 70_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_dots_are_those_of_float64(columns, dtype):
    draw = generator(columns)
    a, b = (torch.randn(5, columns, generator=draw).to(dtype) for _ in range(2))
    expected = (a.double() * b.double()).sum(1) / columns**0.5
    actual = row_blocks.row_dots(a, b, torch.empty(a.numel(), dtype=dtype)) / columns**0.5
    assert_close(actual, expected, dtype=dtype)


def test_a_row_that_is_not_finite_spoils_its_own_product_only():
    a, b = torch.ones(3, 300), torch.ones(3, 300)
    a[1, 7] = torch.inf
    b[1, 7] = 0.0
    dots = row_blocks.row_dots(a, b, torch.empty(900))
    assert dots.isfinite().tolist() == [True, False, True]
