"""Finds which state of a checkpoint belongs to which weight.

torch.optim matches by position: the third weight of the second group gets the third state of the
second group. If two runs group their weights by different rules, that is the wrong weight. If both
sides have names (`param_names`), names decide. Otherwise the known ways to group these weights are
tried, and the one that fits the sizes of the groups and the shapes of the state is used.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

__all__ = ["KeptNames", "Source", "match_weights", "names_of"]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """What is known about the model that an optimizer's weights belong to."""

    def names(self, params: Sequence[Tensor]) -> list[str] | None:
        """Their names, or None if one of them is unknown."""

    def groupings(self) -> list[list[list[Tensor]]]:
        """The known ways to group these weights; each is a list of groups."""


class KeptNames:
    """The names of weights whose model is not here: those of a copied or unpickled optimizer.

    Keeps no weight alive.
    """

    def __init__(self, names: Sequence[str], params: Sequence[Tensor]) -> None:
        self._known = {id(param): name for param, name in zip(params, names, strict=True)}

    @classmethod
    def of(cls, names: Sequence[str] | None, groups: Sequence[_Group]) -> KeptNames | None:
        """The names of the weights in these groups; None if there are none."""
        params = [param for group in groups for param in group["params"]]
        return None if names is None else cls(names, params)

    def names(self, params: Sequence[Tensor]) -> list[str] | None:
        """The weights' names; None if one is unknown."""
        found = [self._known.get(id(param)) for param in params]
        return None if None in found else found  # type: ignore[return-value]

    def groupings(self) -> list[list[list[Tensor]]]:
        """Empty: only the model knows."""
        return []


_Group = Mapping[str, Any]
_Order = tuple[int, ...]

# torch.compile, activation checkpointing and FSDP add these to the names of wrapped modules.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
# These define a grouping, so after regrouping they come from the optimizer, not the checkpoint.
_OF_THE_GROUPING = ("params", "param_names", "weight_decay", "scale_invariant")
_MISSING = object()

_REMEDY = (
    "Group the weights as the checkpoint does. For a Trainer's checkpoint with AdamW, use "
    "groups=transformers in --optim_args, or get_param_groups(model, weight_decay, "
    'rule="transformers"). For one with --optim adamp, use groups=hf_adamp, the default.'
)


def names_of(groups: Sequence[_Group], source: Source | None = None) -> list[str] | None:
    """The weights' names, from the groups or from their source; None unless they are unique."""
    names: list[str] = []
    for group in groups:
        of_group = group.get("param_names") or []
        if len(of_group) != len(group["params"]):
            break
        names += of_group
    else:
        return _plain(names)
    params = [param for group in groups for param in group["params"]]
    found = source.names(params) if source is not None else None
    return None if found is None else _plain(found)


def _plain(names: Sequence[str]) -> list[str] | None:
    """Names without the parts that wrappers have added; None if two are the same."""
    for wrapper in _WRAPPERS:
        names = [name.replace(wrapper, "") for name in names]
    if all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return list(names) if len(set(names)) == len(names) else None


def match_weights(
    saved: Sequence[_Group],
    groups: Sequence[_Group],
    shapes: Mapping[Hashable, torch.Size | None],
    *,
    saved_names: Sequence[str] | None = None,
    source: Source | None = None,
    trust_positions: bool = False,
) -> list[dict[str, Any]]:
    """The checkpoint's groups, with their weights in the order of the optimizer's groups.

    If the grouping differs, each of the optimizer's groups takes the options on which the groups
    that its weights come from agree. It keeps its own `weight_decay` and `scale_invariant`.

    Args:
        saved: the checkpoint's param groups; `params` holds the keys of its state.
        groups: the optimizer's param groups.
        shapes: the shape of the weight of each key; None or missing if the state does not show it.
        saved_names: names of the checkpoint's weights, in order, if its groups have none.
        source: of the optimizer's weights.
        trust_positions: whether to match by position if the sizes of the groups agree.

    Raises:
        ValueError: if weights and state cannot be matched, or in more than one way.
    """
    unchanged = [dict(group) for group in saved]
    alike = _sizes(saved) == _sizes(groups)
    if alike and trust_positions:
        return unchanged
    theirs = names_of(saved)
    if theirs is None and saved_names and len(saved_names) == sum(_sizes(saved)):
        theirs = _plain(saved_names)
    ours = names_of(groups, source)
    if theirs is not None and ours is not None:
        order = _order_by_name(theirs, ours, saved, groups)
    else:
        groupings = source.groupings() if source is not None else []
        order = _order_by_grouping(saved, groups, shapes, groupings)
    if alike and order == tuple(range(len(order))):
        return unchanged
    logger.info("The checkpoint's param groups differ; each weight's state is matched on its own.")
    return _regrouped(saved, groups, order)


