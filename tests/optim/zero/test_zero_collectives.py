"""What processes say to each other in a step, counted, and what is refused.

1 minute of processor time on the machine they were written on.
"""

import pytest
import torch

from hf_adamp import AdamP
from tests.optim.distributed.flat_stand_in import OPTIONS
from tests.optim.distributed.test_collectives import PER_ROW, PER_WEIGHT
from tests.optim.zero.test_zero_training import case_id
from tests.training import params_of


def check_counts(name):
    from tests.optim.distributed.counting import CountedCollectives
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[name], AdamP, **OPTIONS[AdamP])
    step, counts = pair.optimizer.step, []

    def counted(*args):
        with CountedCollectives() as collectives:
            step(*args)
        counts.append(collectives.calls)

    pair.optimizer.step = counted
    for number in range(3):
        pair.step(number)
    return counts


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["stage 2", "stage 3"], ids=case_id)
def test_two_collectives_a_call_whatever_the_data(pools, name, size):
    by_rank = pools(size).run(check_counts, name)
    assert all(counts == by_rank[0] for counts in by_rank)
    for vectors, matrices in zip(by_rank[0][::2], by_rank[0][1::2], strict=True):
        assert vectors == []
        assert [call for call, _ in matrices] == ["allreduce"] * 2
        # A boundary cuts at most one row of one weight in stage 2; in stage 3 all weights are cut.
        cut, spread = (size - 1, size - 1) if name == "stage 2" else (4 * (size - 1), 4)
        assert matrices[0][1] <= cut * PER_ROW
        assert matrices[1][1] <= spread * PER_WEIGHT


REFUSED = {
    "experts": ({"stage": 2}, {"option": "moe"}, "experts"),
    "changed": ({"stage": 2}, {"change": True}, "changed outside of DeepSpeed"),
}


def check_refused(name):
    from dataclasses import replace

    from tests.optim.zero.engines import STAGES, Pair

    zero, change, told = REFUSED[name]
    pair = Pair(replace(STAGES["stage 0"], zero=zero), AdamP, **OPTIONS[AdamP])
    if option := change.get("option"):
        pair.optimizer.param_groups[1][option] = True
    if change.get("change"):
        with torch.no_grad():
            pair.model.up.weight.add_(1)
    with pytest.raises(RuntimeError, match=f"{told}.*stage 0.*delta=0"):
        pair.step(0)
    # The group before it, of vectors, has been stepped: DeepSpeed steps one after the other.
    assert params_of(pair.optimizer)[-1] not in pair.optimizer.state


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recognised_is_refused(pools, name):
    pools(2).run(check_refused, name)


def check_made_from_the_engine():
    from tests.optim.zero.engines import STAGES, Pair

    for stage in ("stage 2", "stage 3"):
        pair = Pair(STAGES[stage], AdamP, **OPTIONS[AdamP])
        pair.step(0)
        params = list(pair.model.parameters())
        if stage == "stage 2":
            with pytest.raises(RuntimeError, match=r"before `deepspeed\.initialize`"):
                AdamP(params)
            continue
        late = AdamP(params)
        for param in params:
            param.grad = torch.zeros_like(param)
        with pytest.raises(RuntimeError, match=r"before `deepspeed\.initialize`"):
            late.step()


def test_optimizer_of_weights_that_are_partitioned_already_is_refused(pools):
    pools(2).run(check_made_from_the_engine)
