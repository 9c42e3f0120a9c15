"""What `accelerated` does, on one process without DeepSpeed."""

import json
from types import SimpleNamespace

import torch
from torch.nn.functional import cross_entropy

from hf_adamp import AdamP
from tests.optim.distributed.accelerated import STEPS, Net, batch_of

if __name__ == "__main__":
    torch.manual_seed(0)
    model = Net()
    optimizer = AdamP(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(STEPS):
        features, labels = batch_of(step, SimpleNamespace(num_processes=1, process_index=0))
        optimizer.zero_grad()
        cross_entropy(model(features), labels).backward()
        # What the configurations say.
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    weights = [weight.detach().double().flatten().tolist() for weight in model.parameters()]
    print("REPORT " + json.dumps({"weights": weights}))
