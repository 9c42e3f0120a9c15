r"""Train f against g, so that f does not learn the bias, with any arm of `--optim`.

    REBIAS=recipes/rebias
    accelerate launch -m recipes.rebias.train $REBIAS/configs/biased_mnist.yaml \
        --rho 0.999 --optim adamp --output_dir runs/rebias

Configurations come first, options after them overrule them.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_adamp.diagnostics import StepLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse
from recipes.common.arms import ARMS, make_optimizer

from .game import Game, Player, extract
from .hsic import FEWEST, median_distance
from .tasks import TASKS, DataArguments, ModelArguments, Task

SCHEDULES = ("step", "cosine")
MEDIAN = "median"
MEDIAN_EVERY = 4  # a quarter of the training images, as published
CHOSEN_BY = "test_unbiased"  # what the published runs choose their best epoch by


@dataclass
class RunArguments:
    """Optimizers, schedule and game."""

    output_dir: str = field(metadata={"help": "Where networks, measures and logs go."})
    optim: str = field(default="adamp", metadata={"help": f"Of both: {', '.join(ARMS)}."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of both networks."})
    weight_decay: float = field(default=1e-4, metadata={"help": "recipes/common/arms.py says how."})
    epochs: int = field(default=80, metadata={"help": "Passes over the training set."})
    batch_size: int = field(default=256, metadata={"help": "Of each process; four or more."})
    schedule: str = field(default="step", metadata={"help": ", ".join(SCHEDULES)})
    step_epochs: int = field(default=20, metadata={"help": "Of step: each so many, a tenth."})
    f_weight: float = field(default=1.0, metadata={"help": "HSIC in f's loss; 0 is no ReBias."})
    g_weight: float = field(default=1.0, metadata={"help": "HSIC in g's loss."})
    sigma: str = field(
        default="1.0", metadata={"help": "Width of the kernels, or median: anew each epoch."}
    )
    seed: int = field(default=1, metadata={"help": "Of first weights and order of batches."})
    log_every: int = field(default=50, metadata={"help": "Steps between two lines of the logs."})
    resume: bool = field(default=False, metadata={"help": "Go on after the last whole epoch."})
    checkpoints: bool = field(default=True, metadata={"help": "Keep what --resume needs."})
    workers: int = field(default=0, metadata={"help": "Processes that read images."})
    use_cpu: bool = field(default=False, metadata={"help": "Even where there is a GPU."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; known: step, cosine.")
        if self.sigma != MEDIAN and not float(self.sigma) > 0:
            raise ValueError(f"sigma={self.sigma} must be above 0, or median.")
        for name, least in (("batch_size", FEWEST), ("epochs", 1), ("step_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


class Progress:
    """What a checkpoint holds beside weights and optimizers: the measures of whole epochs."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"history": self.history, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history, self.steps = state["history"], state["steps"]


def make_schedule(args: RunArguments, optimizer: Optimizer) -> LRScheduler:
    """Return the schedule, which moves once an epoch."""
    if args.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=args.epochs)
    return StepLR(optimizer, step_size=args.step_epochs)


