"""Saved on so many processes, loaded on others: training goes on as if it had not stopped.

30 s of processor time on the machine they were written on.
"""

import copy

import pytest
import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from hf_adamp import SGDP, AdamP
from tests.optim.distributed.sharded import whole
from tests.optim.distributed.strategies import STRATEGIES, Net, Pair, single_backward
from tests.tolerances import assert_close
from tests.training import params_of
from tests.versions import needs_fsdp2_on_a_cpu


def _declared(params):
    """Groups of a declaration each; weights are told by their shapes, which shards have too."""
    shapes = {(6, 2, 3, 3): "row", (10, 96): ("head", 5), (9, 10): ("head_dim", 3)}
    groups = {value: [] for value in ["auto", *shapes.values()]}
    for param in params:
        groups[shapes.get(tuple(param.shape), "auto")].append(param)
    groups = [{"params": g, "scale_invariant": value} for value, g in groups.items()]
    return AdamP(groups, lr=3e-3, weight_decay=0.1)


MAKERS = {
    "AdamP, declared": _declared,
    "AdamP": lambda params: AdamP(params, lr=3e-3, weight_decay=0.1),
    "SGDP": lambda params: SGDP(params, lr=0.05, momentum=0.9, nesterov=True),
    "SGDP without momentum": lambda params: SGDP(params, lr=0.05),
}
BEFORE, AFTER = 3, 3
FULL = {"full_state_dict": True}
OPTIONS = {
    "sharded": {},
    "full": FULL,
    "full, offloaded": {**FULL, "cpu_offload": True},
    "offloaded": {"cpu_offload": True},
    "flattened": {"flatten_optimizer_state_dict": True},
}


def _pair(name, maker, dtype=torch.float32):
    strategy = next(s for s in STRATEGIES if s.name == name)
    return Pair(strategy, MAKERS[maker], dtype)


def _copies(optimizer):
    return {
        (index, key): whole(value).clone()
        for index, param in enumerate(params_of(optimizer))
        for key, value in {"weight": param.detach(), **optimizer.state[param]}.items()
    }


def _assert_copies_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert value.dtype == expected[key].dtype, key
        assert torch.equal(value, expected[key]), key


def _state(model, optimizer, **options):
    options = StateDictOptions(**options)
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def _set_state(model, optimizer, state, **options):
    options = StateDictOptions(**options)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def save(name, maker, folder):
    pair = _pair(name, maker)
    for step in range(BEFORE):
        pair.step(step)
    checkpoint.save(_state(pair.spread, pair.optimizer), checkpoint_id=folder)
    return pair.readers


def load_and_go_on(name, maker, folder, readers):
    pair = _pair(name, maker)
    state = _state(pair.spread, pair.optimizer)
    checkpoint.load(state, checkpoint_id=folder)
    _set_state(pair.spread, pair.optimizer, state)
    for step in range(BEFORE):
        pair.single_step(step, readers)
    for step in range(BEFORE, BEFORE + AFTER):
        pair.step(step)
        expected = _copies(pair.single_optimizer)
        for (index, key), value in _copies(pair.optimizer).items():
            what = f"step {step}: {key} of {pair.names[index]}"
            assert_close(value, expected[index, key], what=what)


RESHARDED = [
    ("FSDP2, Shard(0)", 2, "FSDP2, Shard(0)", 3),
    ("FSDP2, Shard(0)", 3, "FSDP2, Shard(0)", 2),
    ("FSDP2, Shard(0)", 2, "HSDP (2 × 2)", 4),
    ("tensor parallel × FSDP2 (2 × 2)", 4, "FSDP2, Shard(1)", 2),
    ("DDP", 2, "FSDP2, Shard(0)", 3),
]


CASES = [(*RESHARDED[0], maker) for maker in MAKERS] + [(*row, "AdamP") for row in RESHARDED[1:]]


@pytest.mark.parametrize(("saved_as", "saving", "loaded_as", "loading", "maker"), CASES)
def test_resharded_checkpoint_goes_on_as_one_process(
    pools, tmp_path, saved_as, saving, loaded_as, loading, maker
):
    readers = pools(saving).run(save, saved_as, maker, str(tmp_path))[0]
    pools(loading).run(load_and_go_on, loaded_as, maker, str(tmp_path), readers)


