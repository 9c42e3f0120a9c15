"""Generates random inputs for a Transformers model from its config and its `forward`.

Only reads attributes; Transformers itself is not imported.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["dummy_batches", "explain"]

_TOKENS = 16
_SAMPLES = 8000
_FRAMES = 64
# After halving it five times, a network still has a few neighbouring pixels.
_IMAGE = 64
_REMEDY = (
    "pass inputs=, a batch as in your training loop (on the command line: --inputs "
    "MODULE:FUNCTION, a function that returns one)"
)

Batch = dict[str, Tensor]


def dummy_batches(model: nn.Module, count: int, seed: int) -> Iterator[list[Batch]]:
    """Generate batches for a Transformers model, in several ways, best first.

    Smaller images make the probe faster, but not every model accepts another size than its config
    says. Labels give a loss, but not every model accepts ours.

    Args:
        model: The model.
        count: Number of batches.
        seed: Seed of the random numbers.

    Yields:
        Batches, each time generated in another way.

    Raises:
        ValueError: The model has no config, or it needs an input of an unknown kind.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "main_input_name"):
        raise ValueError(
            f"inputs=None, and {type(model).__name__} is not a Transformers model, whose config "
            f"would say what it takes; {_REMEDY}."
        )
    device = next(model.parameters()).device
    seen = []
    for extent, labelled in ((_IMAGE, True), (None, True), (_IMAGE, False), (None, False)):
        generator = torch.Generator("cpu").manual_seed(seed)
        made = [_Maker(model, config, generator, extent) for _ in range(count)]
        batches = [maker.batch(labelled=labelled) for maker in made]
        look = [(name, tensor.shape) for name, tensor in batches[0].items()]
        if look not in seen:
            seen.append(look)
            yield [{name: t.to(device) for name, t in batch.items()} for batch in batches]


def explain(model: nn.Module, batches: list[Batch], error: Exception) -> ValueError:
    """The error for a model that does not run on generated inputs."""
    shapes = ", ".join(f"{name}: {tuple(tensor.shape)}" for name, tensor in batches[0].items())
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{type(model).__name__} does not run on generated inputs ({shapes}): "
        f"{type(error).__name__}: {reason.rstrip('.')}; {_REMEDY}."
    )


