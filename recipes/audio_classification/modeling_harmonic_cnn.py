"""Harmonic CNN: triangular filters on the harmonics of every note, and a small 2-D ResNet.

Won, Chun, Nieto and Serra, "Data-Driven Harmonic Filters for Audio Representation Learning",
ICASSP 2020, https://github.com/minzwon/data-driven-harmonic-filters
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForAudioClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_harmonic_cnn import A4_HZ, A4_MIDI, BLOCKS, LOWEST_MIDI, HarmonicCnnConfig

__all__ = ["HarmonicCnnForAudioClassification", "HarmonicFilters"]

QUIETEST = 1e-10  # the power that counts as silence: -100 dB
LOWEST_Q = 0.1  # training may not drive the bandwidth to infinity and beyond


class HarmonicFilters(nn.Module):
    """Waveform (clips, samples) to decibels (clips, harmonic, band, frame).

    The filter of harmonic h and band b is a triangle around h·f0[b] in the power spectrum, as wide
    as the bandwidth of human hearing there, divided by a learnt Q. The lowest are narrower than the
    bins of the spectrum are apart: with n_fft=513 one of the 768 meets no bin and always hears
    silence, here as in the published model.
    """

    def __init__(self, config: HarmonicCnnConfig) -> None:
        super().__init__()
        self.config = config
        self.f0 = nn.Parameter(torch.empty(config.n_bands), requires_grad=config.learn_f0)
        self.q = nn.Parameter(torch.empty(1), requires_grad=config.learn_q)

    def reset_parameters(self) -> None:
        """Put the bands on an equal-tempered grid from C1 up, and Q on its first value."""
        steps = torch.arange(self.config.n_bands, dtype=torch.float64) / self.config.semitone_scale
        midi = LOWEST_MIDI + steps
        nn.init.constant_(self.q, self.config.bw_q)
        with torch.no_grad():
            self.f0.copy_(A4_HZ * 2 ** ((midi - A4_MIDI) / 12))

    def centres(self) -> Tensor:
        """Return the centre frequencies in Hz, (harmonic, band)."""
        multiples = torch.arange(1, self.config.n_harmonic + 1, device=self.f0.device)
        return torch.outer(multiples, self.f0.float())

    def filter_bank(self) -> Tensor:
        """Return the response of each filter to each bin of the spectrum, (harmonic, band, bin)."""
        bins = torch.arange(self.config.n_fft // 2 + 1, device=self.f0.device)
        frequencies = bins * (self.config.sample_rate / self.config.n_fft)
        centres = self.centres().unsqueeze(-1)
        q = self.q.float().clamp(min=LOWEST_Q)
        bandwidths = (self.config.bw_alpha * centres + self.config.bw_beta) / q
        return torch.relu(1 - 2 * (frequencies - centres).abs() / bandwidths)

    def forward(self, waveform: Tensor) -> Tensor:
        """Filter the power spectrum; in float32 whatever the model's own type is."""
        # Powers span 20 decades, and a sum of bins in bfloat16 would lose the quiet ones.
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = waveform.float()
            spectrum = torch.stft(
                waveform,
                self.config.n_fft,
                self.config.hop_length,
                window=torch.hann_window(self.config.n_fft, device=waveform.device),
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            filtered = self.filter_bank().flatten(0, 1) @ power
            decibels = 10 * filtered.clamp(min=QUIETEST).log10()
        return decibels.unflatten(1, (self.config.n_harmonic, -1))


class Block(nn.Module):
    """Convolution, norm, ReLU and max pooling along frequency and time."""

    def __init__(self, channels: int, out_channels: int, time_pool: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d((2, time_pool))

    def forward(self, features: Tensor) -> Tensor:
        """(clips, channel, band, frame) to half of the bands."""
        return self.pool(torch.relu(self.norm(self.conv(features))))


class ResidualBlock(nn.Module):
    """Two convolutions with norms around which the input is added, then ReLU and max pooling."""

    def __init__(self, channels: int, time_pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d((2, time_pool))

    def forward(self, features: Tensor) -> Tensor:
        """(clips, channel, band, frame) to half of the bands."""
        inner = torch.relu(self.norm1(self.conv1(features)))
        return self.pool(torch.relu(features + self.norm2(self.conv2(inner))))


class HarmonicCnnForAudioClassification(PreTrainedModel):
    """Harmonic filters, seven convolutional blocks, the loudest answer over time, two layers.

    Each convolution and the first linear layer feed a batch norm, so 13 of the 14 weights are
    scale-invariant; AdamP projects these.

    Args:
        config: sizes and settings; `num_labels`, `id2label` and `problem_type` (either
            "single_label_classification" or "multi_label_classification") as in any model.

    Example:
        ```python
        model = HarmonicCnnForAudioClassification(HarmonicCnnConfig(num_labels=50))
        logits = model(torch.randn(2, 80000)).logits  # five seconds: (2, 50)
        ```
    """

    config_class = HarmonicCnnConfig
    main_input_name = "input_values"

    def __init__(self, config: HarmonicCnnConfig) -> None:
        super().__init__(config)
        narrow, wide = config.conv_channels, 2 * config.conv_channels
        pools = config.time_pools
        self.filters = HarmonicFilters(config)
        self.filters_norm = nn.BatchNorm2d(config.n_harmonic)
        self.blocks = nn.Sequential(
            Block(config.n_harmonic, narrow, pools[0]),
            *(ResidualBlock(narrow, pool) for pool in pools[1:4]),
            Block(narrow, wide, pools[4]),
            *(ResidualBlock(wide, pool) for pool in pools[5:BLOCKS]),
        )
        self.dense = nn.Linear(wide, wide)
        self.dense_norm = nn.BatchNorm1d(wide)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(wide, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as torch does, which is what was published, instead of Transformers' way."""
        kinds = (HarmonicFilters, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
        if isinstance(module, kinds):
            module.reset_parameters()

    def forward(
        self,
        input_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify clips.

        Args:
            input_values: waveforms from -1 to 1, (clips, samples).
            labels: class numbers, (clips,), or for several labels a clip zeros and ones,
                (clips, labels). Default: None, no loss.
            return_dict: False returns a tuple. Default: None, the configuration's choice.

        Raises:
            ValueError: the clips are too short for the poolings.
        """
        if input_values.shape[-1] < self.config.min_samples:
            raise ValueError(
                f"clips of {input_values.shape[-1]} samples are too short: time_pools="
                f"{tuple(self.config.time_pools)} at hop_length={self.config.hop_length} need "
                f"{self.config.min_samples}; pad them with the feature extractor, or lower either."
            )
        features = self.filters_norm(self.filters(input_values).to(self.classifier.weight.dtype))
        loudest = self.blocks(features).amax(dim=(-2, -1))
        hidden = self.dropout(torch.relu(self.dense_norm(self.dense(loudest))))
        logits = self.classifier(hidden)
        loss = None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            loss = functional.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoModelForAudioClassification.register(
    HarmonicCnnConfig, HarmonicCnnForAudioClassification, exist_ok=True
)
HarmonicCnnForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
