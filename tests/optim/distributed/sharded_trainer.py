"""Train a tiny Llama with `Trainer` under FSDP2, then again from its own checkpoint."""

import json
import sys
from functools import partial

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments

import hf_adamp
from hf_adamp.integration.process_exit import run_and_exit
from tests.optim.distributed.tiny_llama import RUN, tiny_llama, token_rows


def _trainer(folder):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        folder,
        **RUN,
        use_cpu=True,
        fsdp="full_shard auto_wrap",
        fsdp_config={
            "fsdp_version": 2,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        },
    )
    # Accelerate shards where there are accelerators; let it take gloo's processes for such.
    assert arguments.world_size == 2
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Trainer(tiny_llama(), arguments, train_dataset=token_rows())


def _train(folder, resume=None):
    trainer = _trainer(folder)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, [param.full_tensor().detach() for param in trainer.model.parameters()]


def main(folder):
    hf_adamp.register()
    _, finished = _train(folder)
    trainer, resumed = _train(folder, f"{folder}/checkpoint-2")
    if trainer.args.should_log:
        optimizer = trainer.optimizer.optimizer
        weight = optimizer.param_groups[0]["params"][0]
        report = {
            "optimizer": type(optimizer).__name__,
            "placements": str(weight.placements),
            "steps": trainer.state.global_step,
            "steps of a weight": float(optimizer.state[weight]["step"]),
            "identical": all(map(torch.equal, finished, resumed)),
        }
        print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    run_and_exit(partial(main, sys.argv[1]))
