"""Random inputs for a model of Transformers, made up from its config and its `forward`.

Reads attributes only; Transformers itself is not imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_adamp.diagnostics.probe.sandbox import in_float64

__all__ = ["dummy_batches"]

_TOKENS = 16
_SAMPLES = 8000
_FRAMES = 64
# What is left of it behind a network that halves it five times still has some neighbours.
_IMAGE = 64


def dummy_batches(model: nn.Module, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Make up batches for a model of Transformers, with labels where its loss is known.

    Args:
        model: The model.
        count: Number of batches.
        seed: Of the random numbers.

    Raises:
        ValueError: The model has no config, or its main input is of an unknown kind.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "main_input_name"):
        raise ValueError(
            f"inputs=None, and {type(model).__name__} is no model of Transformers whose config "
            "tells what it takes; pass inputs=, a batch as your training loop has it."
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    # The smaller the images the faster the probe, but not every model takes another size.
    small = _takes(model, _batch(model, config, generator, _IMAGE))
    device = next(model.parameters()).device
    extent = _IMAGE if small else None
    return [
        {name: tensor.to(device) for name, tensor in batch.items()}
        for batch in (_batch(model, config, generator, extent) for _ in range(count))
    ]


def _takes(model: nn.Module, batch: dict[str, Tensor]) -> bool:
    """Whether a model takes images of this size; true where it takes no images."""
    if "pixel_values" not in batch:
        return True
    device = next(model.parameters()).device
    batches = [{name: tensor.to(device) for name, tensor in batch.items()}]
    with in_float64(model, batches, torch.Generator("cpu")), torch.no_grad():
        try:
            model(**batches[0])
        except (ValueError, RuntimeError):
            return False
    return True


def _batch(
    model: nn.Module, config: Any, generator: torch.Generator, extent: int | None
) -> dict[str, Tensor]:
    """Make up one batch; images are of `extent`, or as large as the config says."""
    accepted = inspect.signature(model.forward).parameters
    makers: dict[str, Callable[[Any, int, torch.Generator], Tensor]] = {
        "input_ids": _tokens,
        "pixel_values": partial(_image, extent=extent),
        "input_values": _waveform,
        "input_features": _features,
        "spectrogram": _spectrogram,
    }
    main = str(model.main_input_name)
    if main not in makers:
        raise ValueError(
            f"inputs=None, and {type(model).__name__} takes {main}, which the probe cannot make "
            "up; pass inputs=, a batch as your training loop has it."
        )
    # Norms by the batch need a few samples to tell from each other.
    size = 4 if any(name.endswith("running_mean") for name, _ in model.named_buffers()) else 2
    batch = {main: makers[main](config, size, generator)}
    if main == "input_ids" and "pixel_values" in accepted and _is_dual(config):
        batch["pixel_values"] = _image(config.vision_config, size, generator, extent)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        batch["decoder_input_ids"] = _tokens(config, size, generator)
    labels = _labels(model, config, batch, generator) if "labels" in accepted else None
    return batch if labels is None else {**batch, "labels": labels}


def _is_dual(config: Any) -> bool:
    """Whether image and text are encoded apart, as in CLIP: any text goes with any image."""
    mixed = any(name.startswith("image_token") for name in vars(config))
    return hasattr(config, "text_config") and hasattr(config, "vision_config") and not mixed


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _tokens(config: Any, size: int, generator: torch.Generator) -> Tensor:
    """Tokens without special meaning, so that no image is expected behind any."""
    text = _text(config)
    special = {
        value
        for holder in (config, text)
        for name, value in vars(holder).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    ordinary = [t for t in range(min(text.vocab_size, 1000)) if t not in special]
    picked = torch.randint(len(ordinary), (size, _TOKENS), generator=generator)
    return torch.tensor(ordinary)[picked]


def _image(config: Any, size: int, generator: torch.Generator, extent: int | None) -> Tensor:
    whole = getattr(config, "image_size", None) or _IMAGE
    height, width = (whole, whole) if isinstance(whole, int) else whole
    if extent is not None:
        height, width = min(height, extent), min(width, extent)
    channels = getattr(config, "num_channels", 3)
    return torch.randn(size, channels, height, width, generator=generator)


def _waveform(config: Any, size: int, generator: torch.Generator) -> Tensor:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return torch.randn(size, config.max_length, config.num_mel_bins, generator=generator)
    if hasattr(config, "upsampling_ratios"):
        return torch.randn(
            size, getattr(config, "audio_channels", 1), _SAMPLES, generator=generator
        )
    return torch.randn(size, _SAMPLES, generator=generator)


def _features(config: Any, size: int, generator: torch.Generator) -> Tensor:
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        # Whisper's encoder halves the frames and takes exactly as many as it has positions.
        frames = 2 * config.max_source_positions
        return torch.randn(size, config.num_mel_bins, frames, generator=generator)
    width = getattr(config, "feature_projection_input_dim", None) or config.num_mel_bins
    return torch.randn(size, _FRAMES, width, generator=generator)


def _spectrogram(config: Any, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, _FRAMES, config.model_in_dim, generator=generator)


def _labels(
    model: nn.Module, config: Any, batch: dict[str, Tensor], generator: torch.Generator
) -> Tensor | None:
    name = type(model).__name__
    size = len(next(iter(batch.values())))
    if name.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForConditionalGeneration")):
        # The decoder's inputs are given, so labels and inputs need not be shifted copies.
        return _tokens(config, size, generator)
    if name.endswith(("SequenceClassification", "ImageClassification", "AudioClassification")):
        return torch.randint(config.num_labels, (size,), generator=generator)
    if name.endswith("ForCTC"):
        return torch.randint(1, config.vocab_size, (size, 4), generator=generator)
    return None
