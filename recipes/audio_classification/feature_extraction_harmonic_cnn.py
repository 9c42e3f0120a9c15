"""Feature extractor of the Harmonic CNN: clips of any length in, one padded batch out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from transformers import AutoFeatureExtractor, BatchFeature, SequenceFeatureExtractor

from .configuration_harmonic_cnn import HarmonicCnnConfig

__all__ = ["HarmonicCnnFeatureExtractor"]


class HarmonicCnnFeatureExtractor(SequenceFeatureExtractor):
    """Pad waveforms with silence; the spectrogram is the model's first layer, not made here.

    Args:
        feature_size: values a sample; 1, the audio is mono. Default: 1.
        sampling_rate: samples a second that the model was trained for. Default: 16000.
        padding_value: what silence is. Default: 0.0.
        min_length: samples that shorter clips are padded to: what the model was trained on, and at
            least the configuration's `min_samples`. Default: 0.

    Example:
        ```python
        extractor = HarmonicCnnFeatureExtractor(min_length=16000)
        batch = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        ```
    """

    model_input_names = ["input_values"]  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        min_length: int = 0,
        **kwargs: Any,
    ) -> None:
        self.min_length = min_length
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)

    def __call__(
        self,
        raw_speech: ArrayLike | Sequence[ArrayLike],
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `input_values`, (clips, samples), the shorter ones followed by silence.

        Args:
            raw_speech: one clip of shape (samples,), or several.
            sampling_rate: samples a second of these clips; None trusts them. Default: None.
            return_tensors: "pt" for torch, "np" for NumPy. Default: None, NumPy.
            kwargs: `padding`, `truncation` and so on of other extractors: accepted, without effect.

        Raises:
            ValueError: another sampling rate than the model's, an empty clip, or more than mono.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate={sampling_rate} is not the model's {self.sampling_rate}; "
                "resample the audio first, for example with soxr.resample."
            )
        single = isinstance(raw_speech, np.ndarray) and raw_speech.ndim == 1
        single = single or np.isscalar(raw_speech[0])
        clips = [np.asarray(c, dtype=np.float32) for c in ([raw_speech] if single else raw_speech)]
        for clip in clips:
            if clip.ndim != 1 or clip.size == 0:
                raise ValueError(
                    f"a clip of shape {clip.shape} must have one dimension and a sample at least; "
                    "average the channels of stereo audio first."
                )
        length = max(self.min_length, *(clip.size for clip in clips))
        batch = np.full((len(clips), length), self.padding_value, dtype=np.float32)
        for row, clip in zip(batch, clips, strict=True):
            row[: clip.size] = clip
        return BatchFeature({"input_values": batch}, tensor_type=return_tensors)


AutoFeatureExtractor.register(HarmonicCnnConfig, HarmonicCnnFeatureExtractor, exist_ok=True)
HarmonicCnnFeatureExtractor.register_for_auto_class()
