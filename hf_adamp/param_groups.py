"""Decides which parameters get weight decay.

Weight decay shrinks a weight towards zero. This regularises a matrix, but a bias, a normalization's
gain or a token has no reason to be near zero. Transformers' `Trainer` recognises such parameters by
names like `norm` and `bias`, so it decays all BatchNorm weights of a ResNet. Here the type of the
module decides, then the shape. The only name that counts is torch's own `bias`.
"""

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from hf_adamp.granularities import Granularities, declared_weights
from hf_adamp.optim.checkpoint_matching import KeptNames, Source, names_of
from hf_adamp.optim.options import real_number
from hf_adamp.optim.scale_invariance import ScaleInvariant

__all__ = ["ParamGroups", "WeightsOf", "decay_parameter_names", "get_param_groups"]

DecayRule = Callable[[str, nn.Parameter, nn.Module], bool]

# The private bases cover BatchNorm, InstanceNorm, SyncBatchNorm and their lazy forms at once.
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_MATRICES = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
# The names of matrices in torch's own modules; weight_norm and spectral_norm append `_v`, `_orig`.
_MATRIX_NAME = re.compile(
    r"(weight(_(ih|hh|hr)(_l\d+)?(_reverse)?)?|(in|q|k|v)_proj_weight)(_v|_orig)?"
)
_BIAS_WORD = re.compile(r"(^|_)bias(es)?(_|$)")
# LlamaRMSNorm and LayerNormalization are norms; a NormalEstimationHead is not.
_NORM_CLASS = re.compile(r"norm(?!al(?!i[sz]))", re.IGNORECASE)


class ParamGroups(list[dict[str, Any]]):
    """A list of param groups that knows the model of its weights, for checkpoints.

    Attributes:
        source: gives the weights' names, and the groups that other rules would make.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], model: nn.Module) -> None:
        super().__init__(groups)
        self.source: Source | None = WeightsOf(model)

    @classmethod
    def named(cls, groups: Iterable[dict[str, Any]], names: Sequence[str] | None) -> "ParamGroups":
        """The groups of a copy or a pickle, without the model; names are in their order."""
        copied = cls.__new__(cls)
        copied.extend(groups)
        copied.source = KeptNames.of(names, copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return ParamGroups.named, (list(self), names_of(self, self.source))


class WeightsOf:
    """What a checkpoint needs to know about a model's weights; does not keep the model alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def names(self, params: Sequence[Tensor]) -> list[str] | None:
        """The weights' names in their order, or None if one is not in the model."""
        model = self._model()
        known = {} if model is None else {id(p): name for name, p in model.named_parameters()}
        names = [known.get(id(param)) for param in params]
        return None if None in names else cast(list[str], names)

    def groupings(self) -> list[list[list[Tensor]]]:
        """The groups of both rules, and all weights in one group."""
        model = self._model()
        if model is None:
            return []
        ways: list[list[list[Tensor]]] = [[[p for p in model.parameters() if p.requires_grad]]]
        for rule in ("hf_adamp", "transformers"):
            decisions = list(_decisions(model, rule))
            ways.append(
                [[p for _, p, decays in decisions if decays is want] for want in (True, False)]
            )
        return ways


def get_param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    rule: str | DecayRule = "hf_adamp",
    scale_invariance: Granularities | None = None,
) -> ParamGroups:
    """Split a model's trainable parameters into a group with weight decay and one without.

    A tied parameter appears once, a frozen one not at all. Each group keeps the order of
    `model.named_parameters()`. A group without parameters is left out.
    `decay_parameter_names` lists the clauses of the rule "hf_adamp".

    Args:
        model: The model, with its adapters and frozen weights in place, before any wrapper
            that flattens parameters (FSDP1).
        weight_decay: Decay of the parameters that get one, finite and >= 0.
        rule: "hf_adamp"; "transformers" for the decision of the installed Transformers' `Trainer`;
            or a callable that receives a parameter's name, the parameter and its module (for a
            parametrized weight, the module it was registered on), and returns True for decay.
        scale_invariance: the granularity of scale invariance, for AdamP and SGDP: a mapping from
            weight names to values of `scale_invariant`, or an object with such a mapping in
            `granularities`, such as the report of `probe`. The value None means not invariant
            (False). Weights that it does not name, and weights with fewer than two dimensions, get
            "auto". By default the groups do not set `scale_invariant`.

    Returns:
        One or two groups with `params` and `weight_decay`, ready for any torch optimizer. With
        `scale_invariance` there is a group for each of its values, with this `scale_invariant`.
        The list also passes the weights' names to AdamP and SGDP, which match checkpoints by them.

    Raises:
        TypeError: `model` is not a module, `weight_decay` not a number, `scale_invariance` not a
            mapping, or a callable rule returns anything but a bool.
        ValueError: `weight_decay` is negative or not finite, `rule` is an unknown name, no
            parameter is trainable, or clause 7 would decide on a lazy parameter, which has no shape
            yet; `scale_invariance` has an unknown name, an invalid value, heads that do not divide
            a weight's rows, or two values for one weight.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> groups = get_param_groups(model, weight_decay=0.01)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.01, 1), (0.0, 3)]

    Source: docs/parameter-groups.md.
    """
    weight_decay = real_number("weight_decay", weight_decay)
    decisions = list(_decisions(model, rule))
    declared = {} if scale_invariance is None else declared_weights(model, scale_invariance)
    groups: dict[tuple[bool, ScaleInvariant], dict[str, Any]] = {}
    for _, parameter, decays in sorted(decisions, key=lambda decision: not decision[2]):
        invariant = declared.get(id(parameter), "auto")
        options: dict[str, Any] = {"weight_decay": weight_decay if decays else 0.0}
        if scale_invariance is not None:
            options["scale_invariant"] = invariant
        group = groups.setdefault((decays, invariant), {"params": [], **options})
        group["params"].append(parameter)
    return ParamGroups(groups.values(), model)