def save_and_finish(maker, folder):
    pair = _pair("FSDP2, Shard(0)", maker)
    for step in range(BEFORE):
        pair.step(step)
    checkpoint.save(_state(pair.spread, pair.optimizer), checkpoint_id=folder)
    for step in range(BEFORE, BEFORE + AFTER):
        pair.step(step)
    copies = _copies(pair.single_optimizer)
    return {key: value.tolist() for key, value in copies.items()}


@needs_fsdp2_on_a_cpu
@pytest.mark.parametrize("maker", MAKERS)
def test_sharded_checkpoint_goes_on_without_processes(pool, tmp_path, maker):
    """Loaded by one process that has no process group at all."""
    expected = pool.run(save_and_finish, maker, str(tmp_path))[0]
    model = Net()
    optimizer = MAKERS[maker](list(model.parameters()))
    state = _state(model, optimizer)
    checkpoint.load(state, checkpoint_id=str(tmp_path), no_dist=True)
    _set_state(model, optimizer, state)
    for step in range(BEFORE, BEFORE + AFTER):
        single_backward(model, step, readers=2)
        optimizer.step()
    actual = _copies(optimizer)
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert_close(value, torch.tensor(expected[key]), what=str(key))


def check_round_trip(maker, options, dtype):
    """Into new objects and back, bit for bit; and both go on alike."""
    first, second = (_pair("FSDP2, Shard(0)", maker, dtype) for _ in range(2))
    declared = [group["scale_invariant"] for group in first.optimizer.param_groups]
    for step in range(BEFORE):
        first.step(step)
    # A copy: loading keeps the tensors that it is given, as in torch.optim.
    saved = copy.deepcopy(_state(first.spread, first.optimizer, **options))
    if options.get("full_state_dict"):
        tensors = [t for t in tree_leaves(saved) if torch.is_tensor(t)]
        assert not any(isinstance(tensor, DTensor) for tensor in tensors)
        # All of it is on the first process, and only there where it is to be offloaded.
        offloaded = options.get("cpu_offload") and distributed.get_rank() > 0
        assert bool(tensors) != bool(offloaded)
        # torch cannot send a flattened state dictionary around, whichever the optimizer.
        options = {
            **options,
            "broadcast_from_rank0": not options.get("flatten_optimizer_state_dict"),
        }
    _set_state(second.spread, second.optimizer, saved, **options)
    # torch makes lists of tuples where it sends a state dictionary around.
    loaded = [group["scale_invariant"] for group in second.optimizer.param_groups]
    assert [tuple(v) if isinstance(v, list) else v for v in loaded] == declared
    _assert_copies_equal(_copies(second.optimizer), _copies(first.optimizer))
    for step in range(BEFORE, BEFORE + AFTER):
        first.step(step)
        second.backward(step)
        second.optimizer.step()
        _assert_copies_equal(_copies(second.optimizer), _copies(first.optimizer))


@needs_fsdp2_on_a_cpu
@pytest.mark.parametrize(
    ("maker", "options"),
    [
        *((maker, name) for maker in ("AdamP", "AdamP, declared") for name in OPTIONS),
        ("SGDP", "full, offloaded"),
    ],
)
def test_optimizer_state_dict_round_trip_is_exact(pool, maker, options):
    pool.run(check_round_trip, maker, OPTIONS[options], torch.float32)


@needs_fsdp2_on_a_cpu
@pytest.mark.parametrize("options", ["sharded", "full, offloaded"])
def test_bfloat16_weights_keep_float32_state(pool, options):
    pool.run(check_round_trip, "AdamP", OPTIONS[options], torch.bfloat16)


def check_plain_state_dict(dtype):
    first, second = (_pair("FSDP2, Shard(0)", "AdamP", dtype) for _ in range(2))
    for step in range(BEFORE):
        first.step(step)
    set_model_state_dict(second.spread, get_model_state_dict(first.spread))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for step in range(BEFORE, BEFORE + AFTER):
        first.step(step)
        second.backward(step)
        second.optimizer.step()
    _assert_copies_equal(_copies(second.optimizer), _copies(first.optimizer))
    for param in params_of(second.optimizer):
        state = second.optimizer.state[param]
        assert {whole(state[key]).dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
        assert param.dtype == dtype


@needs_fsdp2_on_a_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sharded_state_dict_goes_on_identically(pool, dtype):
    pool.run(check_plain_state_dict, dtype)
