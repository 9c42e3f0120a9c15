"""The stand-in of the ordinary suite has the map of the real DeepSpeed.

10 s of processor time on the machine they were written on.
"""

import pytest

from hf_adamp import AdamP
from hf_adamp.optim.sharding.zero import read_flat
from tests.optim.distributed.flat_stand_in import OPTIONS, Imported, groups_of
from tests.optim.distributed.flat_stand_in import STAGES as STAND_INS
from tests.optim.distributed.strategies import Net
from tests.optim.zero.test_zero_training import case_id


def _map(group, params):
    (tensor,) = group["params"]
    flat = read_flat(tensor, params, ["a weight"] * len(params), group)
    return tensor.numel(), [(own.shape, own.bounds, own.offset) for own in flat.weights]


def check_maps(name):
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[name], AdamP, **OPTIONS[AdamP])
    real = pair.optimizer
    if name == "stage 3":
        pair.engine.optimizer._set_fp32_optimizer_param_groups()
    groups = groups_of(pair.model)
    expected = [
        _map(group, own["params"]) for group, own in zip(real.param_groups, groups, strict=True)
    ]
    model = Net()
    with Imported():
        optimizer = AdamP(groups_of(model), **OPTIONS[AdamP])
        params = [group["params"] for group in optimizer.param_groups]
        stand_in = STAND_INS[name](optimizer)
        if name == "stage 3":
            for group, flat in zip(optimizer.param_groups, stand_in.flats, strict=True):
                group["params"] = [flat]
        found = [
            _map(group, own) for group, own in zip(optimizer.param_groups, params, strict=True)
        ]
    assert found == expected


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", STAND_INS, ids=case_id)
def test_stand_in_has_the_map_of_deepspeed(pools, name, size):
    pools(size).run(check_maps, name)
