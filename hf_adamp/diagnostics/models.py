"""Builds a Transformers model by name, small enough to probe: from the Hub, a folder or a config.

Transformers is imported when a model is requested.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_adamp.diagnostics.layers import Cut, cut_layers
from hf_adamp.diagnostics.probe import ProbeReport, WeightReport, probe

__all__ = ["inspect_model", "load_config"]

# A bare model type gets the first of these heads that supports it.
_HEADS = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForZeroShotImageClassification",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForDepthEstimation",
    "AutoModelForObjectDetection",
    "AutoModelForUniversalSegmentation",
    "AutoModelForSemanticSegmentation",
    "AutoModelForPreTraining",
)
_VOCABULARY = 1024
# Sizes that make a model large, starting with those that change the kinds of weights least.
_SIZES = ("num_local_experts", "n_routed_experts", "num_experts", "vocab_size", "intermediate_size")


def inspect_model(
    name: str,
    *,
    pretrained: bool = False,
    all_layers: bool = False,
    settings: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    inputs: Any = None,
    **options: Any,
) -> ProbeReport:
    """Probe a Transformers model by name.

    Without `pretrained` only the config is read. The model is built with random weights, one layer
    of each kind and a vocabulary of 1024; widths do not change. The report lists the weights of the
    whole model: a layer that was left out gets the result of the layer like it.

    Args:
        name: An id on the Hub, a folder with a `config.json`, such a file, or a model type
            (`resnet`, `qwen3`), which means its default config.
        pretrained: Load the pretrained weights of all layers.
        all_layers: Build all layers and the whole vocabulary.
        settings: Values to change in the config, by name.
        revision: Revision of a model on the Hub.
        trust_remote_code: Run the code that comes with the model.
        inputs: As in `probe`, or a function that takes the model and returns them.
        options: Options of `probe`: `gradients`, `delta`, `seed`, `progress`.

    Raises:
        ValueError: The model does not exist or cannot be built, a setting is unknown, or inputs
            cannot be generated.
        MemoryError: The model needs more memory than is free.

    Example:
        >>> inspect_model("resnet").granularities["resnet.embedder.embedder.convolution.weight"]
        'row'

    Source: docs/which-models.md.
    """
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = load_config(name, **hub)
    if settings:
        config = _with_settings(config, _values_of(name, hub), settings)
    if pretrained:
        model = _model_class(config).from_pretrained(name, config=config, **hub)
        return probe(model, _inputs_for(model, inputs), **options)
    plan = _plan(config, whole=all_layers)
    torch.manual_seed(options.get("seed", 0))
    model = _build(plan.config)
    report = probe(model, _inputs_for(model, inputs), **options)
    notes = (*report.notes, "The weights are random; the pretrained ones were not loaded.")
    return replace(report, weights=_whole(report, plan), notes=(*notes, *plan.notes))


def _inputs_for(model: nn.Module, inputs: Any) -> Any:
    return inputs(model) if callable(inputs) and not isinstance(inputs, nn.Module) else inputs


def load_config(name: str, **hub: Any) -> Any:
    """Find the config of a model by its name; see `inspect_model`."""
    transformers = import_module("transformers")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"the folder {name} has no config.json; give the folder of one model.")
    if not path.exists() and name in transformers.CONFIG_MAPPING:
        return transformers.AutoConfig.for_model(name)
    try:
        return transformers.AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError, KeyError) as error:
        if path.exists():
            raise ValueError(f"{name} holds no config that Transformers reads: {error}") from error
        raise ValueError(
            f"cannot find {name!r}: there is no such folder or file here, Transformers "
            f"{transformers.__version__} knows no such model type, and the Hub did not give its "
            f"config ({_first_line(error)}). Check the spelling and the connection; offline, "
            "download the model's config.json and give its path."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _values_of(name: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The values in a model's config file, before defaults are derived; empty for a model type."""
    transformers = import_module("transformers")
    if not Path(name).exists() and name in transformers.CONFIG_MAPPING:
        return {}
    values: dict[str, Any] = transformers.PretrainedConfig.get_config_dict(name, **hub)[0]
    return values


def _with_settings(config: Any, values: dict[str, Any], settings: Mapping[str, Any]) -> Any:
    """The config rebuilt with other values, so that derived values change with them."""
    values = copy.deepcopy(values)
    for key, value in settings.items():
        *path, last = key.split(".")
        part, place = config, values
        for step in path:
            part = getattr(part, step, None)
            if not isinstance(place.get(step), dict):
                place[step] = {}
            place = place[step]
        if not hasattr(part, last):
            raise ValueError(
                f"{type(config).__name__} has no {key!r} to set; it has "
                f"{', '.join(sorted(k for k in config.to_dict() if not k.startswith('_')))}."
            )
        is_float = isinstance(getattr(part, last), float) and type(value) is int
        place[last] = float(value) if is_float else value
    try:
        # Newer configs check the types of their values, with errors of their own.
        return type(config).from_dict(values)
    except Exception as error:
        told = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ValueError(f"{type(config).__name__} cannot have {told}: {error}") from error


