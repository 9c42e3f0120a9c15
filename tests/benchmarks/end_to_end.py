"""What the optimizer changes in a whole training step: AdamP over torch's fused AdamW.

python -m tests.benchmarks.end_to_end              print the table
python -m tests.benchmarks.end_to_end --output     write it into docs/performance.md

Both train a copy of the same model on the same batch in turn, and a ratio is that of two steps of
the same round. Weights and inputs are random: only time is looked at.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hf_adamp import AdamP, get_param_groups
from tests.benchmarks import report
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "performance.md", "end-to-end")

Batch = dict[str, Tensor]


def resnet50(batch_size: int) -> tuple[nn.Module, Batch]:
    """ResNet-50 on 64 by 64 pictures."""
    from transformers import AutoModelForImageClassification, ResNetConfig

    model = AutoModelForImageClassification.from_config(ResNetConfig(num_labels=1000))
    labels = torch.randint(1000, (batch_size,))
    return model, {"pixel_values": torch.randn(batch_size, 3, 64, 64), "labels": labels}


def bert_base(batch_size: int) -> tuple[nn.Module, Batch]:
    """BERT-base on sentences of 64 tokens."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    model = AutoModelForSequenceClassification.from_config(BertConfig())
    tokens = torch.randint(1000, (batch_size, 64))
    return model, {"input_ids": tokens, "labels": torch.randint(2, (batch_size,))}


MODELS: dict[str, tuple[Callable[[int], tuple[nn.Module, Batch]], int]] = {
    "resnet50, 16 pictures of 64×64": (resnet50, 16),
    "bert-base, 8 sentences of 64 tokens": (bert_base, 8),
}


class _Training:
    def __init__(self, model: nn.Module, optimizer: type[torch.optim.Optimizer], **options: object):
        self.model = model
        groups = get_param_groups(model, weight_decay=0.01)
        self.optimizer = optimizer(groups, lr=1e-5, **options)
        self.totals: list[float] = []
        self.steps: list[float] = []

    def step(self, batch: Batch) -> None:
        begin = time.perf_counter()
        self.model(**batch).loss.backward()
        before = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = time.perf_counter()
        self.totals.append(end - begin)
        self.steps.append(end - before)


def measure(build: Callable[[int], tuple[nn.Module, Batch]], batch_size: int, rounds: int) -> str:
    """One row of the table: medians over rounds after two of warm-up."""
    torch.manual_seed(0)
    model, batch = build(batch_size)
    twin, _ = build(batch_size)
    twin.load_state_dict(model.state_dict())
    adamw, adamp = _Training(model, torch.optim.AdamW, fused=True), _Training(twin, AdamP)
    for index in range(rounds + 2):
        for training in (adamw, adamp) if index % 2 else (adamp, adamw):
            training.step(batch)
    ratios = [p / w for p, w in zip(adamp.totals[2:], adamw.totals[2:], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    times = [
        1000 * statistics.median(values[2:])
        for values in (adamw.totals, adamp.totals, adamw.steps, adamp.steps)
    ]
    cells = " | ".join(f"{value:.1f}" for value in times)
    return f"{cells} | **{ratio:.3f}** ({low:.3f}–{high:.3f})"


def table(rounds: int) -> Iterator[str]:
    """The page's table, line by line."""
    yield "| training step | AdamW, ms | AdamP, ms | of it step, AdamW | AdamP | AdamP / AdamW |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, (build, batch_size) in MODELS.items():
        yield f"| {name} | {measure(build, batch_size, rounds)} |"


def main(arguments: Sequence[str]) -> str:
    """Measure, print and return the page's section."""
    about, name = __doc__.partition("\n")[0], "tests.benchmarks.end_to_end"
    return report.measure_and_write(name, about, SECTION, table, arguments, rounds=20)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
