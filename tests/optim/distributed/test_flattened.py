"""Flat shards are refused with a message that says what to do, and taken where delta is 0.

FSDP1 is the real one. DeepSpeed's optimizers are stood in for by what they do to the optimizer
that they wrap: flat weights in place of the ones it was made with.

10 s of processor time on the machine they were written on.
"""

import sys

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from hf_adamp import SGDP, AdamP
from tests.optim.distributed.strategies import Net
from tests.training import params_of

OPTIMIZERS = [AdamP, SGDP]
REMEDY = r"FSDP2 \(`fully_shard`\).*set delta=0, which is AdamW \(or SGD\)"


def _train(model, optimizer, steps=2):
    for step in range(steps):
        images = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def _wrap(model, use_orig_params, strategy=ShardingStrategy.FULL_SHARD):
    return FullyShardedDataParallel(
        model,
        use_orig_params=use_orig_params,
        sharding_strategy=strategy,
        device_id=torch.device("cpu"),
    )


def check_fsdp1_before_optimizer(use_orig_params):
    model = _wrap(Net(), use_orig_params)
    for cls in OPTIMIZERS:
        with pytest.raises(RuntimeError, match="flattened FSDP1 shard.*" + REMEDY):
            cls(model.parameters(), lr=0.1)


def check_fsdp1_after_optimizer(use_orig_params):
    """Flattened in place: the optimizer holds the parameters that it was made with."""
    for cls in OPTIMIZERS:
        model = Net()
        optimizer = cls(model.parameters(), lr=0.1)
        wrapped = _wrap(model, use_orig_params)
        if not use_orig_params:
            # As Accelerate does: the optimizer's weights become the wrapped model's.
            optimizer.param_groups[0]["params"] = list(wrapped.parameters())
        before = [param.detach().clone() for param in wrapped.parameters()]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="FSDP1.*" + REMEDY):
                _train(wrapped, optimizer, 1)
        assert not optimizer.state
        for param, old in zip(wrapped.parameters(), before, strict=True):
            assert torch.equal(param, old)


def check_fsdp1_with_delta_zero(use_orig_params):
    for ours, torchs in ((AdamP, torch.optim.AdamW), (SGDP, torch.optim.SGD)):
        results = []
        for cls, options in ((ours, {"delta": 0}), (torchs, {"weight_decay": 0})):
            torch.manual_seed(0)
            model = _wrap(Net(), use_orig_params)
            _train(model, cls(model.parameters(), lr=1e-2, **options))
            results.append([param.detach().clone() for param in model.parameters()])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("use_orig_params", [True, False])
@pytest.mark.parametrize(
    "check",
    [check_fsdp1_before_optimizer, check_fsdp1_after_optimizer, check_fsdp1_with_delta_zero],
)
def test_fsdp1(pool, check, use_orig_params):
    pool.run(check, use_orig_params)


