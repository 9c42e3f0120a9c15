"""What AdamP and SGDP share: options, parameter groups, checkpoints, the way into a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .backends import Flags
from .bucket import Bucket, working_dtype
from .checkpoint import adapted_loading, with_names
from .distributed import Reducer, flattened_message, local_part, refuse_flattened, shard_number
from .invariance import ScaleInvariant, check_scale_invariant, count_heads, threshold
from .low_precision import Precision, as_moment, load_quantizer, step_in_low_precision
from .options import check_options
from .projection import StepRecord, has_rows
from .sorting import check_shapes
from .step import Memory, run

__all__ = ["ProjectedOptimizer"]

# Options that older checkpoints and pickles lack.
_layout = attrgetter("layout")

_NEWER_OPTIONS = {
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "scale_invariant": "auto",
    "rounding": "nearest",
    "state_dtype": None,
}


class ProjectedOptimizer(Optimizer):
    """An optimizer whose updates lose their radial part where a weight is scale-invariant.

    A subclass says how the step before projection comes about: it makes state and buckets.

    Attributes:
        record_steps: whether a step leaves its record in `last_step`. Costs one more statistic a
            row, no host sync.
        last_step: the records of the latest step, one for each device, precision and backend; on
            a CPU without the native kernel one for each chunk of weights.
    """

    # The moments' names in the state and, for each, those that other optimizers give it.
    state_aliases: ClassVar[dict[str, tuple[str, ...]]] = {}
    # Those of them that are never negative.
    _unsigned: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._reset_caches()
        # `get_param_groups` knows the weights' names, and how others would have grouped them.
        self._source = getattr(params, "source", None)
        super().__init__(params, check_options(defaults))

    def _reset_caches(self) -> None:
        self._memory = Memory()
        self._seen: list[_Seen] = []
        # FSDP1 flattens weights in place, so the first step looks at them once more.
        self._settled = False
        self._reducer: Reducer | None = None
        self.record_steps = False
        self.last_step: list[StepRecord] = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights with options of their own, as in torch.optim.

        Raises:
            TypeError: for an option of the wrong type, or complex weights.
            ValueError: for an option out of range, or declared heads that do not divide the rows.
            RuntimeError: for weights whose rows cannot be seen (flattened shards).
        """
        checked = check_options({**self.defaults, **param_group})
        # In place: as with torch.optim, the group that is passed is the group that is kept.
        param_group.update({name: checked[name] for name in param_group})
        super().add_param_group(param_group)
        try:
            self._look_at_weights()
        except (TypeError, ValueError, RuntimeError, ImportError):
            self.param_groups.pop()
            raise
        self._settled = False

    def _look_at_weights(self) -> None:
        """Check weights that were not there before, and learn which are sharded.

        Frameworks that shard or offload put other tensors in the place of an optimizer's weights
        after it was made, so every step asks.
        """
        identities = [
            (tuple(map(id, group["params"])), group["scale_invariant"])
            for group in self.param_groups
        ]
        known = [(seen.identities, seen.scale_invariant) for seen in self._seen]
        if self._settled and identities == known:
            return
        seen = [_Seen.of(group) for group in self.param_groups]
        if seen == self._seen:
            return
        for group_index, group in enumerate(self.param_groups):
            declared = group["scale_invariant"]
            check_scale_invariant("scale_invariant", declared)
            if group["state_dtype"] == "8bit":
                load_quantizer()
            self._check_precision(group_index, group)
            projects = threshold(declared, group["delta"]) > 0
            before = self._seen[group_index] if group_index < len(self._seen) else None
            for index, param in enumerate(group["params"]):
                name = self._name(group_index, index)
                if param.is_complex():
                    raise TypeError(
                        f"{name} is complex, which the projection is not defined for; "
                        "pass torch.view_as_real of it."
                    )
                if projects:
                    refuse_flattened(param, name)
                if has_rows(param.shape):
                    count_heads(declared, param.shape, name)
            # Last, since the marks of a framework on a weight tell more.
            flattened = before and before.has_matrices and not seen[group_index].has_matrices
            if projects and flattened:
                raise RuntimeError(flattened_message(self._name(group_index, 0)))
        self._reducer = Reducer.of(
            (param, group["scale_invariant"])
            for group in self.param_groups
            for param in group["params"]
        )
        self._seen = seen

    def _name(self, group_index: int, index: int) -> str:
        names = self.param_groups[group_index].get("param_names")
        return names[index] if names else f"param_groups[{group_index}]['params'][{index}]"

    def step(  # type: ignore[override]  # torch overloads what its optimizers do not
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, if there is one.

        Raises:
            RuntimeError: for a gradient that is sparse, or an explicit `foreach`, `fused` or
                `capturable` that cannot be honoured. Nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # torch's own decorator for this breaks the graph of a compiled step; this does not.
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        return loss

    def _step(self) -> None:
        if not torch.compiler.is_compiling():
            self._look_at_weights()
            self._settled = True
            self._check_before_step()
        buckets = [self._local(self._bucket(group)) for group in self.param_groups]
        flags = [
            Flags(group["foreach"], group["fused"], group["differentiable"])
            for group in self.param_groups
        ]
        precisions = list(map(Precision.of, self.param_groups))
        full = [index for index, precision in enumerate(precisions) if precision.is_full]
        if len(full) < len(buckets) and not torch.compiler.is_compiling():
            # Groups in low precision are stepped last, when it would be too late.
            for bucket in buckets:
                check_shapes(bucket)
        records = run(
            [buckets[index] for index in full],
            [flags[index] for index in full],
            memory=self._memory,
            reducer=self._reducer,
            recording=self.record_steps,
        )
        for index, precision in enumerate(precisions):
            if not precision.is_full:
                records += self._low_precision_step(index, buckets[index], flags[index])
        if self.record_steps:
            self.last_step = records

    def _low_precision_step(self, index: int, bucket: Bucket, flags: Flags) -> list[StepRecord]:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "a step with rounding or state_dtype cannot be compiled; call it outside of "
                "torch.compile."
            )
        group = self.param_groups[index]
        precision = Precision.of(group)
        # In the group, so that a resumed run goes on with other random numbers.
        count = group["rounded_steps"] = group.get("rounded_steps", 0) + 1
        stepped = [(i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
        compensations = []
        if precision.rounding == "kahan":
            for _, param in stepped:
                is_low = param.dtype != working_dtype(param.dtype)
                if is_low and "compensation" not in self.state[param]:
                    self.state[param]["compensation"] = torch.zeros_like(param)
            compensations = [
                local_part(self.state[param].get("compensation"), param) for _, param in stepped
            ]
        return step_in_low_precision(
            bucket,
            flags,
            precision,
            compensations=compensations,
            seeds=[hash((count, index, i, shard_number(param))) for i, param in stepped],
            reducer=self._reducer,
            recording=self.record_steps,
        )

    def _local(self, bucket: Bucket) -> Bucket:
        """The same bucket as memory that can be read: this process's parts of sharded weights."""
        if not torch.compiler.is_compiling() and any(map(Tensor.is_neg, bucket.grads)):
            # Such a gradient's memory holds its negative until somebody asks.
            bucket = replace(bucket, grads=[grad.resolve_neg() for grad in bucket.grads])
        if self._reducer is None:
            return bucket

        def parts(tensors: list[Tensor]) -> list[Tensor]:
            return list(map(local_part, tensors, bucket.params))

        return replace(
            bucket,
            params=parts(bucket.params),
            grads=parts(bucket.grads),
            moments=tuple(parts(moment) for moment in bucket.moments),
            placements=[self._reducer.placements.get(param) for param in bucket.params],
        )

    def _bucket(self, group: dict[str, Any]) -> Bucket:
        """The weights of a group that have a gradient, their state made where it is missing."""
        raise NotImplementedError

    def _check_before_step(self) -> None:
        """Find what would make a step fail, before it has changed anything."""
        for group_index, group in enumerate(self.param_groups):
            self._check_precision(group_index, group)
            grads = [param.grad for param in group["params"]]
            layouts = {*map(_layout, [grad for grad in grads if grad is not None])}
            if layouts <= {torch.strided} and not group["capturable"]:
                continue
            for index, (param, grad) in enumerate(zip(group["params"], grads, strict=True)):
                if grad is None:
                    continue
                if group["capturable"] and param.is_cpu:
                    raise RuntimeError(
                        f"capturable=True is for accelerators; {self._name(group_index, index)} is "
                        "on the CPU; use capturable=False."
                    )
                if grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{self._name(group_index, index)} has a sparse gradient, whose missing "
                        "rows the projection would need; make it dense (`nn.Embedding(..., "
                        "sparse=False)`) or use torch.optim.SparseAdam for it."
                    )

    def _check_precision(self, group_index: int, options: Mapping[str, Any]) -> None:
        """Whether a group's weights can be had in the precision that options ask for."""
        precision = Precision.of(options)
        if not precision.is_full:
            for index, param in enumerate(self.param_groups[group_index]["params"]):
                precision.check(param.dtype, self._name(group_index, index))

    def state_dict(self) -> dict[str, Any]:
        """Return the state in torch.optim's layout.

        With groups of `get_param_groups` there are also the weights' names, under `param_names`.

        A step may start from what the one before it found, which changes nothing but the last bit
        of a weight now and then. That is forgotten here, so that training goes on with the same
        bits whether or not it is interrupted.
        """
        self._memory = Memory()
        return with_names(super().state_dict(), self.param_groups, self._source)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along; forgets as `state_dict` does."""
        self._memory = Memory()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy or a checkpoint."""
        super().__setstate__(state)
        if not hasattr(self, "_memory"):
            self._reset_caches()
            self._source = None
        for group in (self.defaults, *self.param_groups):
            for option, default in _NEWER_OPTIONS.items():
                group.setdefault(option, default)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer or of one that it replaces.

        Understood are adamp 0.3.0, timm and torch.optim's Adam, AdamW and SGD. Options that the
        checkpoint does not have keep their current values, and so do `foreach`, `fused`,
        `capturable` and `differentiable` where it is of another optimizer. Weights are matched by
        name where both sides have names (`get_param_groups` gives them), and where the checkpoint
        groups the same weights in another known way; otherwise by position, as in torch.optim.
        Your own hooks have the last word.

        Raises:
            TypeError: for options or state of the wrong type.
            ValueError: for weights that do not match, a checkpoint with `amsgrad=True`, state that
                is incomplete or of another shape, or options that do not suit the weights.
        """
        # torch.distributed.checkpoint has the optimizer make its state by a step that moves nothing
        # and teaches nothing.
        self._memory = Memory()
        with adapted_loading(
            self,
            self.state_aliases,
            source=self._source,
            check=self._check_loaded,
            restore=self._restored,
        ):
            super().load_state_dict(state_dict)

    def _check_loaded(self, group_index: int, options: Mapping[str, Any]) -> None:
        self._check_precision(group_index, options)
        for index, param in enumerate(self.param_groups[group_index]["params"]):
            if has_rows(param.shape):
                count_heads(options["scale_invariant"], param.shape, self._name(group_index, index))

    def _restored(
        self, name: str, value: Tensor, param: Tensor, group: Mapping[str, Any]
    ) -> Tensor:
        return as_moment(value, param, group["state_dtype"], signed=name not in self._unsigned)


@dataclass(frozen=True)
class _Seen:
    """Which weights a param group had, what it said of them, and how many dimensions each has."""

    identities: tuple[int, ...]
    scale_invariant: ScaleInvariant
    dims: tuple[int, ...]

    @classmethod
    def of(cls, group: dict[str, Any]) -> _Seen:
        params = group["params"]
        dims = tuple(map(Tensor.dim, params))
        return cls(tuple(map(id, params)), group["scale_invariant"], dims)

    @property
    def has_matrices(self) -> bool:
        return max(self.dims, default=0) > 1
