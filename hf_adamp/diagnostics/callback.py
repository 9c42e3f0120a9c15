"""`ProjectionLog`: what projection does to each weight, in the logs of a Trainer."""

from __future__ import annotations

import inspect
import logging
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    PrinterCallback,
    ProgressCallback,
)

from hf_adamp.diagnostics.report import Report, unwrap
from hf_adamp.diagnostics.steps import StepReader, watch

__all__ = ["ProjectionLog"]

logger = logging.getLogger(__name__)

# What a line on the console has room for; reporters, history and file get everything.
_CONSOLE = {
    "weight_norm",
    "effective_step",
    "projected_channel",
    "projected_layer",
    "projected_head",
}


class ProjectionLog(TrainerCallback):
    """Log weight norms, effective steps and projections beside the loss.

    Every time the Trainer logs its loss, these numbers join it, in TensorBoard, wandb, trackio
    and every other reporter, on the console and in `trainer.state.log_history`:

    - `weight_norm`: the norm of all weights with two dimensions or more, before the step;
    - `update_norm`: `|Δw|`, the length of the step, weight decay and projection included;
    - `effective_step`: `|Δw|/|w|`, how far the step turns or stretches them;
    - `projected_channel`, `projected_layer`, `not_projected`: the share of weights whose update
      was projected in either view or in none, over all steps since the last log;
    - `projected_head`: likewise head by head, where `scale_invariant` declares heads;
    - `channel_margin`: `max |cos(w, g)| · √dim` over the rows of all weights, in the last step;
    - `radial_share`: the share of the step that pointed along the weight before projection.

    AdamP and SGDP have computed these numbers during the step: they are kept on the device and
    read when the Trainer logs. For any other optimizer the first three are measured, so that runs
    can be compared: the weights are copied before a step that is going to be logged (with
    `logging_strategy="epoch"`, before every step), which takes their size in memory for a moment.

    Args:
        jsonl: a file that gets one line a weight at each log, with its name, its numbers and its
            distance from both limits, and before them one line for the whole model, whose
            `weight` is null and which holds the loss too. A new run replaces the file, a resumed
            one continues it. `None`, the default, writes none.
        per_kind: whether the logs also hold the numbers of each kind of module, as in
            `weight_norm/Conv2d`, where the model has more than one kind. Default: True.
        weights: a regular expression; the logs also hold the numbers of each weight whose name it
            is found in, as in `weight_norm/layers.0.q_proj.weight`. `None`, the default, logs
            single weights to the file only.

    Raises:
        ValueError: `weights` is no regular expression.

    Example::

        trainer = Trainer(model=model, args=args, train_dataset=data,
                          callbacks=[ProjectionLog(jsonl="run/projection.jsonl")])
        trainer.train()
        plot_runs({"adamp": "run/projection.jsonl"}, "run/projection.png")

    Source: the quantities are those of Heo et al., https://arxiv.org/abs/2006.08217, section 2
    (norm growth and effective step) and section 3.2 (the test that chooses the view).
    """

    def __init__(
        self,
        *,
        jsonl: str | Path | None = None,
        per_kind: bool = True,
        weights: str | None = None,
    ) -> None:
        self._report = Report(jsonl, per_kind=per_kind, weights=weights)
        self._reader: StepReader | None = None
        self._fresh = False
        self._quiet: set[str] = set()
        self._consoles: list[TrainerCallback] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **_: Any,
    ) -> None:
        """Learn the weights' names, start the file, and get in before the reporters."""
        self._report.describe(model)
        if state.is_world_process_zero:
            self._report.start(resumed=state.global_step > 0)
        handler = _run_before_reporters(self)
        if handler is None:
            logger.warning(
                "ProjectionLog found no transformers CallbackHandler among its callers: its "
                "numbers reach trainer.state.log_history and the JSONL file, but not the reporters."
            )
        else:
            self._shorten_consoles(handler)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **_: Any,
    ) -> None:
        """Follow the optimizer at hand; a Trainer may make another one in a later attempt."""
        inner = unwrap(optimizer)
        if self._reader is None or self._reader.optimizer is not inner:
            self._close()
            self._reader = watch(inner)
        self._reader.before_step(wanted=_will_log(args, state))

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **_: Any,
    ) -> None:
        """Take the step's numbers as they are, on the device."""
        # A step that the gradient scaler skipped has changed no weight.
        if self._reader is not None and not getattr(optimizer, "step_was_skipped", False):
            self._reader.after_step()
            self._fresh = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Read the numbers and put them beside the loss."""
        if logs is None or "loss" not in logs or self._reader is None or not self._fresh:
            return
        self._fresh = False
        read = self._reader.read()
        added = self._report.numbers(read)
        logs.update(added)
        self._quiet = added.keys() - _CONSOLE
        # The Trainer has already filed a copy of the logs.
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)
        if state.is_world_process_zero:
            when = {"step": state.global_step, "epoch": state.epoch}
            self._report.write(when, {"loss": logs["loss"]}, read)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the optimizer and the console as they were found."""
        self._close()
        for console in self._consoles:
            del console.on_log
        self._consoles = []

    def _shorten_consoles(self, handler: CallbackHandler) -> None:
        """Hide our lesser numbers from the callbacks that print, which get the logs last.

        Callbacks behind them still get all: the logs themselves stay as they are.
        """
        for console in handler.callbacks:
            printing = isinstance(console, (PrinterCallback, ProgressCallback))
            if printing and "on_log" not in vars(console):
                console.on_log = self._shortened(console.on_log)
                self._consoles.append(console)

    def _shortened(self, on_log: Any) -> Any:
        @wraps(on_log)
        def shortened(*event: Any, logs: dict[str, Any] | None = None, **rest: Any) -> Any:
            shown = {k: v for k, v in (logs or {}).items() if k not in self._quiet}
            return on_log(*event, logs=None if logs is None else shown, **rest)

        return shortened

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _will_log(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step about to be taken may be logged."""
    step = state.global_step + 1
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    first = args.logging_first_step and step == 1
    return first or strategy == "epoch" or (strategy == "steps" and step % state.logging_steps == 0)


def _run_before_reporters(callback: TrainerCallback) -> CallbackHandler | None:
    """Move the callback behind DefaultFlowCallback, so before all that report; return its handler.

    Reporters come before a user's callbacks, so what these add to the logs is too late. Callbacks
    are not told their handler, but are called by it: it is the owner of one of the frames above.
    """
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            # Moving forward what is being called keeps the rest of the round as it was.
            handler.callbacks.remove(callback)
            flow = [isinstance(c, DefaultFlowCallback) for c in handler.callbacks]
            handler.callbacks.insert(flow.index(True) + 1 if any(flow) else 0, callback)
            return handler
        frame = frame.f_back
    return None
