"""Train a tiny Llama with `Trainer` under DeepSpeed, then again from its own checkpoint."""

import json
import sys
from functools import partial

import torch
from deepspeed.utils import safe_get_full_fp32_param
from transformers import Trainer, TrainingArguments

import hf_adamp
from hf_adamp.integration.process_exit import run_and_exit
from tests.optim.distributed.tiny_llama import RUN, tiny_llama, token_rows
from tests.optim.zero.on_cpu import take_gloo_for_accelerators


def _trainer(folder, stage):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        folder,
        **RUN,
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {"stage": stage},
        },
    )
    assert arguments.world_size == 2
    # Under stage 3 a model made now is made in pieces.
    return Trainer(tiny_llama(), arguments, train_dataset=token_rows())


def _train(folder, stage, resume=None):
    trainer = _trainer(folder, stage)
    trainer.train(resume_from_checkpoint=resume)
    params = trainer.model.parameters()
    return trainer, [p.detach() if stage == 0 else safe_get_full_fp32_param(p) for p in params]


def _innermost(optimizer):
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def main(folder, stage):
    """Report how the run went, on rank 0."""
    take_gloo_for_accelerators()
    trainer, weights = _train(folder, stage)
    _, resumed = _train(folder, stage, f"{folder}/checkpoint-2")
    report = {
        "is ours": isinstance(_innermost(trainer.optimizer), hf_adamp.AdamP),
        "identical": all(map(torch.equal, weights, resumed)),
        "weights": [weight.double().flatten().tolist() for weight in weights],
    }
    if trainer.args.process_index == 0:
        print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    run_and_exit(partial(main, sys.argv[1], int(sys.argv[2])))
