"""A run that is saved and loaded by DeepSpeed goes on as if it had never stopped.

40 s of processor time on the machine they were written on.
"""

import pytest
import torch

from hf_adamp import AdamP
from tests.optim.distributed.flat_stand_in import OPTIONS
from tests.optim.zero.test_zero_training import case_id

NAMES = ["stage 1", "stage 2", "stage 3", "stage 3, sub-groups", "stage 1, bf16", "BF16 optimizer"]


def _whole(pair):
    return [whole.clone() for _, _, whole, _ in pair.weights()]


def check_resumed(name, family, folder):
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[name], family, **OPTIONS[family])
    for step in range(3):
        pair.step(step)
    pair.engine.save_checkpoint(folder)
    for step in range(3, 6):
        pair.step(step)
    expected = _whole(pair)
    resumed = Pair(STAGES[name], family, **OPTIONS[family])
    # A step before loading: what was remembered must not outlive it.
    resumed.step(9)
    resumed.engine.load_checkpoint(folder)
    for step in range(3, 6):
        resumed.step(step)
    for actual, wanted in zip(_whole(resumed), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("family", OPTIONS, ids=lambda family: family.__name__)
@pytest.mark.parametrize("name", NAMES, ids=case_id)
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(pools, tmp_path, name, family):
    pools(2).run(check_resumed, name, family, str(tmp_path))


def save(name, folder):
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[name], AdamP, **OPTIONS[AdamP])
    for step in range(2):
        pair.step(step)
    pair.engine.save_checkpoint(folder)


def load(name, folder):
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[name], AdamP, **OPTIONS[AdamP])
    try:
        pair.engine.load_checkpoint(folder)
    except Exception as error:
        return repr(error)
    return "loaded"


@pytest.mark.parametrize("name", ["stage 2", "stage 3"], ids=case_id)
def test_another_number_of_processes_is_refused(pools, tmp_path, name):
    pools(2).run(save, name, str(tmp_path))
    told = pools(3).run(load, name, str(tmp_path))
    assert "loaded" not in told
    assert any("DP world size of 2" in one for one in told), told