class _Maker:
    """Generates a batch for a model.

    Args:
        model: The model.
        config: Its config.
        generator: Source of the numbers.
        extent: Height and width of images; None takes them from the config.
    """

    def __init__(
        self, model: nn.Module, config: Any, generator: torch.Generator, extent: int | None
    ) -> None:
        self.model, self.config, self.extent = model, config, extent
        self.generator = generator
        # A BatchNorm needs a few different samples.
        by_batch = any(name.endswith("running_mean") for name, _ in model.named_buffers())
        self.size = 4 if by_batch else 2
        self.makers: dict[str, Callable[[], Tensor]] = {
            "input_ids": self.tokens,
            "inputs": self.anything,
            "pixel_values": self.image,
            "pixel_values_videos": self.video,
            "input_values": self.waveform,
            "input_features": self.features,
            "spectrogram": self.spectrogram,
            "bbox": self.boxes,
        }

    def batch(self, *, labelled: bool) -> Batch:
        """Generate the main input, the other required inputs, and labels."""
        model, config = self.model, self.config
        accepted = inspect.signature(model.forward).parameters
        main = str(model.main_input_name)
        if main not in accepted:
            # Some towers keep the default name of all models.
            main = next((name for name in accepted if name in self.makers), main)
        needed = [main, *self._companions(main)]
        needed += [
            name
            for name, parameter in accepted.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        batch = {n: self._made(n) for n in dict.fromkeys(needed) if n == main or n in accepted}
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
            batch["decoder_input_ids"] = self.tokens()
        if labelled and "labels" in accepted:
            labels = self.labels(batch[main])
            if labels is not None:
                batch["labels"] = labels
        return batch

    def _made(self, name: str) -> Tensor:
        try:
            return self.makers[name]()
        except (KeyError, AttributeError, TypeError) as error:
            # The input is unknown, or the config lacks the value that determines its size.
            raise ValueError(
                f"inputs=None, and {type(self.model).__name__} takes {name}, which the probe "
                f"cannot generate; {_REMEDY}."
            ) from error

    def _companions(self, main: str) -> list[str]:
        """The second input of a two-tower model, or the boxes of a layout model."""
        config, found = self.config, []
        if main == "input_ids" and hasattr(config, "text_config"):
            mixed = any(name.startswith("image_token") for name in vars(config))
            # Image and text are encoded separately, as in CLIP, so any text goes with any image.
            if hasattr(config, "vision_config") and not mixed:
                found.append("pixel_values")
            if hasattr(config, "audio_config") and hasattr(config.audio_config, "spec_size"):
                found.append("input_features")
        if hasattr(config, "dim_bbox"):
            found.append("bbox")
        return found

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(self.size, *shape, generator=self.generator)

    def tokens(self, length: int = _TOKENS) -> Tensor:
        """Tokens without special meaning, so that none announces an image."""
        config = self.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        special = {
            value
            for holder in (config, text)
            for name, value in vars(holder).items()
            if name.endswith(("token_id", "token_index")) and isinstance(value, int)
        }
        vocabulary = min(_first(text, "vocab_size") or 1000, 1000)
        ordinary = [token for token in range(vocabulary) if token not in special]
        picked = torch.randint(len(ordinary), (self.size, length), generator=self.generator)
        return torch.tensor(ordinary)[picked]

    def anything(self) -> Tensor:
        """Perceiver's input: tokens, or what its encoder takes."""
        name = type(self.model).__name__
        if name.endswith(("MaskedLM", "SequenceClassification")):
            # Its decoder needs all positions.
            return self.tokens(self.config.max_position_embeddings)
        return self._randn(_TOKENS, self.config.d_model)

    def image(self) -> Tensor:
        """One image per sample, or as many frames as a video model takes."""
        config = self.config
        if main_is_text := self.model.main_input_name == "input_ids":
            config = getattr(config, "vision_config", config)
        whole = _first(config, "image_size") or _IMAGE
        if isinstance(whole, dict):
            whole = whole["height"], whole["width"]
        height, width = (whole, whole) if isinstance(whole, int) else whole
        if self.extent is not None:
            height, width = min(height, self.extent), min(width, self.extent)
        frames = [] if main_is_text else [getattr(config, "num_frames", None)]
        return self._randn(
            *filter(None, frames), _first(config, "num_channels") or 3, height, width
        )

    def video(self) -> Tensor:
        """Frames of the crop size in the config."""
        side = self.config.crop_size
        return self._randn(self.config.frames_per_clip, 3, side, side)

    def boxes(self) -> Tensor:
        """The position of each token on a page."""
        return torch.rand(self.size, _TOKENS, self.config.dim_bbox, generator=self.generator)

    def waveform(self) -> Tensor:
        """Audio samples, or mel bands if the config has them."""
        config = self.config
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
            return self._randn(config.max_length, config.num_mel_bins)
        if hasattr(config, "upsampling_ratios"):
            return self._randn(getattr(config, "audio_channels", 1), _SAMPLES)
        return self._randn(_SAMPLES)

    def features(self) -> Tensor:
        """Frames of mel bands."""
        config = getattr(self.config, "audio_config", self.config)
        if hasattr(config, "spec_size"):
            # CLAP turns them into an image with one channel; these are the frames that fill it.
            frames = config.spec_size * (config.spec_size // config.num_mel_bins)
            return self._randn(1, frames, config.num_mel_bins)
        if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
            # Whisper's encoder halves the frames and needs exactly one per position.
            return self._randn(config.num_mel_bins, 2 * config.max_source_positions)
        width = getattr(config, "feature_projection_input_dim", None) or config.num_mel_bins
        return self._randn(_FRAMES, width)

    def spectrogram(self) -> Tensor:
        """Frames of a vocoder's input."""
        return self._randn(_FRAMES, self.config.model_in_dim)

    def labels(self, main: Tensor) -> Tensor | None:
        """Labels, if it is known what the model's loss takes."""
        name, config, generator = type(self.model).__name__, self.config, self.generator
        if name.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForConditionalGeneration")):
            # The decoder's inputs are passed separately, so labels need not be a shifted copy.
            return self.tokens(main.shape[1] if not main.is_floating_point() else _TOKENS)
        if name.endswith(("SequenceClassification", "ImageClassification", "AudioClassification")):
            return torch.randint(config.num_labels, (self.size,), generator=generator)
        if name.endswith("ForCTC"):
            return torch.randint(1, config.vocab_size, (self.size, 4), generator=generator)
        return None


def _first(config: Any, name: str) -> Any:
    """A value of a config, or of the nearest nested config that has it."""
    waiting = deque([config])
    while waiting:
        part = waiting.popleft()
        value = getattr(part, name, None)
        if value is not None:
            return value
        waiting += [v for v in vars(part).values() if hasattr(v, "model_type")]
    return None
