"""No step of the multi-tensor path waits for the device, and a step compiles into one graph.

Fake tensors have no values: reading one raises. So what runs on them decides without a host sync,
and a GPU is not needed to prove it.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hf_adamp.optim import adamp, sgdp
from hf_adamp.optim.optimizer import ProjectedOptimizer
from tests.tables.optimizer_options import ADAMP, FAMILIES, SGDP_
from tests.training import assert_same, build, run_steps, snapshot
from tests.versions import traced
from tests.weights import make_grads, make_weights

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
SHAPES = [(6, 5), (4, 3, 2, 2), (7,), (), (0, 3), (1, 9)]
OPTIONS = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}
ADAM = {"beta1": 0.9, "beta2": 0.99}


def fake_weights():
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
    return weights


@pytest.mark.parametrize("kwargs", [{}, {"nesterov": True}, {"maximize": True}], ids=str)
def test_adamp_foreach_reads_nothing_from_the_device(kwargs):
    flags = {"nesterov": False, "maximize": False, **kwargs}
    with FakeTensorMode():
        weights = fake_weights()
        moments = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
        steps = [torch.zeros(()) for _ in weights]
        grads = [weight.grad for weight in weights]
        with torch.no_grad():
            for _ in range(2):
                adamp(
                    weights,
                    grads,
                    *moments,
                    steps,
                    foreach=True,
                    capturable=True,
                    **ADAM,
                    **OPTIONS,
                    **flags,
                )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgdp_foreach_reads_nothing_from_the_device(momentum, nesterov):
    if nesterov and not momentum:
        momentum = 0.5
    with FakeTensorMode():
        weights = [weight.detach() for weight in fake_weights()]
        buffers = [torch.zeros_like(weight) for weight in weights]
        grads = [torch.randn(shape) for shape in SHAPES]
        for _ in range(2):
            sgdp(
                weights,
                grads,
                buffers,
                foreach=True,
                momentum=momentum,
                dampening=0.0,
                nesterov=nesterov,
                maximize=False,
                **OPTIONS,
            )


@pytest.mark.parametrize("recording", [False, True])
@EVERY_FAMILY
def test_whole_step_with_foreach_reads_nothing_from_the_device(family, recording, monkeypatch):
    kwargs = {"momentum": 0.9} if family is SGDP_ else {"capturable": True}
    # On a real device step counts live there with `capturable`, which a CPU refuses.
    monkeypatch.setattr(ProjectedOptimizer, "_check_gradients", lambda _: None)
    with FakeTensorMode():
        weights = fake_weights()
        groups = [{"params": weights[:3]}, {"params": weights[3:], "delta": 0.2, "eps": 1e-6}]
        optimizer = build(family, groups, foreach=True, weight_decay=0.1, **kwargs)
        optimizer.record_steps = recording
        optimizer.step()
        weights[0].grad = None
        optimizer.step()
        assert bool(optimizer.last_step) is recording


def test_reading_a_fake_tensor_does_raise():
    """What the tests above rest on."""
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.randn(3).sum().item()


COMPILED = [
    pytest.param(ADAMP, {"weight_decay": 0.1}, id="AdamP"),
    pytest.param(ADAMP, {"nesterov": True, "maximize": True}, id="AdamP-nesterov"),
    pytest.param(SGDP_, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, id="SGDP"),
    pytest.param(SGDP_, {"weight_decay": 0.1}, id="SGDP-no-momentum"),
]


@traced
@pytest.mark.slow
@pytest.mark.parametrize(("family", "kwargs"), COMPILED)
def test_compiled_step_is_one_graph_and_equals_eager(family, kwargs):
    names = ["linear", "conv2d", "bias", "rows_of_one", "zero"]
    optimizers = [build(family, make_weights(names=names), **kwargs) for _ in range(2)]
    torch._dynamo.reset()

    # An optimizer keeps references of torch's own; a function around its step compiles.
    @torch.compile(fullgraph=True, backend="inductor")
    def compiled_step():
        optimizers[1].step()

    reference = list(make_weights(names=names).values())
    for step in range(1, 5):
        grads = make_grads(reference, "mix", step)
        run_steps(optimizers[0], [grads])
        for weight, grad in zip(optimizers[1].param_groups[0]["params"], grads, strict=True):
            weight.grad = grad.clone()
        compiled_step()
    assert_same(family, snapshot(optimizers[1]), snapshot(optimizers[0]), names=names)


@traced
@pytest.mark.slow
@EVERY_FAMILY
def test_compiled_step_follows_a_tensor_learning_rate_without_compiling_anew(family):
    weights = make_weights(names=["linear", "bias"])
    lr = torch.tensor(0.0)
    optimizer = build(family, weights, lr=lr)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def compiled_step():
        optimizer.step()

    grads = make_grads(weights.values(), "channel", 1)
    before = snapshot(optimizer)[0]
    for weight, grad in zip(weights.values(), grads, strict=True):
        weight.grad = grad
    compiled_step()
    assert all(map(torch.equal, weights.values(), before))
    compiled_step()
    frames = counter.frame_count
    lr.fill_(0.1)
    compiled_step()
    assert counter.frame_count == frames
    assert not any(map(torch.equal, weights.values(), before))
