"""Take real steps of all full-size configurations: time and memory, AdamP beside AdamW.

    python -m recipes.image_classification.full_size_step                  # a GPU, published batch
    python -m recipes.image_classification.full_size_step --device cpu --batch 8

Images are noise of 224x224 in the device's memory, so loading is not in it. Both optimizers take
turns on a model each, at the configuration's batch on one device, or half of it, a quarter, ...,
where that does not fit. On a GPU in bfloat16 by autocast, as trained.
"""

import argparse
import gc
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from recipes.common.arms import ARMS, make_optimizer
from recipes.common.tables import format_table

from .models import build_model

__all__ = ["CONFIGURATIONS", "Contender", "read_configuration", "try_configuration"]

CONFIGS = Path(__file__).parent / "configs"
# The networks; overlays change their settings, not what a step costs.
CONFIGURATIONS = (
    *("mobilenet_v2", "resnet18", "resnet50", "resnet50_cutmix"),
    *(f"efficientnet_b{number}" for number in range(4)),
    *("rexnet_1.0", "rexnet_1.3"),
)
OPTIMIZERS = ("adamw_torch", "adamp")
LABELS, SIZE = 1000, 224


class Step(NamedTuple):
    """What a step took: seconds in all, seconds of the optimizer, peak bytes where known."""

    seconds: float
    optimizer_seconds: float
    memory: int


def read_configuration(name: str) -> dict[str, object]:
    """Return a configuration's settings."""
    settings: dict[str, object] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8"))
    return settings


class Contender:
    """A model and its optimizer.

    Args:
        name: of the configuration.
        optim: a key of `recipes.common.arms.ARMS`.
        device: where both are.
    """

    def __init__(self, name: str, optim: str, device: torch.device) -> None:
        settings = read_configuration(name)
        torch.manual_seed(1)
        network = build_model(
            str(settings["model"]),
            LABELS,
            dropout=float(settings.get("dropout", 0.0)),
            drop_path=float(settings.get("drop_path", 0.0)),
        )
        self.model: nn.Module = network.to(device)
        self.optimizer = make_optimizer(
            optim,
            self.model,
            lr=float(settings["learning_rate"]),
            weight_decay=float(settings["weight_decay"]),
        )
        self.smoothing = float(settings.get("smoothing", 0.0))
        self.device = device

    def step(self, pixels: Tensor, labels: Tensor) -> Step:
        """Take one step and measure it."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        begin = self._now()
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            logits = self.model(pixel_values=pixels).logits
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        loss.backward()
        middle = self._now()
        self.optimizer.step()
        end = self._now()
        self.optimizer.zero_grad()
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()}; a step of this must be finite.")
        memory = torch.cuda.max_memory_allocated() if on_gpu else 0
        return Step(end - begin, end - middle, memory)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        # Of a shared machine's CPU only the time that was spent on it means something.
        return time.process_time()


def try_configuration(
    name: str, device: torch.device, batch: int | None, steps: int
) -> tuple[int, dict[str, list[Step]]]:
    """Measure both optimizers in turn at the largest batch that fits; return it and their steps."""
    mixed = any(float(read_configuration(name).get(key, 0)) > 0 for key in ("mixup", "cutmix"))
    images = batch or int(str(read_configuration(name)["total_batch"]))
    while True:
        try:
            pixels = torch.randn(images, 3, SIZE, SIZE, device=device).contiguous(
                memory_format=torch.channels_last
            )
            labels = torch.randint(LABELS, (images,), device=device)
            if mixed:
                labels = 0.5 * functional.one_hot(labels, LABELS) + 0.5 / LABELS
            contenders = {optim: Contender(name, optim, device) for optim in OPTIMIZERS}
            taken: dict[str, list[Step]] = {optim: [] for optim in OPTIMIZERS}
            for number in range(steps + 1):
                for optim, contender in contenders.items():
                    step = contender.step(pixels, labels)
                    if number:  # the first one warms up
                        taken[optim].append(step)
            return images, taken
        except torch.cuda.OutOfMemoryError:
            if images <= 2:
                raise
            images //= 2
        # Outside the handler, whose traceback holds the tensors that did not fit.
        contenders = pixels = labels = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Print a row a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="(the configuration's total batch)")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=CONFIGURATIONS, choices=CONFIGURATIONS)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, processor time"
    print(f"{where}, torch {torch.__version__}, {SIZE}x{SIZE}, medians of {chosen.steps} steps\n")
    titles = ["configuration", "batch"]
    titles += [f"{ARMS[optim]}, ms" for optim in OPTIMIZERS]
    titles += [f"of it {ARMS[optim]}'s step, ms" for optim in OPTIMIZERS]
    titles += ["AdamP / AdamW", "peak GiB, both models there"]
    rows = []
    for name in chosen.only:
        batch, taken = try_configuration(name, device, chosen.batch, chosen.steps)
        whole, part, peak = (
            [statistics.median(step[i] for step in taken[optim]) for optim in OPTIMIZERS]
            for i in range(3)
        )
        cells = [f"{1000 * seconds:.1f}" for seconds in (*whole, *part)]
        memory = " / ".join(f"{bytes_ / 2**30:.2f}" for bytes_ in peak) if peak[0] else "-"
        rows.append([name, str(batch), *cells, f"{whole[1] / whole[0]:.3f}", memory])
        print(f"{rows[-1]}", flush=True)
    print(f"\n{format_table(titles, rows)}")


if __name__ == "__main__":
    main()