def decay_parameter_names(model: nn.Module, *, rule: str | DecayRule = "hf_adamp") -> list[str]:
    """Name the trainable parameters that get weight decay, in the model's order.

    The decision is that of `get_param_groups`; comparing two rules by their names shows what each
    does to a model. The rule "hf_adamp" asks, in this order; the first clause that applies decides:

    1. marked `_no_weight_decay` by the model's author: no decay;
    2. the word `bias` in the parameter's own name: no decay;
    3. the gain of `weight_norm`, as hook or as parametrization: no decay;
    4. a parameter of one of torch's normalization modules: no decay;
    5. a weight of a linear, embedding, convolution, recurrent or attention module: decay;
    6. a parameter of a module without children whose class, or a base class, is named after a
       norm: no decay;
    7. fewer than two dimensions larger than one (gains, class tokens): no decay;
    8. everything else: decay.

    Args:
        model: The model; a tied parameter is named once, by its first name.
        rule: As in `get_param_groups`.

    Returns:
        Names as in `model.named_parameters()`.

    Raises:
        TypeError: As in `get_param_groups`.
        ValueError: As in `get_param_groups`.

    Example:
        >>> decay_parameter_names(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
        ['0.weight']

    Source: docs/parameter-groups.md.
    """
    return [name for name, _, decays in _decisions(model, rule) if decays]


def _decisions(model: nn.Module, rule: str | DecayRule) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield name, parameter and decision for every trainable parameter."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        total = sum(1 for _ in model.parameters())
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter (0 of {total} require a "
            "gradient); unfreeze some with requires_grad_(True)."
        )
    decide = _resolve(model, rule)
    modules = dict(model.named_modules())
    for name, parameter in trainable:
        decays = decide(name, parameter, _owner(name, modules))
        if not isinstance(decays, bool):
            raise TypeError(f"rule returned {decays!r} for {name}; it must return a bool.")
        yield name, parameter, decays


def _resolve(model: nn.Module, rule: str | DecayRule) -> DecayRule:
    """Turn the name of a rule into the rule."""
    if callable(rule):
        return rule
    if rule == "hf_adamp":
        return _decays
    if rule == "transformers":
        names = _transformers_names(model)
        return lambda name, parameter, module: name in names
    raise ValueError(
        f"rule={rule!r} is unknown; known rules: hf_adamp, transformers, or a callable "
        "(name, parameter, module) -> bool."
    )


def _transformers_names(model: nn.Module) -> set[str]:
    """Ask the installed Transformers which parameters its `Trainer` decays."""
    # Imported here only: everything else works with torch alone. Asked rather than rewritten,
    # because the rule has changed between releases of Transformers and will again.
    from transformers import Trainer  # noqa: PLC0415

    # The method never uses its trainer, and building one would need a model on a device.
    return set(Trainer.get_decay_parameter_names(None, model))


def _owner(name: str, modules: dict[str, nn.Module]) -> nn.Module:
    """Find the module that a parameter belongs to, past a parametrization's containers."""
    holder = name.rpartition(".")[0]
    if isinstance(modules[holder], parametrize.ParametrizationList):
        return modules[holder.rpartition("parametrizations")[0].rstrip(".")]
    return modules[holder]


def _decays(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Decide for one parameter; the clauses are numbered in `decay_parameter_names`."""
    if getattr(parameter, "_no_weight_decay", False):
        return False
    tensor, is_gain = _tensor_name(name, module)
    if is_gain or _BIAS_WORD.search(tensor) or isinstance(module, _NORMS):
        return False
    if isinstance(module, _MATRICES) and _MATRIX_NAME.fullmatch(tensor):
        return True
    is_leaf = next(module.children(), None) is None
    if is_leaf and any(_NORM_CLASS.search(base.__name__) for base in type(module).__mro__):
        return False
    if is_lazy(parameter):
        raise ValueError(
            f"{name} has no shape yet, and its module ({type(module).__name__}) does not show "
            "whether it is a matrix; run the model on one batch before you group its weights."
        )
    # ZeRO-3 leaves an empty shard in `shape` and the full shape in `ds_shape`.
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return sum(size > 1 for size in shape) >= 2


def _tensor_name(name: str, module: nn.Module) -> tuple[str, bool]:
    """Return the name a tensor has on its module, and whether it is a weight_norm gain."""
    path = name.split(".")
    # X.parametrizations.weight.original0 is part of X.weight; a parameter that the
    # parametrization brings along (X.parametrizations.weight.0.scale) has its own module.
    if len(path) >= 3 and path[-3] == "parametrizations" and parametrize.is_parametrized(module):
        steps = cast(nn.ModuleDict, module.parametrizations)[path[-2]].children()
        is_normed = any(isinstance(step, _WeightNorm) for step in steps)
        return path[-2], is_normed and path[-1] == "original0"
    hooks = module._forward_pre_hooks.values()
    gains = {f"{hook.name}_g" for hook in hooks if isinstance(hook, WeightNorm)}
    return path[-1], path[-1] in gains
