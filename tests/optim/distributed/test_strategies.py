"""Training a network on several processes equals training it on one, step by step.

Every strategy with its own forward and backward.

40 s of processor time on the machine they were written on.
"""

import pytest

from hf_adamp import AdamP
from tests.optim.distributed.sharded import whole
from tests.optim.distributed.strategies import STRATEGIES, Net, Pair, Strategy
from tests.references import CHANNEL, HEAD, LAYER, NONE
from tests.tables.optimizer_options import ADAMP, FAMILIES
from tests.tolerances import assert_close

OPTIONS = {
    "AdamP": {"lr": 3e-3, "weight_decay": 0.1},
    "SGDP": {"lr": 0.05, "weight_decay": 0.01, "momentum": 0.9, "nesterov": True},
}
# By size, so that processes can be kept from one test to the next.
CASES = [(s, size) for size in (2, 3, 4) for s in STRATEGIES if size in s.sizes]


def _id(value):
    return value.name.replace(" ", "_").replace("×", "x") if isinstance(value, Strategy) else value


def _views(optimizer, names):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    name_of = dict(zip(map(id, params), names, strict=True))
    return {
        name_of[id(param)]: int(view)
        for record in optimizer.last_step
        for param, view in zip(record.params, record.view, strict=True)
    }


def check_training(strategy_index, family_index, flags):
    strategy, family = STRATEGIES[strategy_index], FAMILIES[family_index]
    pair = Pair(strategy, lambda params: family.cls(params, **OPTIONS[family.name], **flags))
    pair.single_optimizer.record_steps = True
    seen = set()
    for step in range(6):
        pair.step(step)
        seen |= set(_views(pair.single_optimizer, pair.names).items())
        _assert_pair_close(pair, family, step)
    # Guards the test itself: on both sides of the test, in both views.
    assert {("conv.weight", CHANNEL), ("down.weight", LAYER), ("head.weight", NONE)} <= seen, seen


def _assert_pair_close(pair, family, step):
    weights = zip(pair.names, pair.spread.parameters(), pair.single.parameters(), strict=True)
    for name, actual, expected in weights:
        what = f"{pair.strategy.name}, step {step}: {name}"
        assert_close(whole(actual), expected, what=what)
        state, expected_state = pair.optimizer.state[actual], pair.single_optimizer.state[expected]
        for key in family.moments:
            assert_close(whole(state[key]), expected_state[key], what=f"{what}, {key}")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(("strategy", "size"), CASES, ids=_id)
def test_training_matches_single_process(pools, strategy, size, family):
    pools(size).run(check_training, STRATEGIES.index(strategy), FAMILIES.index(family), {})


# What the default is not; test_placements.py has every path with every placement.
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("strategy", "size"), [c for c in CASES if c[1] == 4][:3], ids=_id)
def test_training_by_path_matches_single_process(pools, strategy, size, foreach):
    pools(size).run(check_training, STRATEGIES.index(strategy), 0, {"foreach": foreach})


DECLARED = {"conv.weight": "row", "up.weight": ("head", 5), "down.weight": ("head_dim", 3)}


def check_declared_training(strategy_index):
    strategy = STRATEGIES[strategy_index]
    names = [name for name, _ in Net().named_parameters()]

    def make(params):
        declared = [(p, DECLARED.get(n, "auto")) for n, p in zip(names, params, strict=True)]
        groups = [{"params": [param], "scale_invariant": value} for param, value in declared]
        return AdamP(groups, **OPTIONS["AdamP"])

    pair = Pair(strategy, make)
    pair.single_optimizer.record_steps = True
    for step in range(4):
        pair.step(step)
        views = _views(pair.single_optimizer, names)
        assert (views["conv.weight"], views["up.weight"], views["down.weight"]) == (
            CHANNEL,
            HEAD,
            HEAD,
        )
        _assert_pair_close(pair, ADAMP, step)


@pytest.mark.parametrize(("strategy", "size"), CASES, ids=_id)
def test_declared_training_matches_single_process(pools, strategy, size):
    """Among them tensor parallelism under FSDP2, which interleaves the rows of its processes."""
    pools(size).run(check_declared_training, STRATEGIES.index(strategy))
