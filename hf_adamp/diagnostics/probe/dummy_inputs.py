"""Random inputs for a model of Transformers, made up from its config and its `forward`.

Reads attributes only; Transformers itself is not imported.
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
# What is left of it behind a network that halves it five times still has some neighbours.
_IMAGE = 64
_REMEDY = (
    "pass inputs=, a batch as your training loop has it (on the command line --inputs "
    "MODULE:FUNCTION, a function that returns one)"
)

Batch = dict[str, Tensor]


def dummy_batches(model: nn.Module, count: int, seed: int) -> Iterator[list[Batch]]:
    """Make up batches for a model of Transformers, in several ways: the best first.

    The smaller the images the faster the probe, but not every model takes another size than its
    config says. Labels make a loss, but not every model takes ours.

    Args:
        model: The model.
        count: Number of batches.
        seed: Of the random numbers.

    Yields:
        Batches made in another way than before.

    Raises:
        ValueError: The model has no config, or an input that it needs is of an unknown kind.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "main_input_name"):
        raise ValueError(
            f"inputs=None, and {type(model).__name__} is no model of Transformers whose config "
            f"tells what it takes; {_REMEDY}."
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
    """What to say where a model does not run on what was made up for it."""
    shapes = ", ".join(f"{name}: {tuple(tensor.shape)}" for name, tensor in batches[0].items())
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{type(model).__name__} does not run on the inputs made up for it ({shapes}): "
        f"{type(error).__name__}: {reason.rstrip('.')}; {_REMEDY}."
    )


class _Maker:
    """Makes up a batch for a model.

    Args:
        model: The model.
        config: Its config.
        generator: Source of the numbers.
        extent: Height and width of images; None: as the config says.
    """

    def __init__(
        self, model: nn.Module, config: Any, generator: torch.Generator, extent: int | None
    ) -> None:
        self.model, self.config, self.extent = model, config, extent
        self.generator = generator
        # Norms by the batch need a few samples to tell from each other.
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
        """Make it: the main input, those without which nothing goes, and labels."""
        model, config = self.model, self.config
        accepted = inspect.signature(model.forward).parameters
        main = str(model.main_input_name)
        if main not in accepted:
            # Some towers keep the name that all models have by default.
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
            # Unknown, or the config does not have what its size follows from.
            raise ValueError(
                f"inputs=None, and {type(self.model).__name__} takes {name}, which the probe "
                f"cannot make up; {_REMEDY}."
            ) from error

    def _companions(self, main: str) -> list[str]:
        """What a model with two towers compares with its main input; where boxes stand."""
        config, found = self.config, []
        if main == "input_ids" and hasattr(config, "text_config"):
            mixed = any(name.startswith("image_token") for name in vars(config))
            # Image and text are encoded apart, as in CLIP: any text goes with any image.
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
        """Tokens without special meaning, so that no image is expected behind any."""
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
        """For Perceiver: tokens, or what its encoder takes."""
        name = type(self.model).__name__
        if name.endswith(("MaskedLM", "SequenceClassification")):
            # Its decoder asks for as many positions as there are.
            return self.tokens(self.config.max_position_embeddings)
        return self._randn(_TOKENS, self.config.d_model)

    def image(self) -> Tensor:
        """One image a sample, or as many frames as a model of films takes."""
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
        """Frames as large as the config crops them to."""
        side = self.config.crop_size
        return self._randn(self.config.frames_per_clip, 3, side, side)

    def boxes(self) -> Tensor:
        """Where each token stands on a page."""
        return torch.rand(self.size, _TOKENS, self.config.dim_bbox, generator=self.generator)

    def waveform(self) -> Tensor:
        """Samples of sound, or mel bands where the config speaks of them."""
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
            # CLAP makes an image of them: as many frames as fill it, in one channel.
            frames = config.spec_size * (config.spec_size // config.num_mel_bins)
            return self._randn(1, frames, config.num_mel_bins)
        if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
            # Whisper's encoder halves the frames and takes exactly as many as it has positions.
            return self._randn(config.num_mel_bins, 2 * config.max_source_positions)
        width = getattr(config, "feature_projection_input_dim", None) or config.num_mel_bins
        return self._randn(_FRAMES, width)

    def spectrogram(self) -> Tensor:
        """Frames of a vocoder's input."""
        return self._randn(_FRAMES, self.config.model_in_dim)

    def labels(self, main: Tensor) -> Tensor | None:
        """Labels where it is known what a model's loss takes."""
        name, config, generator = type(self.model).__name__, self.config, self.generator
        if name.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForConditionalGeneration")):
            # The decoder's inputs are given, so labels and inputs need not be shifted copies.
            return self.tokens(main.shape[1] if not main.is_floating_point() else _TOKENS)
        if name.endswith(("SequenceClassification", "ImageClassification", "AudioClassification")):
            return torch.randint(config.num_labels, (self.size,), generator=generator)
        if name.endswith("ForCTC"):
            return torch.randint(1, config.vocab_size, (self.size, 4), generator=generator)
        return None


def _first(config: Any, name: str) -> Any:
    """A value of a config, or of the nearest config within it that has one."""
    waiting = deque([config])
    while waiting:
        part = waiting.popleft()
        value = getattr(part, name, None)
        if value is not None:
            return value
        waiting += [v for v in vars(part).values() if hasattr(v, "model_type")]
    return None
