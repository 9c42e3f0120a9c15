"""An exponential moving average of the weights, kept beside a Trainer and evaluated in their place.

The average is torch's `AveragedModel`, running statistics included. It is part of every checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

__all__ = ["WeightAverage"]

_FILE = "weight_average.pt"


class WeightAverage(TrainerCallback):
    """Averages the weights after every step.

    Args:
        decay: share of the average that a step keeps, such as 0.9999; in (0, 1).
        resume_from: the checkpoint to go on from. Default: none.

    Raises:
        ValueError: `decay` is out of its range, or the checkpoint holds no average.
    """

    def __init__(self, decay: float, resume_from: str | Path | None = None) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay={decay} must be in (0, 1); leave it out for no average.")
        self._decay = decay
        self._file = None if resume_from is None else Path(resume_from) / _FILE
        if self._file is not None and not self._file.is_file():
            raise ValueError(f"{self._file} is not there; the run was begun without ema_decay.")
        self.average: AveragedModel | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **_: Any,
    ) -> None:
        """Begin with the weights as they are, or with the checkpoint's average."""
        self.average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(self._decay), use_buffers=True
        )
        if self._file is not None:
            device = next(model.parameters()).device
            self.average.load_state_dict(
                torch.load(self._file, map_location=device, weights_only=True)
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **_: Any,
    ) -> None:
        """Move the average towards the weights."""
        self._known().update_parameters(model)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write the average into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            torch.save(self._known().state_dict(), folder / _FILE)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights, and its own back afterwards."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self._known().module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)

    def _known(self) -> AveragedModel:
        if self.average is None:
            raise RuntimeError("there is no average before training has begun.")
        return self.average
