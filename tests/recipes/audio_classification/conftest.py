"""What the audio tests share: the recordings of the recipe, and a folder made of them."""

import numpy as np
import pytest

from tests.recipes.audio_classification.audio_files import FIXTURES, WORDS, read_clip, write_clip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What datasets keeps goes into the session's folder, and nothing comes from another run."""
    monkeypatch.setattr(
        "datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets")
    )


@pytest.fixture(scope="session")
def recording():
    """One real clip: a woman's voice, 8 kHz."""
    return FIXTURES / "nato_alphabet" / "allison_en" / "bravo.flac"


@pytest.fixture(scope="session")
def speech_commands(tmp_path_factory):
    """Three words of five voices, laid out as the archive of Speech Commands is."""
    root = tmp_path_factory.mktemp("speech_commands")
    lists = {"menardi_it": "validation_list.txt", "armelle_fr": "testing_list.txt"}
    listed = {name: [] for name in lists.values()}
    for voice in ("allison_en", "june_fr", "maxim_ru", *lists):
        for word in WORDS:
            name = f"{word}/{voice}_nohash_0.wav"
            write_clip(root / name, *read_clip(voice, word))
            if voice in lists:
                listed[lists[voice]].append(name)
    for name, files in listed.items():
        (root / name).write_text("\n".join(files) + "\n")
    write_clip(root / "_background_noise_" / "hum.wav", np.zeros(16000))
    return root
