"""What fewer bits cost and keep: `python -m tests.tables.low_precision --write`.

A classifier of scikit-learn's handwritten digits, trained on with a learning rate as small as that
of fine-tuning, where bfloat16 weights rounded to nearest stand still.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from hf_adamp import AdamP
from tests.pages import DOCS, Section, print_or_write

SECTION = Section(DOCS / "low-precision.md", "table")
COMMAND = "python -m tests.tables.low_precision --write"
WIDTH, BATCH = 1024, 128
FIRST_LR, LR = 1e-3, 2e-5


@dataclass(frozen=True)
class Case:
    """A way to keep weights and state."""

    label: str
    dtype: torch.dtype
    options: dict[str, str] = field(default_factory=dict)


CASES = [
    Case("float32", torch.float32),
    Case("float32, state bfloat16", torch.float32, {"state_dtype": "bfloat16"}),
    Case("float32, state 8 bits", torch.float32, {"state_dtype": "8bit"}),
    Case("bfloat16, nearest", torch.bfloat16),
    Case("bfloat16, stochastic", torch.bfloat16, {"rounding": "stochastic"}),
    Case("bfloat16, kahan", torch.bfloat16, {"rounding": "kahan"}),
    Case(
        "bfloat16, kahan, state bfloat16",
        torch.bfloat16,
        {"rounding": "kahan", "state_dtype": "bfloat16"},
    ),
    Case(
        "bfloat16, kahan, state 8 bits",
        torch.bfloat16,
        {"rounding": "kahan", "state_dtype": "8bit"},
    ),
]


def make_model(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(64, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*layers, nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def train(model, optimizer, data, steps, seed):
    """Seconds of all optimizer steps."""
    draw = torch.Generator().manual_seed(seed)
    seconds = 0.0
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        batch = torch.randint(len(data[0]), (BATCH,), generator=draw)
        loss = functional.cross_entropy(model(data[0][batch].to(dtype)).float(), data[1][batch])
        loss.backward()
        begin = time.perf_counter()
        optimizer.step()
        seconds += time.perf_counter() - begin
        optimizer.zero_grad()
    return seconds


@torch.no_grad()
def loss_of(model, data):
    # The weights' precision is looked at, not that of a forward pass.
    return functional.cross_entropy(model.float()(data[0]), data[1]).item()


def bytes_a_weight(optimizer):
    """Of weight and state, as they are stored."""
    params = optimizer.param_groups[0]["params"]
    stored = list(params)
    for param in params:
        for value in optimizer.state[param].values():
            if torch.is_tensor(value) and value.ndim:
                parts = [value.codes, value.scale] if hasattr(value, "codes") else [value]
                stored += parts
    return sum(t.numel() * t.element_size() for t in stored) / sum(p.numel() for p in params)


def measure(seed, steps):
    """By case: loss before, loss after, seconds, bytes a weight."""
    digits = load_digits()
    data = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    first = make_model(seed)
    train(first, AdamP(first.parameters(), lr=FIRST_LR), data, 30, seed)
    found = {}
    for case in CASES:
        model = make_model(seed)
        model.load_state_dict(first.state_dict())
        model.to(case.dtype)
        optimizer = AdamP(model.parameters(), lr=LR, **case.options)
        seconds = train(model, optimizer, data, steps, seed + 1)
        kept = bytes_a_weight(optimizer)
        found[case.label] = (loss_of(model, data), seconds, kept)
    return loss_of(first, data), found


def table(seeds=5, steps=150):
    """The page's section."""
    runs = [measure(seed, steps) for seed in range(seeds)]
    before = statistics.mean(run[0] for run in runs)
    rows = [
        "| weights, state | bytes a weight | training loss | step, × float32 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for case in CASES:
        losses = [found[case.label][0] for _, found in runs]
        ratios = [found[case.label][1] / found["float32"][1] for _, found in runs]
        spread = statistics.stdev(losses) if seeds > 1 else 0.0
        rows.append(
            f"| {case.label} | {runs[0][1][case.label][2]:.1f} | "
            f"{statistics.mean(losses):.4f} ± {spread:.4f} | {statistics.median(ratios):.1f} |"
        )
    return "\n".join(
        [
            f"Loss before: {before:.4f}. {steps} steps at learning rate {LR:g}, {seeds} seeds, "
            "mean ± standard deviation; time of a step on two cores of a CPU.",
            "",
            *rows,
            "",
            f"Command: `{COMMAND}`",
        ]
    )


if __name__ == "__main__":
    print_or_write(table, SECTION, __doc__.partition(":")[0])
