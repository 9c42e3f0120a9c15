"""Train with Accelerate, as our DeepSpeed configurations launch it."""

import json

import torch
from accelerate import Accelerator
from deepspeed.utils import safe_get_full_fp32_param
from torch.nn.functional import cross_entropy

from hf_adamp import AdamP
from hf_adamp.integration.process_exit import run_and_exit
from tests.optim.distributed.accelerated import STEPS, Net, batch_of
from tests.optim.zero.on_cpu import take_gloo_for_accelerators


def main():
    """Report the weights and the stage, from the main process."""
    take_gloo_for_accelerators()
    accelerator = Accelerator()
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = 4
    torch.manual_seed(0)
    model = Net()
    optimizer = AdamP(model.parameters(), lr=1e-2, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(STEPS):
        features, labels = batch_of(step, accelerator)
        accelerator.backward(cross_entropy(model(features), labels))
        optimizer.step()
        optimizer.zero_grad()
    weights = [safe_get_full_fp32_param(param) for param in model.parameters()]
    if accelerator.is_main_process:
        report = {
            "processes": accelerator.num_processes,
            "stage": config["zero_optimization"]["stage"],
            "weights": [weight.double().flatten().tolist() for weight in weights],
        }
        print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    run_and_exit(main)
