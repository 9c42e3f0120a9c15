"""Decoding: every kind of file that a data set of a hundred thousand has a few of."""

import logging

import librosa
import numpy as np
import pytest
import soundfile
from datasets import Dataset

from recipes.audio_classification.decoding import decode, decode_all
from tests.recipes.audio_classification.audio_files import write_clip

RATE = 16000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "good.wav", TONE)
    write_clip(tmp_path / "stereo.wav", np.stack([TONE, np.zeros_like(TONE)], axis=1))
    write_clip(
        tmp_path / "odd_rate.wav", librosa.resample(TONE, orig_sr=RATE, target_sr=11025), 11025
    )
    write_clip(tmp_path / "silent.wav", np.zeros(RATE))
    write_clip(tmp_path / "short.wav", TONE[:100])
    write_clip(tmp_path / "header_only.wav", TONE[:0])
    write_clip(tmp_path / "loud.wav", 3 * TONE, subtype="FLOAT")
    write_clip(tmp_path / "not_finite.wav", np.where(TONE > 0.4, np.nan, TONE), subtype="FLOAT")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no audio at all")
    whole = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "half_a_header.wav").write_bytes(whole[:20])
    return tmp_path


EXPECTED = {
    "good": [],
    "stereo": ["stereo"],
    "odd_rate": ["resampled"],
    "silent": ["silent"],
    "short": [],
    "header_only": ["empty"],
    "loud": ["clipped"],
    "not_finite": ["corrupt"],
    "empty": ["corrupt"],
    "text": ["corrupt"],
    "half_a_header": ["corrupt"],
    "absent": ["missing"],
}


@pytest.mark.parametrize(("name", "remarks"), EXPECTED.items())
def test_decode_remarks_what_is_wrong(folder, name, remarks):
    samples, found = decode(str(folder / f"{name}.wav"), None, RATE)
    assert found == remarks
    assert samples.dtype == np.int16
    assert bool(samples.size) == (not set(remarks) & {"empty", "corrupt", "missing"})


def test_decode_keeps_the_waveform(folder):
    samples, _ = decode(str(folder / "good.wav"), None, RATE)
    np.testing.assert_allclose(samples / 32767, TONE, atol=1e-4)
    left, _ = decode(str(folder / "stereo.wav"), None, RATE)
    np.testing.assert_allclose(left / 32767, TONE / 2, atol=1e-4)
    resampled, _ = decode(str(folder / "odd_rate.wav"), None, RATE)
    assert abs(len(resampled) - RATE) <= 2
    middle = slice(2000, 14000)
    np.testing.assert_allclose(resampled[middle] / 32767, TONE[middle], atol=0.01)


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_decode_reads_compressed_bytes_without_a_file(tmp_path, kind):
    soundfile.write(tmp_path / f"tone.{kind}", TONE, RATE)
    samples, remarks = decode(None, (tmp_path / f"tone.{kind}").read_bytes(), RATE)
    assert remarks == []
    assert np.abs(samples).max() / 32767 == pytest.approx(0.5, abs=0.05)


def test_decode_gives_torchcodec_what_soundfile_refuses(folder, monkeypatch):
    import sys
    from types import SimpleNamespace

    import torch

    class AudioDecoder:
        def __init__(self, source):
            self.source = source

        def get_all_samples(self):
            return SimpleNamespace(data=torch.full((2, RATE), 0.25), sample_rate=RATE)

    fake = SimpleNamespace(AudioDecoder=AudioDecoder)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=fake))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", fake)
    samples, remarks = decode(str(folder / "text.wav"), None, RATE)
    assert remarks == ["stereo"]
    assert samples[0] == round(0.25 * 32767)


@pytest.fixture
def dataset(folder):
    names = list(EXPECTED)
    audio = [{"path": str(folder / f"{name}.wav"), "bytes": None} for name in names]
    return Dataset.from_dict({"audio": audio, "labels": [0] * (len(names) - 1) + [None]})


@pytest.mark.parametrize("num_proc", [None, 2])
def test_decode_all_keeps_what_it_can_and_counts_the_rest(dataset, caplog, num_proc):
    dataset = dataset.add_column("number", list(range(len(dataset))))
    with caplog.at_level(logging.WARNING):
        kept = decode_all(dataset, rate=RATE, shortest=8000, num_proc=num_proc, name="train")
    assert [list(EXPECTED)[i] for i in kept["number"]] == [
        *("good", "stereo", "odd_rate", "silent", "short", "loud")
    ]
    assert sorted(kept.column_names) == ["labels", "number", "samples"]
    (message,) = [r.getMessage() for r in caplog.records if r.name.endswith("decoding")]
    assert message.startswith("train: 6 of 12 files (")
    for part in (
        *("4 undecodable, or not finite", "1 without a sample", "1 without a label"),
        *("1 silent throughout", "1 shorter than", "1 averaged", "1 resampled", "1 louder"),
    ):
        assert part in message
    assert "text.wav" in message
    assert message.endswith(", ....")


def test_decode_all_with_nothing_left_says_why(dataset):
    with pytest.raises(ValueError, match=r"train: 0 of 2 files .* Nothing is left to use"):
        decode_all(dataset.select([9, 10]), rate=RATE, shortest=1, name="train")


def test_report_says_what_was_resampled_and_padded_where_nothing_was(dataset, capsys):
    good = list(EXPECTED).index("good")
    decode_all(dataset.select([good]), rate=RATE, shortest=1, name="val", shown=True)
    assert capsys.readouterr().out == (
        "val: 1 of 1 files (0 shorter than the model's input, padded; 0 resampled).\n"
    )
    decode_all(dataset.select([good]), rate=RATE // 2, shortest=10**6, name="val", shown=True)
    assert "(1 shorter than the model's input, padded; 1 resampled)" in capsys.readouterr().out
