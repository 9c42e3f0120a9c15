"""Configuration of the Harmonic CNN: its front end, its back end, and how short a clip may be."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

__all__ = ["HarmonicCnnConfig"]

LOWEST_MIDI = 24  # C1, 32.7 Hz
A4_MIDI, A4_HZ = 69, 440.0
BLOCKS = 7  # each halves the frequency axis: 128 bands become one


class HarmonicCnnConfig(PretrainedConfig):
    """Settings of `HarmonicCnnForAudioClassification`; the defaults are the published ones.

    Args:
        sample_rate: samples a second of the audio the model hears. Default: 16000.
        n_fft: length of the window and of the Fourier transform. Default: 513.
        hop_length: samples between frames. Default: None, half of `n_fft`, as published. One second
            at 16 kHz then has 63 frames, fewer than the 64 which `time_pools` of a keyword model
            need, so a keyword model wants 128.
        n_harmonic: how many multiples of the fundamental a channel each is made for. Default: 6.
        semitone_scale: bands a semitone. Default: 2.
        bw_alpha, bw_beta: bandwidth of a filter at f is (bw_alpha·f + bw_beta) / Q, in Hz.
            Defaults: 0.1079 and 24.7.
        bw_q: Q before training, above 0. Default: 1.0.
        learn_q: whether Q is trained. Default: True.
        learn_f0: whether the centre frequencies are trained. Default: False.
        conv_channels: width of the first four blocks; the last three have twice as many.
            Default: 128.
        time_pools: pooling of each block along time. Default: (2, 2, 2, 2, 2, 3, 3), that of music
            tagging; (2, 2, 2, 2, 2, 2, 2) for sound events, (2, 2, 2, 2, 2, 2, 1) for keywords.
        dropout: probability before the last layer, in [0, 1). Default: 0.5.

    Raises:
        ValueError: a setting is out of its range, or gives fewer bands than seven halvings need.

    Example:
        ```python
        config = HarmonicCnnConfig(hop_length=128, time_pools=(2, 2, 2, 2, 2, 2, 1), num_labels=35)
        model = HarmonicCnnForAudioClassification(config)
        ```

    Source: Won, Chun, Nieto and Serra, "Data-Driven Harmonic Filters for Audio Representation
    Learning", ICASSP 2020, sections 2 and 3; https://github.com/minzwon/data-driven-harmonic-filters
    """

    model_type = "harmonic_cnn"

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 513,
        hop_length: int | None = None,
        n_harmonic: int = 6,
        semitone_scale: int = 2,
        bw_alpha: float = 0.1079,
        bw_beta: float = 24.7,
        bw_q: float = 1.0,
        learn_q: bool = True,
        learn_f0: bool = False,
        conv_channels: int = 128,
        time_pools: Sequence[int] = (2, 2, 2, 2, 2, 3, 3),
        dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if len(time_pools) != BLOCKS or min(time_pools) < 1:
            raise ValueError(f"time_pools={tuple(time_pools)} must be {BLOCKS} numbers from 1 up.")
        if not bw_q > 0:
            raise ValueError(f"bw_q={bw_q} must be above 0: it divides the bandwidth.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1).")
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.hop_length = n_fft // 2 if hop_length is None else hop_length
        self.n_harmonic = n_harmonic
        self.semitone_scale = semitone_scale
        self.bw_alpha = bw_alpha
        self.bw_beta = bw_beta
        self.bw_q = bw_q
        self.learn_q = learn_q
        self.learn_f0 = learn_f0
        self.conv_channels = conv_channels
        self.time_pools = list(time_pools)
        self.dropout = dropout
        if self.n_bands < 2**BLOCKS:
            raise ValueError(
                f"sample_rate={sample_rate}, n_harmonic={n_harmonic} and "
                f"semitone_scale={semitone_scale} give {self.n_bands} bands, but {BLOCKS} blocks "
                f"halve them to nothing below {2**BLOCKS}; raise semitone_scale."
            )
        super().__init__(**kwargs)

    @property
    def n_bands(self) -> int:
        """Bands of each harmonic, from C1 to the note whose last harmonic is still audible."""
        highest = A4_MIDI + 12 * math.log2(self.sample_rate / (2 * self.n_harmonic) / A4_HZ)
        return (round(highest) - LOWEST_MIDI) * self.semitone_scale

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip of which the poolings leave a frame."""
        # Each end is padded by half a window, rounded down, so an odd window misses a sample.
        return (math.prod(self.time_pools) - 1) * self.hop_length + self.n_fft % 2


AutoConfig.register(HarmonicCnnConfig.model_type, HarmonicCnnConfig, exist_ok=True)
HarmonicCnnConfig.register_for_auto_class()
