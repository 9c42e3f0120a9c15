"""What AdamP and SGDP share: options, parameter groups, checkpoints, the way into a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from operator import attrgetter, is_, is_not, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, ParamsT

from .backends import Flags
from .backends.base import Step
from .checkpoint import adapted_loading, with_names
from .checkpoint_matching import KeptNames, names_of
from .graphs import capture_refusal, is_captured, keep_for_graphs
from .layout import has_rows
from .memory import PLAIN, readable, working_dtype
from .options import check_options
from .plan import Collected, Plan
from .records import StepRecord
from .rules import Rule
from .scale_invariance import check_scale_invariant, threshold, vectors_of
from .sharding.dtensor import is_sharded, local_part, shard_number
from .sharding.flat import FlatTensor
from .sharding.origins import Origins
from .sharding.reducer import Reducer
from .sharding.zero import known_shape
from .storage import Precision, as_moment, load_quantizer

__all__ = ["ProjectedOptimizer", "step_once"]

_layout, _grad = attrgetter("layout"), attrgetter("grad")

# Options that older checkpoints and pickles lack.
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

    A subclass says how the step before projection comes about: a rule, and the state it keeps.

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
        # One, unless a framework steps with a part of the groups at a time.
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._origins = Origins()
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
            self._check_group(len(self.param_groups) - 1, stepping=False)
        except (TypeError, ValueError, RuntimeError, ImportError):
            self.param_groups.pop()
            raise
        self._origins.remember(param_group, partial(self._name, len(self.param_groups) - 1))

    def _check_group(self, number: int, *, stepping: bool) -> list[FlatTensor]:
        """Refuse weights that cannot be stepped, and options that do not suit them.

        Returns:
            What flat tensors hold that have taken the place of the group's weights.
        """
        group = self.param_groups[number]
        declared = group["scale_invariant"]
        check_scale_invariant("scale_invariant", declared)
        if group["state_dtype"] == "8bit":
            load_quantizer()
        self._check_precision(number, group)
        projects = threshold(declared, group["delta"]) > 0
        name_of = partial(self._name, number)
        if projects:
            if flats := self._origins.flat_tensors(group, name_of):
                return flats
            self._origins.refuse_unreadable(group, name_of, stepping=stepping)
        for index, param in enumerate(group["params"]):
            name = name_of(index)
            if projects and param.is_complex():
                raise TypeError(
                    f"{name} is complex, which the projection is not defined for; pass "
                    "torch.view_as_real of it, or put it into a group with delta=0 or "
                    "scale_invariant=False."
                )
            shape = known_shape(param)
            if shape is not None and has_rows(shape):
                vectors_of(declared, shape, name)
        # Where a weight is placed so that its rows cannot be found, this says so.
        Reducer.of((param, declared) for param in group["params"])
        return []

    def _name(self, group_index: int, index: int) -> str:
        group = self.param_groups[group_index]
        names = group.get("param_names") or []
        # A framework that puts flat tensors into a group leaves the names of its weights there.
        is_named = len(names) == len(group["params"])
        return names[index] if is_named else f"param_groups[{group_index}]['params'][{index}]"

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
                `capturable` that cannot be honoured, or a CUDA graph whose replay would be wrong.
                Nothing is changed then.
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
        if torch.compiler.is_compiling():
            # What is made belongs to the graph: nothing is kept.
            groups = [_in_real_numbers(self._collect_traced(g)) for g in self.param_groups]
            Plan(groups).step_once(groups)
            return
        with self._new_state_only_if_right():
            captured = is_captured()
            if captured:
                self._check_capture()
            key = self._plan_key()
            groups, steps = self._gather(self._plans.get(key))
            if steps is None:
                if captured:
                    self._refuse_capture(capture_refusal(is_first=True))
                self._plans = self._plans_in_use() if key else {}
                plan = self._new_plan(groups)
                steps = plan.gather(groups)
                assert steps is not None
                self._plans[key] = plan
            if captured:
                keep_for_graphs(self._plans[key])
        for group, collected in zip(self.param_groups, groups, strict=True):
            if collected.seeds:
                # In the group, so that a resumed run goes on with other random numbers.
                group["rounded_steps"] = group.get("rounded_steps", 0) + 1
        records = self._plans[key].step(groups, steps, recording=self.record_steps)
        if self.record_steps:
            self.last_step = self._others_records(records) + records if key else records

    def _plan_key(self) -> tuple[int, ...]:
        """Which of the plans is for these groups: the only one, unless their tensors are flat.

        ZeRO steps with one group, or one flat tensor, after the other as if it were all.
        """
        params = [param for group in self.param_groups for param in group["params"][:1]]
        return tuple(id(param) for param in params if self._origins.is_stranger(param))

    def _others_records(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        """The latest records of weights that are stepped by another call."""
        stepped = {id(param) for record in records for param in record.params}
        return [own for own in self.last_step if stepped.isdisjoint(map(id, own.params))]

    def _plans_in_use(self) -> dict[tuple[int, ...], Plan]:
        """The plans of tensors that have state, so that what is let go of takes no memory."""
        present = set(map(id, self.state))
        return {key: plan for key, plan in self._plans.items() if key and present.issuperset(key)}

    def _gather(self, plan: Plan | None) -> tuple[list[Collected], list[Step] | None]:
        """What each group has, and what the plan makes of it, if there is one and it is right."""
        try:
            # Once, whatever comes of it: here processes add up what DTensors' gradients consist of.
            states = _InOrder(self.state)
            groups = [
                self._collect(number, group, states)
                for number, group in enumerate(self.param_groups)
            ]
            if plan is not None and plan.is_real:
                steps = plan.gather(groups)
                if steps is not None:
                    return groups, steps
                plan = None
            groups = list(map(_in_real_numbers, groups))
            return groups, plan.gather(groups) if plan is not None else None
        except RuntimeError:
            # What has no memory to look at, a sparse gradient, is told in words.
            self._check_gradients()
            raise

    def _new_plan(self, groups: Sequence[Collected]) -> Plan:
        flats = [
            (flat, group["scale_invariant"])
            for number, group in enumerate(self.param_groups)
            for flat in self._check_group(number, stepping=True)
        ]
        self._check_gradients()
        params = [
            (p, group["scale_invariant"]) for group in self.param_groups for p in group["params"]
        ]
        return Plan(groups, Reducer.of(params, flats))

    def _check_capture(self) -> None:
        """Whether a CUDA graph may repeat this step, before anything is made for it."""
        for group in self.param_groups:
            names = self._state_names(group)
            states = [self.state.get(p, {}) for p in group["params"] if p.grad is not None]
            refusal = capture_refusal(
                is_first=any(name not in state for state in states for name in names),
                counts_on_host=any("step" in state and state["step"].is_cpu for state in states),
                draws=Precision.of(group).draws,
            )
            self._refuse_capture(refusal)

    def _refuse_capture(self, refusal: str | None) -> None:
        if refusal is not None:
            raise RuntimeError(
                f"a CUDA graph cannot capture this step of {type(self).__name__}: it {refusal}."
            )

    @contextmanager
    def _new_state_only_if_right(self) -> Iterator[None]:
        """Take back state that was made for a step that cannot be taken."""
        self._made: list[tuple[dict[str, Any], str]] = []
        try:
            yield
        except Exception:
            for state, name in self._made:
                state.pop(name, None)
            for group in self.param_groups:
                for param in group["params"]:
                    if param in self.state and not self.state[param]:
                        del self.state[param]
            raise
        finally:
            self._made = []

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """What the state of each of a group's weights consists of."""
        raise NotImplementedError

    def _new_state(self, param: Tensor, group: Mapping[str, Any], name: str) -> Tensor:
        """One of them before the first step."""
        raise NotImplementedError

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        """How the step before projection comes about."""
        raise NotImplementedError

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        *states: list[Tensor],
    ) -> None:
        # torch.compile runs a method of this name as it is instead of tracing it.
        names = self._state_names(group)
        params += [param for param in group["params"] if param.grad is not None]
        grads += [param.grad for param in params]  # type: ignore[misc]
        for param in params:
            state = self.state[param]
            for name, own in zip(names, states, strict=True):
                if name not in state:
                    state[name] = self._new_state(param, group, name)
                own.append(state[name])

    def _collect_traced(self, group: dict[str, Any]) -> Collected:
        if not Precision.of(group).is_full:
            raise RuntimeError(
                "a step with rounding or state_dtype cannot be compiled; call it outside of "
                "torch.compile."
            )
        params: list[Tensor] = []
        grads: list[Tensor] = []
        states: list[list[Tensor]] = [[] for _ in self._state_names(group)]
        self._init_group(group, params, grads, *states)
        return self._collected(group, params, list(grads), states)

    def _collect(self, number: int, group: dict[str, Any], in_order: _InOrder) -> Collected:
        """The weights of a group that have a gradient, or had one; their state made if missing."""
        params, names = group["params"], self._state_names(group)
        grads = list(map(_grad, params))
        positions: Sequence[int] = range(len(params))
        if not all(map(is_not, grads, repeat(None))):
            # Weights that once had a gradient stay in the plan, so that it outlasts a pause.
            positions = [
                i for i in positions if grads[i] is not None or self._is_begun(params[i], names)
            ]
            params = [params[index] for index in positions]
            grads = [grads[index] for index in positions]
        states = in_order.of(params) if names else []
        try:
            columns = [list(map(itemgetter(name), states)) for name in names]
        except KeyError:
            self._complete(params, states, names, group)
            columns = [list(map(itemgetter(name), states)) for name in names]
        precision = Precision.of(group)
        collected = self._collected(group, params, grads, columns)
        if precision.is_full:
            return collected
        collected = replace(collected, compensations=self._compensations(params, precision))
        if not precision.draws:
            return collected
        count = group.get("rounded_steps", 0) + 1
        return replace(
            collected,
            seeds=[
                hash((count, number, i, shard_number(param)))
                for i, param in zip(positions, params, strict=True)
            ],
        )

    def _complete(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        names: Sequence[str],
        group: Mapping[str, Any],
    ) -> None:
        for param, state in zip(params, states, strict=True):
            for name in names:
                if name not in state:
                    state[name] = self._new_state(param, group, name)
                    self._made.append((state, name))

    def _is_begun(self, param: Tensor, names: Sequence[str]) -> bool:
        return bool(names) and names[0] in self.state.get(param, {})

    def _compensations(self, params: Sequence[Tensor], precision: Precision) -> list[Tensor | None]:
        """What rounding has cut off each weight so far, where that is kept."""
        if precision.rounding != "kahan":
            return []
        for param in params:
            is_low = param.dtype != working_dtype(param.dtype)
            if is_low and "compensation" not in self.state[param]:
                self.state[param]["compensation"] = torch.zeros_like(param)
                self._made.append((self.state[param], "compensation"))
        return [
            local_part(self.state[param].get("compensation"), param)
            if param.dtype != working_dtype(param.dtype)
            else None
            for param in params
        ]

    def _collected(
        self,
        group: Mapping[str, Any],
        params: list[Tensor],
        grads: list[Tensor | None],
        states: Sequence[list[Tensor]],
    ) -> Collected:
        """What is found in a group, as memory that can be read."""
        columns = dict(zip(self._state_names(group), states, strict=True))
        state_steps = columns.pop("step", [])
        parts: list[list[Any]] = [params, grads, *columns.values()]
        if not torch.compiler.is_compiling():
            parts = _readable_parts(parts)
        local, local_grads, *moments = parts
        return Collected(
            weights=params,
            params=local,
            grads=local_grads,
            moments=tuple(moments),
            state_steps=state_steps,
            rule=self._rule(group),
            flags=Flags(*map(group.__getitem__, Flags._fields)),
            precision=Precision.of(group),
        )

    def _check_gradients(self) -> None:
        """Find gradients that would make a step fail, before it has changed anything."""
        for group_index, group in enumerate(self.param_groups):
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
        """
        return with_names(super().state_dict(), self.param_groups, self._source)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: a plan is made anew where it is needed."""
        state = super().__getstate__()
        names = names_of(self.param_groups, self._source)
        kept = {name: value for name, value in state.items() if name != "_plans"}
        # The model, which knows its names, may stay behind.
        return kept if names is None else {**kept, "param_names": names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy or a checkpoint."""
        names = state.get("param_names")
        super().__setstate__({k: value for k, value in state.items() if k != "param_names"})
        self._plans = {}
        if not hasattr(self, "record_steps"):
            self._reset_caches()
            self._source = KeptNames.of(names, self.param_groups)
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
        before = list(self.param_groups)
        with adapted_loading(
            self,
            self.state_aliases,
            source=self._source,
            check=self._check_loaded,
            restore=self._restored,
        ):
            super().load_state_dict(state_dict)
        # torch has put other dictionaries in the place of the groups.
        self._origins.carry_over(before, self.param_groups)

    def _check_loaded(self, group_index: int, options: Mapping[str, Any]) -> None:
        self._check_precision(group_index, options)
        for index, param in enumerate(self.param_groups[group_index]["params"]):
            if not is_lazy(param) and has_rows(param.shape):
                vectors_of(options["scale_invariant"], param.shape, self._name(group_index, index))

    def _restored(
        self, name: str, value: Tensor, param: Tensor, group: Mapping[str, Any]
    ) -> Tensor:
        return as_moment(value, param, group["state_dtype"], signed=name not in self._unsigned)


class _InOrder:
    """The state of weights that are asked for in the order in which it was made.

    Then nothing has to be looked up, and a look takes long: a tensor's hash is computed in Python.
    """

    def __init__(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        self._state = state
        self._params, self._states = list(state), list(state.values())
        self._next = 0

    def of(self, params: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The state of the next weights, or of any."""
        begin, end = self._next, self._next + len(params)
        if end <= len(self._params) and all(map(is_, self._params[begin:end], params)):
            self._next = end
            return self._states[begin:end]
        return list(map(self._state.__getitem__, params))


def step_once(collected: Collected) -> None:
    """One step of some weights that no optimizer keeps: the functional forms."""
    groups = [replace(collected, grads=readable(collected.grads))]
    Plan(groups).step_once(groups)


def _readable_parts(parts: list[list[Any]]) -> list[list[Any]]:
    """Weights, gradients and moments in this process's memory."""
    params, grads, *_ = parts
    parts[1] = readable(grads)
    plain = {*map(type, params)} <= PLAIN
    if not plain and any(map(is_sharded, params)):
        return [list(map(local_part, alike, params)) for alike in parts]
    return parts


def _in_real_numbers(group: Collected) -> Collected:
    """The same group with each complex number as a pair of numbers, as in torch.optim.

    It is never projected (`_check_group`).
    """
    if not any(map(Tensor.is_complex, group.params)):
        return group

    def as_real(tensor: Any) -> Any:
        is_complex = tensor is not None and tensor.is_complex()
        return torch.view_as_real(tensor.resolve_conj()) if is_complex else tensor

    columns: list[list[Any]] = [group.params, group.grads, *group.moments]
    params, grads, *moments = ([as_real(tensor) for tensor in column] for column in columns)
    return replace(group, params=params, grads=grads, moments=tuple(moments))
