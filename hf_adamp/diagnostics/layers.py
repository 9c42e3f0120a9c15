"""Which layers of a Transformers model are alike, and a config with one of each kind.

Works on models on the meta device, whose layers have classes and shapes but no values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Cut", "cut_layers"]

# The names that Transformers' configs give to the number of layers.
_DEPTHS = {
    "decoder_layers",
    "encoder_layers",
    "n_layer",
    "n_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_hidden_layers",
    "num_layers",
}


@dataclass(frozen=True)
class Cut:
    """A config with fewer layers.

    Attributes:
        config: The config.
        small: Its model, on the meta device.
        kept: For each list of layers by name, the layer of the small model that stands for each
            layer of the whole one.
    """

    config: Any
    small: nn.Module
    kept: dict[str, list[int]]

    def stand_in(self, name: str) -> str:
        """The name in the small model of the weight that stands for this one of the whole model."""
        for prefix, places in self.kept.items():
            if name.startswith(f"{prefix}."):
                index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
                return f"{prefix}.{places[int(index)]}.{rest}"
        return name

    @property
    def notes(self) -> list[str]:
        """What was left out, a sentence for each list of layers."""
        return [
            f"Of the {len(places)} layers of {prefix}, {max(places) + 1} were probed, at least one "
            "of each kind; the others have their results."
            for prefix, places in self.kept.items()
            if len(places) > max(places) + 1
        ]


def cut_layers(config: Any, whole: nn.Module, build: Callable[[Any], nn.Module]) -> Cut:
    """Keep one layer of each kind; where the config cannot say which, the first few layers.

    Layers are of one kind where their modules, shapes and entries in the config's lists (such as
    `layer_types`) are the same. A cut after which a kind is missing is not made.

    Args:
        config: The config of the whole model.
        whole: The whole model, on the meta device.
        build: Makes the model of a config, on the meta device.
    """
    lists = {
        name: [_signature(layer) for layer in module]
        for name, module in whole.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    }
    for prefix in (False, True):
        cut = copy.deepcopy(config)
        kept: dict[str, list[int]] = {}
        for part in _parts(cut):
            for depth in {v for k, v in vars(part).items() if k in _DEPTHS and isinstance(v, int)}:
                alike = {name: kinds for name, kinds in lists.items() if len(kinds) == depth}
                if depth > 1 and alike:
                    places = _shorten(part, depth, list(alike.values()), prefix=prefix)
                    kept |= dict.fromkeys(alike, places)
        try:
            small = build(cut)
        except ValueError:
            # What the config says of its layers no longer goes together.
            continue
        if _has_every_kind(small, lists, kept):
            return Cut(cut, small, kept)
    return Cut(config, whole, {})


def _parts(config: Any) -> Iterator[Any]:
    """The config and the configs within it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _parts(value)


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    return modules, tuple((name, p.shape) for name, p in layer.named_parameters())


def _shorten(part: Any, depth: int, lists: list[list[Any]], *, prefix: bool) -> list[int]:
    """Write the smaller depth into a config; return where each layer's kind is now."""
    entries = {
        key: list(value)
        for key, value in vars(part).items()
        if isinstance(value, (list, tuple)) and len(value) == depth
    }
    kinds = [
        repr((columns, [e[i] for e in entries.values()]))
        for i, *columns in zip(range(depth), *lists, strict=True)
    ]
    chosen = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    if prefix:
        chosen = list(range(max(chosen) + 1))
    for key, value in entries.items():
        setattr(part, key, [value[i] for i in chosen])
    for key in [k for k, v in vars(part).items() if k in _DEPTHS and v == depth]:
        setattr(part, key, len(chosen))
    return [chosen.index(kinds.index(kind)) for kind in kinds]


def _has_every_kind(
    small: nn.Module, lists: dict[str, list[Any]], kept: dict[str, list[int]]
) -> bool:
    modules = dict(small.named_modules())
    for name, places in kept.items():
        layers = modules.get(name)
        if not isinstance(layers, nn.ModuleList) or len(layers) != max(places) + 1:
            return False
        signatures = [_signature(layer) for layer in layers]
        if any(signatures[place] != kind for place, kind in zip(places, lists[name], strict=True)):
            return False
    return True