def _order_by_name(
    theirs: Sequence[str], ours: Sequence[str], saved: Sequence[_Group], groups: Sequence[_Group]
) -> _Order:
    """For each of the optimizer's weights, its position in the checkpoint."""
    place = {name: index for index, name in enumerate(theirs)}
    if place.keys() == set(ours):
        return tuple(place[name] for name in ours)
    unknown = [name for name in ours if name not in place]
    gone = sorted(place.keys() - set(ours))
    if _sizes(saved) == _sizes(groups):
        pairs = [(a, b) for a, b in zip(theirs, ours, strict=True) if a != b]
        if all(a in gone and b in unknown for a, b in pairs):
            logger.warning(
                f"The checkpoint has other names for {len(pairs)} weights ({pairs[0][0]} is now "
                f"{pairs[0][1]}); their state is matched by position, as in torch.optim."
            )
            return tuple(range(len(ours)))
    raise ValueError(
        f"the checkpoint has other weights: it lacks {_listed(unknown) or 'none'} and has "
        f"{_listed(gone) or 'none'} in addition; train the same weights, or adapt the checkpoint "
        "in a hook (register_load_state_dict_pre_hook)."
    )


def _order_by_grouping(
    saved: Sequence[_Group],
    groups: Sequence[_Group],
    shapes: Mapping[Hashable, torch.Size | None],
    groupings: Sequence[Sequence[Sequence[Tensor]]],
) -> _Order:
    """For each of the optimizer's weights, its only possible position in the checkpoint."""
    params = [param for group in groups for param in group["params"]]
    keys = [key for group in saved for key in group["params"]]
    sizes = [size for size in _sizes(saved) if size]

    def fits(order: _Order) -> bool:
        found = [shapes.get(keys[place]) for place in order]
        pairs = zip(found, params, strict=True)
        return all(s is None or is_lazy(param) or s == param.shape for s, param in pairs)

    orders: dict[_Order, None] = {}
    in_place = tuple(range(len(params)))
    if sizes == [size for size in _sizes(groups) if size] and fits(in_place):
        # Our own checkpoints have their run's grouping, and a run seldom changes it.
        if all("delta" in group for group in saved):
            return in_place
        orders[in_place] = None
    for grouping in groupings:
        place = {id(param): i for i, param in enumerate(p for group in grouping for p in group)}
        if [len(group) for group in grouping if group] == sizes and place.keys() == set(
            map(id, params)
        ):
            order = tuple(place[id(param)] for param in params)
            if fits(order):
                orders[order] = None
    if not orders:
        raise ValueError(_mismatch(saved, groups))
    if len(orders) > 1:
        raise ValueError(
            "the checkpoint's param groups fit these weights in more than one way, and it has no "
            f"names that would decide. {_REMEDY}"
        )
    return next(iter(orders))


def _regrouped(
    saved: Sequence[_Group], groups: Sequence[_Group], order: _Order
) -> list[dict[str, Any]]:
    homes = [(key, group) for group in saved for key in group["params"]]
    chosen = iter(order)
    regrouped = []
    for now in groups:
        found = [homes[next(chosen)] for _ in now["params"]]
        sources = list({id(group): group for _, group in found}.values())
        options: dict[str, Any] = {}
        for name in {name: None for source in sources for name in source}:
            values = [source.get(name, _MISSING) for source in sources]
            if name not in _OF_THE_GROUPING and all(_same(value, values[0]) for value in values):
                options[name] = values[0]
        kept = {name: now[name] for name in _OF_THE_GROUPING if name in now}
        regrouped.append({**options, **kept, "params": [key for key, _ in found]})
    return regrouped


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return bool(one == other)


def _mismatch(saved: Sequence[_Group], groups: Sequence[_Group]) -> str:
    """What differs, starting with torch's own words, and what to do."""
    theirs, ours = _sizes(saved), _sizes(groups)
    if len(theirs) != len(ours):
        what = "loaded state dict has a different number of parameter groups"
    elif theirs != ours:
        what = (
            "loaded state dict contains a parameter group that doesn't match the size of "
            "optimizer's group"
        )
    else:
        what = "loaded state dict has state whose shapes differ from the optimizer's weights"
    sizes = f"{what}: it has groups of {_listed(theirs)} weights, the optimizer {_listed(ours)}"
    if sum(theirs) != sum(ours):
        return f"{sizes}; train the same weights, or adapt it in register_load_state_dict_pre_hook."
    return f"{sizes}. {_REMEDY}"


def _sizes(groups: Sequence[_Group]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:5]))
    return f"{shown}, … ({len(items)})" if len(items) > 5 else shown
