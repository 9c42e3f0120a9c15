"""What the audio tests share: the recordings that ship with the recipe."""

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[3] / "recipes" / "audio_classification" / "fixtures"


@pytest.fixture(scope="session")
def recording():
    """One real clip: a woman's voice, 8 kHz."""
    return FIXTURES / "nato_alphabet" / "allison_en" / "bravo.flac"
