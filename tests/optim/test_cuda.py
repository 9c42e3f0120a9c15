"""What only a GPU shows: no step waits for it, a graph repeats a step, large weights are right."""

import copy

import pytest
import torch
from torch import nn

from hf_adamp import AdamP
from tests.optim.test_captured import FIRST, WRONG
from tests.tables.optimizer_options import ADAMP, families_and_paths
from tests.training import (
    assert_identical,
    assert_same,
    build,
    params_of,
    run_steps,
    set_grads,
    snapshot,
)
from tests.weights import generator, make_grads, make_weights

ON_CUDA = families_and_paths(lambda family, path: path.device == "cuda")
CAPTURED = families_and_paths(lambda family, path: path.device == "cuda" and family is ADAMP)


def restore(optimizer, taken):
    """Write a snapshot back into the same memory."""
    for param, weight, state in zip(params_of(optimizer), *taken, strict=True):
        param.data.copy_(weight)
        for key, value in state.items():
            optimizer.state[param][key].copy_(value)


@pytest.mark.parametrize(("family", "path"), ON_CUDA)
def test_cuda_steps_wait_for_nothing(family, path):
    weights = make_weights(device="cuda")
    optimizer = build(family, weights, path, weight_decay=0.1)
    run_steps(optimizer, [make_grads(weights.values(), "channel", 0)])
    set_grads(weights.values(), make_grads(weights.values(), "layer", 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("family", "path"), CAPTURED)
def test_cuda_graph_repeats_the_step(family, path):
    options = {"capturable": True, "weight_decay": 0.1}
    weights = make_weights(device="cuda", names=["linear", "conv2d", "bias", "one_row"])
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights.values()]
    # Each sees a gradient of every kind, in the captured step too.
    grads = [make_grads(twins, kind, n) for n, kind in enumerate(("mix", "layer", "channel") * 2)]
    ours = build(family, weights, path, **options)
    plain = build(family, twins, foreach=False, **options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run_steps(ours, grads[:2])
    torch.cuda.current_stream().wait_stream(side)
    set_grads(weights.values(), grads[2])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    # A step in between, and memory that others write: a graph must not read any of it.
    kept = [weight.grad for weight in weights.values()]
    before = copy.deepcopy(snapshot(ours))
    run_steps(ours, [grads[3]])
    scribbled = [torch.full((2000,), -1.0).pin_memory().cuda() for _ in range(50)]
    restore(ours, before)
    for weight, grad in zip(weights.values(), kept, strict=True):
        weight.grad = grad
    for own in grads[2:]:
        for weight, grad in zip(weights.values(), own, strict=True):
            weight.grad.copy_(grad)
        graph.replay()
    del scribbled
    run_steps(plain, grads)
    assert_same(family, snapshot(ours), snapshot(plain), names=list(weights))


@pytest.mark.parametrize(("family", "path"), ON_CUDA)
def test_cuda_large_weights_of_all_widths_equal_a_plain_loop(family, path):
    """More tasks than a GPU runs at once, rows wider than a tile, vectors of many tiles."""
    draw = generator(0)
    shapes = [(3000, 1100), (500, 11008), (4097, 3), (2049, 65), (64, 3, 7, 7), (100_003,)]
    weights = [nn.Parameter(torch.randn(shape, generator=draw).cuda()) for shape in shapes]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    ours = build(family, weights, path, weight_decay=0.1)
    plain = build(family, twins, foreach=False, weight_decay=0.1)
    for step, kind in enumerate(("channel", "layer", "radial")):
        grads = make_grads(twins, kind, step)
        run_steps(ours, [grads])
        run_steps(plain, [grads])
    assert_same(family, snapshot(ours), snapshot(plain), names=[str(shape) for shape in shapes])


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


# On a CPU capturable=True is refused at once.
ALSO_WRONG = pytest.param(AdamP, {"capturable": True}, 0, FIRST, id="capturable")


@needs_cuda
@pytest.mark.parametrize(("cls", "options", "warm", "reason"), [*WRONG, ALSO_WRONG])
def test_cuda_graph_that_would_repeat_the_wrong_step_is_refused(cls, options, warm, reason):
    weight = nn.Parameter(torch.ones(4, 3, device="cuda"))
    optimizer = cls([weight], **options)
    weight.grad = torch.ones_like(weight)
    for _ in range(warm):
        optimizer.step()
    torch.cuda.synchronize()
    before = copy.deepcopy(snapshot(optimizer))
    with (
        pytest.raises(RuntimeError, match=f"CUDA graph cannot capture .*{reason}"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)
