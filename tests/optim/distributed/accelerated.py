"""Train with Accelerate, as the configurations in recipes/accelerate_configs launch it.

Prints, from the main process, what became of the weights, how they were spread, and whether a
checkpoint went on identically.
"""

import json
import os
import sys
from functools import partial

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.functional import cross_entropy

from hf_adamp import AdamP
from hf_adamp.integration.process_exit import run_and_exit

STEPS, SAVED_AT, BATCH = 4, 2, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 7, bias=False)
        self.norm = nn.LayerNorm(7)

    def forward(self, features):
        return self.norm(self.down(self.up(features).relu()))


class Net(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self):
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(7, 5)

    def forward(self, features):
        return self.head(self.block(features))


def shard_on_cpu():
    """Accelerate shards where there are accelerators; let it take gloo's processes for such."""
    PartialState(cpu=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def batch_of(step, accelerator):
    draw = torch.Generator().manual_seed(step)
    features = torch.randn(BATCH, 6, generator=draw)
    labels = torch.randint(5, (BATCH,), generator=draw)
    count, index = accelerator.num_processes, accelerator.process_index
    return features.chunk(count)[index], labels.chunk(count)[index]


def _train(accelerator, model, optimizer, steps):
    for step in steps:
        features, labels = batch_of(step, accelerator)
        optimizer.zero_grad()
        accelerator.backward(cross_entropy(model(features), labels))
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def _whole(model):
    return [
        (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for p in model.parameters()
    ]


def main(folder):
    shard_on_cpu()
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = Net()
    optimizer = AdamP(model.parameters(), lr=1e-2, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    _train(accelerator, model, optimizer, range(SAVED_AT))
    accelerator.save_state(folder)
    _train(accelerator, model, optimizer, range(SAVED_AT, STEPS))
    finished = _whole(model)
    accelerator.load_state(folder)
    _train(accelerator, model, optimizer, range(SAVED_AT, STEPS))
    resumed = _whole(model)
    if accelerator.is_main_process:
        weight = next(model.parameters())
        report = {
            "processes": accelerator.num_processes,
            "type": str(accelerator.distributed_type.value),
            "placements": str(getattr(weight, "placements", "")),
            "mesh": str(tuple(weight.device_mesh.shape)) if hasattr(weight, "device_mesh") else "",
            "weights": [weight.double().flatten().tolist() for weight in finished],
            "resumed": all(map(torch.equal, finished, resumed)),
        }
        print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    run_and_exit(partial(main, sys.argv[1]))