def _flatten(optimizer):
    """Flat float32 partitions in the place of weights, as ZeRO 1 and 2 and 3 put them."""
    for group in optimizer.param_groups:
        flat = torch.cat([param.detach().flatten() for param in group["params"]])
        group["params"] = [nn.Parameter(flat[: len(flat) // 2].clone())]
        group["params"][0].grad = torch.ones_like(group["params"][0])


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_weights_flattened_behind_the_optimizer_are_refused(cls):
    model = Net()
    decay = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": others}]
    optimizer = cls(groups, lr=0.1)
    _flatten(optimizer)
    flat = [param.detach().clone() for param in params_of(optimizer)]
    with pytest.raises(RuntimeError, match="they were flattened.*DeepSpeed.*" + REMEDY):
        optimizer.step()
    assert not optimizer.state
    assert all(map(torch.equal, params_of(optimizer), flat))


@pytest.mark.parametrize("first", ["matrices", "vectors"])
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_weights_flattened_a_group_at_a_time_are_refused(cls, first):
    """ZeRO 1 and 2 step with one group after the other as the only one."""
    model = Net()
    kinds = [[p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False)]
    order = kinds if first == "matrices" else kinds[::-1]
    optimizer = cls([{"params": params} for params in order], lr=0.1)
    _flatten(optimizer)
    groups = optimizer.param_groups
    refused = []
    for group in groups:
        optimizer.param_groups = [group]
        try:
            optimizer.step()
        except RuntimeError as error:
            refused.append(str(error))
    assert len(refused) == 1
    assert "they were flattened" in refused[0]


CHANGES = {
    "removed": lambda groups: groups.pop(0),
    "reversed": lambda groups: groups.reverse(),
    "emptied": lambda groups: groups[0].update(params=[]),
    "exchanged": lambda groups: groups[0].update(
        params=groups[1]["params"], other=groups[1].update(params=groups[0]["params"])
    ),
    "joined": lambda groups: groups[1]["params"].append(groups.pop(0)["params"][0]),
    "copied": lambda groups: groups.__setitem__(0, dict(groups[0])),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_groups_that_change_are_not_taken_for_flattened(cls, change):
    matrix, vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    optimizer = cls([{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0}], lr=0.1)
    for _ in range(3):
        matrix.grad, vector.grad = torch.ones(3, 3), torch.ones(3)
        optimizer.step()
        if len(optimizer.param_groups) == 2:
            CHANGES[change](optimizer.param_groups)


@pytest.mark.parametrize("attribute", ["tensor_model_parallel", "ds_is_replaced_module"])
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_weight_cut_by_tensor_parallelism_of_its_own_is_refused(cls, attribute):
    param = nn.Parameter(torch.ones(2, 2))
    setattr(param, attribute, True)
    with pytest.raises(RuntimeError, match=r"^q.weight is cut between processes.*" + REMEDY):
        cls([("q.weight", param)], lr=0.1)
    cls([("q.weight", param)], lr=0.1, delta=0)


def check_cut_in_place():
    """As DeepSpeed's AutoTP cuts weights after the optimizer was made."""
    param = nn.Parameter(torch.ones(4, 4))
    optimizer = AdamP([param], lr=0.1)
    param.data = param.data[:, :2].contiguous()
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"had shape \(4, 4\) when it was added.*" + REMEDY):
        optimizer.step()


def test_weight_cut_in_place_is_refused(pool):
    pool.run(check_cut_in_place)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_weights_flattened_after_a_step_are_refused(cls):
    model = Net()
    optimizer = cls(model.parameters(), lr=0.1)
    _train(model, optimizer)
    _flatten(optimizer)
    with pytest.raises(RuntimeError, match=REMEDY):
        optimizer.step()


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_weights_flattened_with_delta_zero_are_taken(cls):
    optimizer = cls(Net().parameters(), lr=0.1, delta=0)
    _flatten(optimizer)
    before = params_of(optimizer)[0].detach().clone()
    optimizer.step()
    assert not torch.equal(params_of(optimizer)[0], before)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_vectors_replaced_by_vectors_are_taken(cls):
    """Norms and biases are 1-D before and after, so there is nothing to lose."""
    optimizer = cls([p for p in Net().parameters() if p.ndim < 2], lr=0.1)
    _flatten(optimizer)
    optimizer.step()


@pytest.mark.parametrize("attribute", ["ds_id", "ds_tensor", "_hp_mapping"])
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_weight_marked_by_deepspeed_is_refused(cls, attribute):
    param = nn.Parameter(torch.ones(0))
    setattr(param, attribute, object())
    with pytest.raises(RuntimeError, match=r"^head.weight is partitioned by DeepSpeed.*" + REMEDY):
        cls([("head.weight", param)], lr=0.1)
    cls([("head.weight", param)], lr=0.1, delta=0)
    assert "deepspeed" not in sys.modules


def check_no_shard():
    """Wrapped, but whole on every process; FSDP1 marks the weights all the same."""
    model = _wrap(Net(), True, ShardingStrategy.NO_SHARD)
    with pytest.raises(RuntimeError, match=REMEDY):
        AdamP(model.parameters(), lr=0.1)


def test_fsdp1_without_sharding_is_refused_too(pool):
    pool.run(check_no_shard)
