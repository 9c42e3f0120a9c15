"""The Harmonic CNN: its front end against other implementations, its sizes against the paper's."""

import librosa
import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from hf_adamp import get_param_groups
from recipes.audio_classification.configuration_harmonic_cnn import HarmonicCnnConfig
from recipes.audio_classification.feature_extraction_harmonic_cnn import HarmonicCnnFeatureExtractor
from recipes.audio_classification.modeling_harmonic_cnn import HarmonicCnnForAudioClassification

KEYWORDS = {"time_pools": (2, 2, 2, 2, 2, 2, 1), "hop_length": 128, "num_labels": 35}
TAGS = {"num_labels": 50}
EVENTS = {"time_pools": (2,) * 7, "num_labels": 17}


def small(**settings):
    return HarmonicCnnForAudioClassification(HarmonicCnnConfig(conv_channels=4, **settings)).eval()


def filter_bank_in_float64(config, q):
    """The triangles of the paper's equations 1 to 4, one number at a time."""
    frequencies = np.arange(config.n_fft // 2 + 1, dtype=np.float64)
    frequencies *= config.sample_rate / config.n_fft
    bank = np.zeros((config.n_harmonic, config.n_bands, frequencies.size))
    for h in range(config.n_harmonic):
        for b in range(config.n_bands):
            centre = (h + 1) * librosa.midi_to_hz(24 + b / config.semitone_scale)
            width = (config.bw_alpha * centre + config.bw_beta) / q
            rise = 1 + 2 * (frequencies - centre) / width
            fall = 1 - 2 * (frequencies - centre) / width
            bank[h, b] = np.maximum(0, np.minimum(rise, fall))
    return bank


@pytest.fixture(scope="module")
def clip(recording):
    waveform, rate = soundfile.read(recording, dtype="float32")
    return librosa.resample(waveform, orig_sr=rate, target_sr=16000)


@pytest.mark.parametrize("q", [1.0, 2.7])
@pytest.mark.parametrize("n_fft", [513, 1024])
def test_filter_bank_matches_its_closed_form(q, n_fft):
    model = small(bw_q=q, n_fft=n_fft)
    expected = filter_bank_in_float64(model.config, q)
    found = model.filters.filter_bank().detach().numpy()
    assert found.shape == (6, 128, n_fft // 2 + 1)
    # float32 holds a frequency of 8 kHz to 0.001 Hz, and the narrowest triangle is 10 Hz wide.
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_filters_reach_from_c1_to_the_last_audible_harmonic_of_e6():
    centres = small().filters.centres().detach()
    assert centres[0, 0].item() == pytest.approx(32.703, abs=1e-3)
    assert (
        centres[0, -1].item() < librosa.note_to_hz("E6") < centres[0, -1].item() * 2 ** (1.1 / 24)
    )
    torch.testing.assert_close(centres[5], 6 * centres[0])
    assert centres.max() < 8000


@pytest.mark.parametrize(("n_fft", "hop"), [(513, 256), (512, 128)])
def test_front_end_matches_librosa_on_a_real_clip(clip, n_fft, hop):
    model = small(n_fft=n_fft, hop_length=hop)
    spectrum = librosa.stft(clip, n_fft=n_fft, hop_length=hop, window="hann", pad_mode="reflect")
    power = np.abs(spectrum.astype(np.complex128)) ** 2
    filtered = filter_bank_in_float64(model.config, 1.0) @ power
    expected = librosa.power_to_db(filtered, ref=1.0, amin=1e-10, top_db=None)
    found = model.filters(torch.from_numpy(clip)[None])[0].detach().numpy()
    assert found.shape == (6, 128, 1 + clip.size // hop)
    # Near silence a decibel is a rounding error of the transform; compare what can be heard.
    loud = expected > expected.max() - 80
    assert loud.mean() > 0.5
    np.testing.assert_allclose(found[loud], expected[loud], atol=0.02)


def test_front_end_stays_in_float32_under_autocast(clip):
    model = small()
    waveform = torch.from_numpy(clip)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.filters(waveform)
    torch.testing.assert_close(found, model.filters(waveform))


@pytest.mark.parametrize(
    ("settings", "samples"), [(TAGS, 80000), (EVENTS, 48000), (KEYWORDS, 16000)]
)
def test_published_sizes_give_the_published_shapes(settings, samples):
    config = HarmonicCnnConfig(**settings)
    model = HarmonicCnnForAudioClassification(config).eval()
    with torch.no_grad():
        features = model.filters(torch.randn(1, samples))
        assert features.shape == (1, 6, 128, 1 + (samples - 1) // config.hop_length)
        assert model.blocks(features).shape == (1, 256, 1, 1)
        assert model(torch.randn(1, samples)).logits.shape == (1, config.num_labels)


def test_published_size_has_3_6_million_parameters():
    with torch.device("meta"):
        model = HarmonicCnnForAudioClassification(HarmonicCnnConfig(**TAGS))

    def conv(fan_in, out):
        return out * (9 * fan_in + 1) + 2 * out  # weight, bias, and the norm behind it

    narrow, wide = 128, 256
    blocks = conv(6, narrow) + 6 * conv(narrow, narrow) + conv(narrow, wide) + 4 * conv(wide, wide)
    dense = wide * (wide + 1) + 2 * wide + 50 * (wide + 1)
    front = 1 + 2 * 6  # Q, and the norm over the harmonics
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == blocks + dense + front == 3631551


@pytest.mark.parametrize(("learn_q", "learn_f0"), [(True, False), (False, True), (False, False)])
def test_gradient_reaches_what_is_learnt_only(learn_q, learn_f0):
    model = small(learn_q=learn_q, learn_f0=learn_f0, **KEYWORDS)
    model(torch.randn(2, 16000)).logits.sum().backward()
    for learnt, weight in ((learn_q, model.filters.q), (learn_f0, model.filters.f0)):
        assert (weight.grad is not None) == learnt
        assert not learnt or weight.grad.abs().max() > 0


def test_one_second_needs_a_shorter_hop_than_published():
    model = small(time_pools=(2, 2, 2, 2, 2, 2, 1))
    with pytest.raises(ValueError, match=r"16000 samples are too short.* need 16129; pad them"):
        model(torch.zeros(1, 16000))


@pytest.mark.parametrize("n_fft", [512, 513])
def test_shortest_clip_leaves_one_frame(n_fft):
    model = small(n_fft=n_fft)
    shortest = torch.zeros(1, model.config.min_samples)
    assert model.filters(shortest).shape[-1] == 288
    assert model.filters(shortest[:, 1:]).shape[-1] == 287
    assert model(shortest).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_pools": (2, 2)}, r"time_pools=\(2, 2\) must be 7 numbers"),
        ({"bw_q": 0}, "bw_q=0 must be above 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"sample_rate": 8000}, "give 104 bands.*raise semitone_scale"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HarmonicCnnConfig(**settings)


def test_both_kinds_of_labels_have_their_loss():
    logits_of = small(**KEYWORDS)
    waveform, classes = torch.randn(3, 16000), torch.tensor([0, 3, 34])
    result = logits_of(waveform, labels=classes)
    torch.testing.assert_close(
        result.loss, torch.nn.functional.cross_entropy(result.logits, classes)
    )
    several = small(problem_type="multi_label_classification", **KEYWORDS)
    tags = torch.nn.functional.one_hot(classes, 35)
    result = several(waveform, labels=tags)
    expected = torch.nn.functional.binary_cross_entropy(result.logits.sigmoid(), tags.float())
    torch.testing.assert_close(result.loss, expected)


def test_saved_model_loads_through_the_auto_classes(tmp_path):
    model = small(bw_q=1.5, **KEYWORDS)
    with torch.no_grad():
        model.filters.q.fill_(2.25)
        model.filters_norm.running_mean.fill_(-20)
    model.save_pretrained(tmp_path)
    HarmonicCnnFeatureExtractor(min_length=16000).save_pretrained(tmp_path)

    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert type(loaded) is HarmonicCnnForAudioClassification
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.bw_q == 1.5
    assert tuple(config.time_pools) == KEYWORDS["time_pools"]
    assert AutoFeatureExtractor.from_pretrained(tmp_path).min_length == 16000


def test_fine_tuning_to_other_labels_keeps_all_but_the_classifier(tmp_path):
    model = small(**KEYWORDS)
    with torch.no_grad():
        model.dense_norm.running_var.fill_(7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    assert loaded.classifier.weight.shape == (3, 8)
    assert loaded.classifier.weight.abs().max() > 0
    torch.testing.assert_close(loaded.blocks[0].conv.weight, model.blocks[0].conv.weight)
    assert (loaded.dense_norm.running_var == 7).all()


def test_pipeline_answers_with_names_and_probabilities(tmp_path, clip):
    names = {i: f"word {i}" for i in range(35)}
    small(id2label=names, **KEYWORDS).save_pretrained(tmp_path)
    HarmonicCnnFeatureExtractor(min_length=16000).save_pretrained(tmp_path)
    answer = pipeline("audio-classification", model=str(tmp_path), top_k=None)(clip)
    assert sorted(row["label"] for row in answer) == sorted(names.values())
    assert sum(row["score"] for row in answer) == pytest.approx(1, abs=1e-4)


def test_extractor_pads_with_silence_and_refuses_what_it_cannot_mean():
    extractor = HarmonicCnnFeatureExtractor(min_length=6)
    batch = extractor([np.ones(3), np.ones(8)], sampling_rate=16000, return_tensors="pt")
    assert batch["input_values"].tolist() == [[1.0] * 3 + [0.0] * 5, [1.0] * 8]
    assert extractor([0.5, 0.5], return_tensors="np")["input_values"].shape == (1, 6)
    with pytest.raises(ValueError, match="sampling_rate=8000 is not the model's 16000; resample"):
        extractor(np.ones(3), sampling_rate=8000)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) must have one dimension.*average"):
        extractor([np.ones((2, 3))])
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        extractor([np.zeros(0)])


def test_every_convolution_decays_and_no_filter_setting_does():
    model = small(learn_f0=True)
    decayed, spared = get_param_groups(model, weight_decay=0.1)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 14
    assert {id(p) for p in decayed["params"]} == {id(layer.weight) for layer in layers}
    assert {id(model.filters.q), id(model.filters.f0)} <= {id(p) for p in spared["params"]}
