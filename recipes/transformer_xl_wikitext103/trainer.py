"""A Trainer whose model remembers: memory from segment to segment, and over an interruption."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_adamp import get_param_groups

from .evaluate import perplexity
from .modeling_transformer_xl import memory
from .streams import SegmentStream

__all__ = ["EvaluationMemory", "TransformerXLTrainer", "last_checkpoint"]

logger = logging.get_logger("transformers.transformer_xl_wikitext103")


@dataclass(frozen=True)
class EvaluationMemory:
    """Memory of the evaluations during training, as in `TransformerXLConfig`."""

    mem_len: int
    same_length: bool = False
    clamp_len: int = -1


class TransformerXLTrainer(Trainer):
    """A Trainer over streams of segments.

    Each process reads its own columns in order and carries their memory from one segment to the
    next; the memory is empty where the stream begins, in each epoch. A checkpoint also holds the
    memory and the place in the stream, so that a resumed run continues as if it had never
    stopped. AdamW and the others get AdamP's parameter groups: gains of weight normalization, as
    well as biases and normalizations, have no weight decay.

    Args:
        model: a `TransformerXLForCausalLM`.
        args: as in `Trainer`; the batch size is the stream's number of columns.
        train_dataset: this process's training columns.
        eval_dataset: this process's evaluation columns.
        evaluation_memory: memory of evaluations; None for that of training. Default: None.
        **kwargs: as in `Trainer`.

    Raises:
        RuntimeError: one process would use several GPUs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        train_dataset: SegmentStream,
        eval_dataset: SegmentStream | None = None,
        evaluation_memory: EvaluationMemory | None = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise RuntimeError(
                f"one process sees {args.n_gpu} GPUs, and a memory lives on one; start a process a "
                f"GPU: accelerate launch --num_processes {args.n_gpu} --multi_gpu ..."
            )
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        config = model.config
        self.evaluation_memory = evaluation_memory or EvaluationMemory(
            config.mem_len, config.same_length, config.clamp_len
        )
        self._mems: tuple[Tensor, ...] | None = None
        self._next_segment = 0

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's segments in order; Accelerate must not deal them out again."""
        return self.train_dataset.loader(pin_memory=self.args.dataloader_pin_memory)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name what AdamP would decay, so that any other optimizer decays the same."""
        groups = get_param_groups(model, 1.0)
        decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
        return [name for name, p in model.named_parameters() if id(p) in decayed]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the segment's mean loss, and remember the segment."""
        inputs = dict(inputs)
        segment = inputs.pop("segment")
        if segment == 0:
            self._mems = None
        elif segment != self._next_segment:
            raise RuntimeError(
                f"segment {segment} follows a memory that ends before segment "
                f"{self._next_segment}; do not set ignore_data_skip, and resume from a checkpoint "
                "of this trainer."
            )
        outputs = model(**inputs, mems=self._mems)
        self._mems, self._next_segment = outputs.mems, segment + 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(
        self,
        eval_dataset: SegmentStream | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return loss, perplexity and number of scored words of a stream, over all processes."""
        stream = self.eval_dataset if eval_dataset is None else eval_dataset
        with memory(self.model, **vars(self.evaluation_memory)):
            result = perplexity(
                self.model, stream, self.accelerator, progress=not self.args.disable_tqdm
            )
        metrics = {
            "loss": result.loss,
            "perplexity": result.perplexity,
            "tokens": result.tokens,
            "runtime": round(result.seconds, 2),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or continue; everything that could not continue is refused beforehand.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last complete one in the
                output folder. Default: None, start anew.
            **kwargs: as in `Trainer`.

        Raises:
            ValueError: there is no complete checkpoint, or it is not of this model, stream, or
                number of processes.
        """
        self._mems, self._next_segment = None, 0
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_checkpoint(self.args.output_dir))
        if resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            _check_config(checkpoint, self.model)
            self._load_memory(checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First: `Trainer` writes its state last, which is how a complete checkpoint is told.
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._save_memory(Path(self._get_output_dir(trial=trial)) / folder)
        super()._save_checkpoint(model, trial)

    def _save_memory(self, checkpoint: Path) -> None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        tensors = {f"layer_{i}": past.contiguous() for i, past in enumerate(self._mems or ())}
        place = {**self._fit(), "next_segment": self._next_segment}
        save_file(tensors, self._memory_file(checkpoint), {"place": json.dumps(place)})

    def _memory_file(self, checkpoint: Path) -> Path:
        rank, world = self.args.process_index, self.args.world_size
        return checkpoint / f"memory-{rank + 1}-of-{world}.safetensors"

    def _fit(self) -> dict[str, int]:
        """Return what has to be the same for a memory to fit."""
        stream = self.train_dataset
        return {
            "mem_len": self.model.config.mem_len,
            "tgt_len": stream.tgt_len,
            "columns of a process": stream.columns,
            "words of a column": stream.inputs.shape[1],
        }

    def _load_memory(self, checkpoint: Path) -> None:
        path = self._memory_file(checkpoint)
        if not path.is_file():
            found = sorted(file.name for file in checkpoint.glob("memory-*.safetensors"))
            raise ValueError(
                f"{checkpoint} has no {path.name} but {', '.join(found) or 'no memory at all'}; "
                "resume with as many processes as wrote it, or from another checkpoint."
            )
        with safe_open(path, "pt", device=str(self.args.device)) as file:
            place = json.loads(file.metadata()["place"])
            mems = tuple(file.get_tensor(f"layer_{i}") for i in range(len(file.keys())))
        wrong = [f"{n}={v} (was {place[n]})" for n, v in self._fit().items() if v != place[n]]
        if wrong:
            raise ValueError(
                f"the memory of {checkpoint} does not fit {', '.join(wrong)}; resume with the "
                "values it was written with."
            )
        self._mems, self._next_segment = mems, place["next_segment"]


def last_checkpoint(output_dir: str | Path) -> Path:
    """Return the last complete checkpoint of a folder; an interrupted save leaves one that is not.

    Raises:
        ValueError: the folder has none.
    """
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = sorted((int(p.name.rpartition("-")[2]), p) for p in found if p.name[-1].isdigit())
    for _, checkpoint in reversed(numbered):
        if (checkpoint / "trainer_state.json").is_file():
            return checkpoint
        logger.warning(f"{checkpoint} was not written to its end; looking for an earlier one.")
    raise ValueError(
        f"{output_dir} has no complete checkpoint; start without --resume_from_checkpoint."
    )


# What a run may change when it continues.
_FREE = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures"}


def _check_config(checkpoint: Path, model: PreTrainedModel) -> None:
    """Refuse to continue a model with another configuration."""
    file = checkpoint / "config.json"
    if not file.is_file():
        raise ValueError(f"{checkpoint} is no checkpoint: it has no config.json.")
    before: Mapping[str, Any] = json.loads(file.read_text())
    now = json.loads(model.config.to_json_string(use_diff=False))
    wrong = [
        f"{name}={now[name]} (was {before[name]})"
        for name in before
        if name in now and name not in _FREE and now[name] != before[name]
    ]
    if wrong:
        raise ValueError(
            f"{checkpoint} is of another model: {', '.join(wrong)}. Resume with the settings and "
            "the data it was trained with, or choose another --output_dir."
        )