class Run:
    """One training: players, data and logs, and what is kept of them.

    Args:
        task: data and networks.
        args: optimizers, schedule and game.
    """

    def __init__(self, task: Task, args: RunArguments) -> None:
        self.args, self.task = args, task
        self.output = Path(args.output_dir)
        self.accelerator = Accelerator(
            cpu=args.use_cpu,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
            step_scheduler_with_optimizer=False,
        )
        set_seed(args.seed)
        f, g = task.build()
        optimizers = [
            make_optimizer(args.optim, net, lr=args.learning_rate, weight_decay=args.weight_decay)
            for net in (f, g)
        ]
        schedules = [make_schedule(args, optimizer) for optimizer in optimizers]
        # Too few images for an estimate of dependence are left out, at an epoch's end.
        rest = len(task.train) % (args.batch_size * self.accelerator.num_processes)
        self.loader = self._load(task.train, shuffle=True, drop_last=0 < rest < FEWEST)
        f, g, f_optimizer, g_optimizer, self.loader, *self.schedules = self.accelerator.prepare(
            f, g, *optimizers, self.loader, *schedules
        )
        sigma = 1.0 if args.sigma == MEDIAN else float(args.sigma)
        self.game = Game(
            Player(f, f_optimizer, args.f_weight, sigma),
            Player(g, g_optimizer, args.g_weight, sigma),
            self.accelerator.backward,
        )
        self.held_out = {
            name: self.accelerator.prepare(self._load(dataset))
            for name, dataset in task.held_out.items()
        }
        quarter = Subset(task.train, range(0, len(task.train), MEDIAN_EVERY))
        self.sample = self.accelerator.prepare(self._load(quarter, shuffle=True))
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress)

    def _load(self, dataset: Any, *, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.args.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.args.workers,
        )

    def _logs(self) -> Iterator[StepLog]:
        """Follow both optimizers' steps."""
        for name, player in (("f", self.game.f), ("g", self.game.g)):
            yield StepLog(
                player.optimizer,
                self.accelerator.unwrap_model(player.model),
                every=self.args.log_every,
                jsonl=self.output / f"projection_{name}.jsonl",
                per_kind=False,
                steps_taken=self.progress.steps,
            )

    def train(self) -> dict[str, float]:
        """Play all epochs, or those that are left; return the measures."""
        checkpoint = self.output / "checkpoint"
        if self.args.resume and checkpoint.is_dir():
            self.accelerator.load_state(str(checkpoint))
        f_log, g_log = self._logs()
        with f_log, g_log:
            for epoch in range(len(self.progress.history), self.args.epochs):
                self._set_sigma(epoch)
                losses = self._epoch(epoch, f_log, g_log)
                self.progress.steps = f_log.step
                for schedule in self.schedules:
                    schedule.step()
                self.progress.history.append(losses | self.evaluate())
                if self.args.checkpoints:
                    self.accelerator.save_state(str(checkpoint))
        return self._finish()

    def _set_sigma(self, epoch: int) -> None:
        """Measure the features' median distance where kernels are as wide as that."""
        if self.args.sigma != MEDIAN:
            return
        self.sample.set_epoch(epoch)
        for player in (self.game.f, self.game.g):
            player.model.train()
            with torch.no_grad():
                found = [extract(player.model, pixels)[1] for pixels, _ in self.sample]
            widths = torch.tensor(median_distance(found), device=self.accelerator.device)
            # One width for all processes.
            player.sigma = self.accelerator.reduce(widths, reduction="mean").item()

    def _epoch(self, epoch: int, f_log: StepLog, g_log: StepLog) -> dict[str, float]:
        """Play an epoch; return the losses' means over its batches."""
        self.game.f.model.train()
        self.game.g.model.train()
        self.loader.set_epoch(epoch)
        total: dict[str, Tensor] = {}
        for pixels, labels in self._bar(self.loader, f"epoch {epoch + 1} of {self.args.epochs}"):
            losses = self.game.step(pixels, labels)
            f_log.read(loss=losses["f_loss"], hsic=losses["hsic"])
            g_log.read(loss=losses["g_loss"], hsic=losses["hsic"])
            total = {name: total.get(name, 0) + loss for name, loss in losses.items()}
        return {name: loss.item() / len(self.loader) for name, loss in total.items()}

    def _bar(self, batches: Iterable[Any], title: str) -> Iterable[Any]:
        hidden = self.args.disable_tqdm or not self.accelerator.is_main_process
        return tqdm(batches, desc=title, disable=hidden, leave=False)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score f on all held-out sets."""
        self.game.f.model.eval()
        measures: dict[str, float] = {}
        for name, loader in self.held_out.items():
            pairs = [
                self.accelerator.gather_for_metrics((self._predict(pixels), labels))
                for pixels, labels in self._bar(loader, name)
            ]
            predicted, labels = (torch.cat(side).cpu() for side in zip(*pairs, strict=True))
            measures |= self.task.score(name, predicted, labels)
        return measures

    def _predict(self, pixels: Tensor) -> Tensor:
        return self.game.f.model(pixels).logits.argmax(-1)

    def _finish(self) -> dict[str, float]:
        """Keep both networks and all measures: the last epoch's, and the best one's beside it."""
        history = self.progress.history
        measures = dict(history[-1])
        if CHOSEN_BY in measures:
            scores = [epoch[CHOSEN_BY] for epoch in history]
            measures[f"best_epoch_{CHOSEN_BY}"] = max(scores)
            measures["best_epoch"] = scores.index(max(scores)) + 1
        if self.accelerator.is_main_process:
            self._save(self.game.f.model, "f")
            self._save(self.game.g.model, "g")
            lines = [json.dumps({"epoch": e, **m}) for e, m in enumerate(history, 1)]
            (self.output / "history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            kept = {"arguments": asdict(self.args), "measures": measures}
            (self.output / "results.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return measures

    def _save(self, model: nn.Module, name: str) -> None:
        self.accelerator.unwrap_model(model).save_pretrained(self.output / name)


def run(models: ModelArguments, data: DataArguments, args: RunArguments) -> dict[str, float]:
    """Train as the arguments say; return the measures of the last epoch, and the best one's.

    Raises:
        ValueError: an option is out of its range, or the data is not what it should be.
    """
    if data.task not in TASKS:
        raise ValueError(f"task={data.task!r} is unknown; known: {', '.join(TASKS)}.")
    return Run(TASKS[data.task](data, models), args).train()


def main(argv: list[str] | None = None) -> None:
    """Read the options, run, and print the measures."""
    arguments = parse(
        (ModelArguments, DataArguments, RunArguments), sys.argv[1:] if argv is None else argv
    )
    measures = run(*arguments)
    if PartialState().is_main_process:
        for name, value in measures.items():
            print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    run_and_exit(main)