def _model_class(config: Any) -> Any:
    """The class named in the config, or the first head of `_HEADS` that supports its type."""
    transformers = import_module("transformers")
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for head in _HEADS:
        found = getattr(transformers, head)._model_mapping.get(type(config), None)
        if found is not None:
            return found[0] if isinstance(found, (list, tuple)) else found
    raise ValueError(
        f"Transformers has no model for {type(config).__name__}; load it yourself and call "
        "hf_adamp.probe(model, inputs)."
    )


def _build(config: Any) -> nn.Module:
    config = copy.deepcopy(config)
    cls = _model_class(config)
    try:
        model: nn.Module = cls(config)
    except (NotImplementedError, MemoryError):
        raise
    except Exception as error:
        # Some default configs cannot be built: they lack a value that every checkpoint has.
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"{cls.__name__} cannot be built from this config ({type(error).__name__}: {reason}); "
            "set what is missing with --set KEY=VALUE, or give the config.json of a checkpoint."
        ) from error
    return model


def _on_meta(config: Any) -> nn.Module:
    with torch.device("meta"):
        return _build(config)


@dataclass(frozen=True)
class _Plan:
    """What is built instead of the whole model."""

    config: Any
    cut: Cut | None
    shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def _plan(config: Any, *, whole: bool) -> _Plan:
    try:
        model = _on_meta(config)
    except (ValueError, NotImplementedError):
        # Some models compute values in their constructor, which fails on the meta device.
        return _Plan(config, None, {}, ())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if whole:
        _check_memory(shapes, config)
        return _Plan(config, None, shapes, ())
    cut = cut_layers(config, model, _on_meta)
    notes = cut.notes
    vocabulary = getattr(cut.config, "vocab_size", None)
    if isinstance(vocabulary, int) and vocabulary > 8 * _VOCABULARY:
        notes.append(f"The vocabulary was cut from {vocabulary} to {_VOCABULARY}.")
        _cut_vocabulary(cut.config)
    small = {name: tuple(p.shape) for name, p in _on_meta(cut.config).named_parameters()}
    _check_memory(small, config)
    return _Plan(cut.config, cut, shapes, tuple(notes))


def _cut_vocabulary(config: Any) -> None:
    config.vocab_size = _VOCABULARY
    for name, value in list(vars(config).items()):
        if name.endswith("token_id") and isinstance(value, int) and value >= _VOCABULARY:
            setattr(config, name, 0)


def _check_memory(shapes: Mapping[str, tuple[int, ...]], config: Any) -> None:
    """Raise if weights, their float64 copies and two gradients would not fit in memory."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    needed = 12 * sum(sizes) + 16 * max(sizes, default=0)
    free = _free_memory()
    if free is None or needed <= free:
        return
    sizes_of = {key: getattr(config, key, None) for key in _SIZES}
    smaller = [f"--set {k}={n // 4}" for k, n in sizes_of.items() if isinstance(n, int) and n > 8]
    advice = f", as in {smaller[0]}" if smaller else ""
    raise MemoryError(
        f"the probe needs {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free; make the "
        f"model smaller{advice}."
    )


def _free_memory() -> int | None:
    """Free memory in bytes, including reclaimable memory; None if it is unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _whole(report: ProbeReport, plan: _Plan) -> dict[str, WeightReport]:
    """Give every weight of the whole model the result of the weight probed in its place."""
    if plan.cut is None:
        return dict(report.weights)
    weights = {}
    for name, shape in plan.shapes.items():
        probed = report.weights.get(plan.cut.stand_in(name))
        if probed is None:
            continue
        weights[name] = replace(
            probed,
            name=name,
            shape=shape,
            groups=_regrouped(probed.groups, probed.shape[0], shape[0]),
            with_bias=_regrouped(probed.with_bias, probed.shape[0], shape[0]),
            # With another number of rows, the sizes of the groups are unknown.
            sizes=probed.sizes if probed.shape[0] == shape[0] else None,
            like=None if probed.name == name else probed.name,
        )
    return weights


def _regrouped(groups: int | None, probed_rows: int, rows: int) -> int | None:
    """One group per row remains one group per row if the whole weight has more rows."""
    return rows if groups == probed_rows else groups
