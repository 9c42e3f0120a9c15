"""DeepSpeed's AutoTP cuts weights into plain tensors: refused, whether at stage 0 or above.

20 s of processor time on the machine they were written on.
"""

import pytest
import torch

from hf_adamp import AdamP
from tests.optim.distributed.tiny_llama import tiny_llama


def check_refused(stage, early):
    import deepspeed

    from tests.optim.zero.engines import Stage, set_up

    set_up()
    config = Stage({"stage": stage}, {"tensor_parallel": {"autotp_size": 2}}).config
    model = tiny_llama()
    if not early:
        model = deepspeed.tp_model_init(model, tp_size=2, dtype=torch.float32)
    optimizer = AdamP(model.named_parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    tokens = torch.randint(32, (4, 8))
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    with pytest.raises(RuntimeError, match=r"q_proj.* is cut between processes.*tp_plan.*delta=0"):
        engine.step()
    assert not optimizer.state


@pytest.mark.parametrize("early", [True, False], ids=["made-before", "made-after"])
@pytest.mark.parametrize("stage", [0, 1])
def test_weights_cut_by_auto_tp_are_refused(pools, stage, early):
    pools(2).run(check_refused, stage, early)
