"""Training under DeepSpeed ZeRO equals training on one process, step by step.

2 minutes of processor time on the machine they were written on.
"""

import pytest

from hf_adamp import SGDP, AdamP
from tests.optim.distributed.flat_stand_in import DECLARED, OPTIONS, SEEN, views_of
from tests.tolerances import assert_close

MOMENTS = {AdamP: ("exp_avg", "exp_avg_sq"), SGDP: ("momentum",)}
NAMES = [
    "stage 0",
    "stage 1",
    "stage 2",
    "stage 3",
    "stage 2, offload",
    "stage 3, offload",
    "stage 2, round robin",
    "stage 3, sub-groups",
    "stage 3, zero.Init",
    "stage 1, bf16",
    "stage 2, bf16",
    "stage 3, bf16",
    "BF16 optimizer",
    "stage 2, accumulation and clipping",
    "stage 3, accumulation and clipping",
]
# Secondary shards over two processes each: twice.
CASES = [(name, size) for size in (2, 3) for name in NAMES] + [("stage 3, hpZ", 4)]
FLAGS = [{"foreach": True}, {"foreach": False}, {"fused": True}]


def case_id(value):
    return str(value).replace(", ", "_").replace(" ", "-")


def check_training(name, family, declared, flags):
    # Imported on the processes, which have what DeepSpeed asks for in their environment.
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[name], family, declared, **OPTIONS[family], **flags)
    pair.optimizer.record_steps = pair.single_optimizer.record_steps = True
    seen = set()
    for step in range(6):
        pair.step(step)
        alone = views_of(pair.single_optimizer, pair.single)
        assert views_of(pair.optimizer, pair.model) <= alone
        seen |= alone
        moments = {key: pair.moments(key) for key in MOMENTS[family]}
        for weight, param, actual, expected in pair.weights():
            what = f"{name}, step {step}: {weight}"
            assert_close(actual, expected, what=what)
            for key, own in moments.items():
                state = pair.single_optimizer.state[expected]
                assert_close(own[id(param)], state[key], what=f"{what}, {key}")
    return seen


@pytest.mark.parametrize("family", OPTIONS, ids=lambda family: family.__name__)
@pytest.mark.parametrize(("name", "size"), CASES, ids=case_id)
def test_training_matches_one_process(pools, name, size, family):
    seen = pools(size).run(check_training, name, family, "auto", {})[0]
    if "bf16" not in name.lower():
        # Guards the test itself: on both sides of the test, in both views.
        assert seen >= SEEN


@pytest.mark.parametrize("declared", DECLARED, ids=case_id)
@pytest.mark.parametrize("name", ["stage 2", "stage 3"], ids=case_id)
def test_declared_weights_match_one_process(pools, name, declared):
    seen = pools(3).run(check_training, name, AdamP, declared, {})[0]
    assert {view for weight, view in seen if weight == "up.weight"} == {DECLARED[declared]}


@pytest.mark.parametrize("flags", FLAGS, ids=case_id)
@pytest.mark.parametrize("name", ["stage 2", "stage 3"], ids=case_id)
def test_every_backend_matches_one_process(pools, name, flags):
    pools(2).run(check_training, name, AdamP, "auto", flags)
