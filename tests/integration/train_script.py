"""Train a tiny ResNet from the command line, as Hugging Face's example scripts do.

It knows nothing of hf_adamp: the tests run it through each way in and read the JSON it prints.
"""

import json
import os
import sys

import torch
from transformers import (
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # Threads that wait for the interpreter's lock for this long make gloo fail at the exit of every
    # fourth process, unless the launcher ends it.
    sys.setswitchinterval(100)


def main():
    (args,) = HfArgumentParser((TrainingArguments,)).parse_args_into_dataclasses()
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 2} for i in range(8)]
    trainer = Trainer(ResNetForImageClassification(config), args, train_dataset=data)
    trainer.train()
    if args.should_log:
        optimizer = trainer.optimizer.optimizer
        report = {
            "argv": sys.argv,
            "path": sys.path[0],
            "main": __name__,
            "file": os.path.abspath(__file__),
            "world_size": args.world_size,
            "optimizer": type(optimizer).__name__,
            "delta": optimizer.param_groups[0]["delta"],
            "steps": trainer.state.global_step,
        }
        print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()
