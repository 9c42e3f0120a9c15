"""A network trained by DeepSpeed's engine, and its twin on one process."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
)
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from tests.optim.distributed.flat_stand_in import groups_of
from tests.optim.distributed.strategies import BATCH, Net, batch_of, single_backward


@dataclass(frozen=True)
class Stage:
    """A way to configure DeepSpeed.

    Attributes:
        zero: its section `zero_optimization`.
        options: what else the configuration has.
        low: whether the model is bfloat16, so that only the optimizer can be compared.
        init: whether the model is made in pieces.
        micro_batches: how many batches a step's gradient is gathered from.
        max_norm: what the gradient is clipped to, if anything.
    """

    zero: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    low: bool = False
    init: bool = False
    micro_batches: int = 1
    max_norm: float = 0.0

    @property
    def config(self) -> dict[str, Any]:
        """What DeepSpeed reads."""
        return {
            "train_micro_batch_size_per_gpu": BATCH,
            "gradient_accumulation_steps": self.micro_batches,
            # Without the key DeepSpeed clips at 1.
            "gradient_clipping": self.max_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": self.zero,
            **self.options,
        }


_BF16 = {"bf16": {"enabled": True}}
_OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
STAGES = {
    "stage 0": Stage({"stage": 0}),
    "stage 1": Stage({"stage": 1}),
    "stage 2": Stage({"stage": 2}),
    "stage 3": Stage({"stage": 3}),
    "stage 2, offload": Stage({"stage": 2, **_OFFLOAD}),
    "stage 3, offload": Stage({"stage": 3, **_OFFLOAD}),
    "stage 2, round robin": Stage({"stage": 2, "round_robin_gradients": True}),
    "stage 3, sub-groups": Stage({"stage": 3, "sub_group_size": 200}),
    "stage 3, hpZ": Stage({"stage": 3, "zero_hpz_partition_size": 2}),
    "stage 3, zero.Init": Stage({"stage": 3}, init=True),
    "stage 1, bf16": Stage({"stage": 1}, _BF16, low=True),
    "stage 2, bf16": Stage({"stage": 2}, _BF16, low=True),
    "stage 3, bf16": Stage({"stage": 3}, _BF16, low=True),
    "BF16 optimizer": Stage(
        {"stage": 1}, {**_BF16, "data_types": {"grad_accum_dtype": "fp32"}}, low=True
    ),
    "stage 2, accumulation and clipping": Stage({"stage": 2}, micro_batches=3, max_norm=0.05),
    "stage 3, accumulation and clipping": Stage({"stage": 3}, micro_batches=3, max_norm=0.05),
}


def set_up():
    """What DeepSpeed's launcher would have set."""
    rank, size = str(distributed.get_rank()), str(distributed.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    deepspeed.init_distributed("gloo")


class Pair:
    """A network under DeepSpeed and its twin on each process."""

    def __init__(self, stage, family, declared="auto", **options):
        set_up()
        self.stage, self.declared = stage, declared
        torch.manual_seed(0)
        self.single = Net()
        if stage.low:
            # What DeepSpeed copies into float32 was bfloat16 before.
            self.single.bfloat16().float()
        torch.manual_seed(0)
        with deepspeed.zero.Init(config_dict_or_path=stage.config) if stage.init else nullcontext():
            self.model = Net()
        self.optimizer, self.single_optimizer = (
            family(groups_of(model, declared), **options) for model in (self.model, self.single)
        )
        self.engine, *_ = deepspeed.initialize(
            model=self.model, optimizer=self.optimizer, config=stage.config
        )

    def step(self, step):
        """A step of both, from the same batches."""
        stage, readers = self.stage, distributed.get_world_size()
        for micro in range(stage.micro_batches):
            dtype = torch.bfloat16 if stage.low else torch.float32
            images, labels = batch_of(step, micro, distributed.get_rank(), torch.float32)
            self.engine.backward(cross_entropy(self.engine(images.to(dtype)).float(), labels))
            if stage.low and micro == stage.micro_batches - 1:
                self._take_gradients()
            self.engine.step()
        if not stage.low:
            single_backward(self.single, step, readers, stage.micro_batches)
        if stage.max_norm:
            norm = nn.utils.clip_grad_norm_(self.single.parameters(), stage.max_norm)
            assert norm > stage.max_norm, "nothing was clipped"
        self.single_optimizer.step()

    def _take_gradients(self):
        for param, twin in zip(self.model.parameters(), self.single.parameters(), strict=True):
            twin.grad = safe_get_full_grad(param).float().reshape(twin.shape)

    def weights(self):
        """Each weight's name, the parameter, its whole in float32, and its twin."""
        flats = self._flat_tensors(lambda flat: flat.detach())
        for (name, twin), param in zip(
            self.single.named_parameters(), self.model.parameters(), strict=True
        ):
            yield name, param, self._whole(param, flats, twin), twin

    def moments(self, name):
        """A moment of each weight, by the identity of the parameter."""
        flats = self._flat_tensors(lambda flat: self.optimizer.state[flat][name])
        return {
            id(param): self._whole(param, flats, twin, name)
            for param, twin in zip(self.model.parameters(), self.single.parameters(), strict=True)
        }

    def _whole(self, param, flats, twin, moment=None):
        stage = self.stage.zero["stage"]
        if stage == 0:
            return param.detach() if moment is None else self.optimizer.state[param][moment]
        if stage == 3:
            read = safe_get_full_fp32_param if moment is None else safe_get_full_optimizer_state
            return read(param, *([] if moment is None else [moment])).reshape(twin.shape)
        # Not DeepSpeed's own map, which is wrong under round robin, and where groups are several.
        groups = groups_of(self.model, self.declared)
        flat = flats[[any(param is p for p in group["params"]) for group in groups].index(True)]
        begin = param.storage_offset()
        return flat[begin : begin + param.numel()].reshape(twin.shape)

    def _flat_tensors(self, read):
        """Of stages 1 and 2: the ranges of all processes, group by group."""
        if self.stage.zero["stage"] not in (1, 2):
            return []
        found = []
        for group in self.optimizer.param_groups:
            own = read(group["params"][0])
            parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
            distributed.all_gather(parts, own)
            found.append(torch.cat(parts))
        return found
