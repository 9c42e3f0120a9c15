"""Clips and tables that the audio tests write."""

import csv
from pathlib import Path

import soundfile

FIXTURES = Path(__file__).parents[3] / "recipes" / "audio_classification" / "fixtures"
WORDS = ("bravo", "delta", "echo")


def read_clip(voice, word):
    return soundfile.read(FIXTURES / "nato_alphabet" / voice / f"{word}.flac", dtype="float32")


def write_clip(path, waveform, rate=16000, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, **how)


def write_rows(path, rows, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **how).writerows(rows)
