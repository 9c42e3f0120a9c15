"""A training run of seconds that the tests of the log share."""

import json

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_adamp import AdamP

COMMON = {"weight_norm", "update_norm", "effective_step"}
PROJECTION = {
    "projected_channel",
    "projected_layer",
    "not_projected",
    "channel_margin",
    "radial_share",
}


class Net(nn.Module):
    """A normalized convolution and a classifier, with the loss in its output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, pixel_values, labels):
        logits = self.head(self.norm(self.conv(pixel_values)).relu().mean((2, 3)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def make_trainer(folder, callbacks, *, optimizer=AdamP, steps=6, **arguments):
    torch.manual_seed(0)
    data = [{"pixel_values": torch.randn(1, 6, 6), "labels": i % 3} for i in range(24)]
    options = {"logging_steps": 2, "max_steps": steps, "save_strategy": "no", "report_to": "none"}
    options |= {"disable_tqdm": True, "use_cpu": True}
    args = TrainingArguments(str(folder), **{**options, **arguments})
    model = Net()
    optimizers = (optimizer(model.parameters(), lr=0.01), None)
    return Trainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        callbacks=callbacks,
        optimizers=optimizers,
    )


def losses_of(entries):
    return [entry for entry in entries if "loss" in entry]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
