"""Small real data for the three tasks, without a download: folders for `--source table`.

    python -m recipes.audio_classification.demo_data runs/audio_demo/data

Spoken words and sound samples are this recipe's fixtures; the music is rendered from scores that
come with music21, on the sound font that comes with pretty_midi. No speaker, no recording and no
piece is in two splits.
"""

import csv
import importlib
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

__all__ = ["make_keywords", "make_music", "make_sound_events"]

FIXTURES = Path(__file__).parent / "fixtures"
RATE = 16000
SEED = 2017
SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}
# By person: the English and the Spanish voice are the same woman's.
PERSONS = {
    "train": ("allison", "june", "maxim"),
    "validation": ("menardi",),
    "test": ("armelle",),
}
# What a sound sample is, by the first pattern that its name matches; misc_* is nothing in common.
SOUNDS = {
    "loop": "loop_",
    "tabla": "tabla_",
    "kick": "bd_|drum_bass|.*kick",
    "snare": "sn_|.*snare",
    "cymbal": ".*cymbal|.*splash",
    "tom": "drum_tom|elec_fuzz_tom",
    "percussion": "perc_|drum_|elec_wood|elec_triangle",
    "ambience": "ambi_",
    "bass": "bass_",
    "guitar": "guit_",
    "vinyl": "vinyl_",
    "electronic": "elec_",
}
MIX_SECONDS = 3.0
MIXES = {"train": 600, "validation": 150, "test": 200}
SCORES_A_REPERTOIRE = 60
EXCERPT_SECONDS = 10.0
# Folder of music21's corpus, pattern of the file, and seconds a quarter note.
REPERTOIRES = {
    "chorale": ("bach", r"bwv\d+\.\d+\.mxl", 0.55),
    "mass": ("palestrina", r".*\.krn", 0.3),
    "dance tune": ("ryansMammoth", r".*\.abc", 0.35),
    "trecento": ("trecento", r".*\.xml", 0.4),
}
# Programs of General MIDI.
INSTRUMENTS = {
    "piano": 0,
    "harpsichord": 6,
    "organ": 19,
    "guitar": 24,
    "strings": 48,
    "choir": 52,
    "brass": 61,
    "flute": 73,
}
VELOCITY = 96


class Score(NamedTuple):
    """A piece to render: where it is, and who plays it."""

    path: str
    repertoire: str
    instruments: tuple[str, ...]


def divide(items: Sequence[Any], draw: random.Random) -> dict[str, list[Any]]:
    """Shuffle and share out; every split gets one where there are three."""
    items = draw.sample(items, len(items))
    held = {name: max(1, round(len(items) * SPLITS[name])) for name in ("validation", "test")}
    test, rest = items[: held["test"]], items[held["test"] :]
    return {
        "train": rest[held["validation"] :],
        "validation": rest[: held["validation"]],
        "test": test,
    }


def write_table(folder: Path, split: str, rows: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Write what `sources.table` reads."""
    with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "label"))
        writer.writerows((name, ";".join(labels)) for name, labels in rows)


def make_keywords(folder: Path) -> None:
    """The NATO alphabet, divided by person."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = FIXTURES / "nato_alphabet"
    with (clips / "metadata.csv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    for split, persons in PERSONS.items():
        rows = [
            (str((clips / row["file_name"]).resolve()), [row["label"]])
            for row in listed
            if row["person"] in persons
        ]
        write_table(folder, split, rows)


def sound_samples() -> dict[str, list[list[str]]]:
    """Return the samples of each kind, those of one recording together."""
    kinds: dict[str, dict[str, list[str]]] = {kind: defaultdict(list) for kind in SOUNDS}
    with (FIXTURES / "sound_samples" / "metadata.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            matching = (k for k, pattern in SOUNDS.items() if re.match(pattern, row["file_name"]))
            if kind := next(matching, None):
                kinds[kind][row["source"]].append(row["file_name"])
    return {kind: list(recordings.values()) for kind, recordings in kinds.items()}


def make_sound_events(folder: Path) -> None:
    """Clips of three seconds with one to three sounds at random places, divided by recording."""
    draw = random.Random(SEED)
    samples: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for kind, recordings in sound_samples().items():
        for split, part in divide(recordings, draw).items():
            samples[split][kind] = [name for recording in part for name in recording]
    for split, count in MIXES.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            kinds = draw.sample(sorted(SOUNDS), draw.randint(1, 3))
            mix = np.zeros(int(MIX_SECONDS * RATE), dtype=np.float32)
            for kind in kinds:
                name = draw.choice(samples[split][kind])
                sound, _ = soundfile.read(FIXTURES / "sound_samples" / name, dtype="float32")
                start = draw.randint(0, mix.size - sound.size)
                level = 10 ** (draw.uniform(-12, 0) / 20)
                mix[start : start + sound.size] += level * sound / max(np.abs(sound).max(), 1e-4)
            mix /= max(1.0, float(np.abs(mix).max()))
            soundfile.write(folder / split / f"{number:04}.flac", mix, RATE)
            rows.append((f"{split}/{number:04}.flac", sorted(kinds)))
        write_table(folder, split, rows)


def choose_scores(draw: random.Random) -> dict[str, list[Score]]:
    """Divide the pieces of each repertoire, and give every one its instruments."""
    corpus = importlib.import_module("music21.corpus")
    splits: dict[str, list[Score]] = {split: [] for split in SPLITS}
    for repertoire, (composer, pattern, _) in REPERTOIRES.items():
        paths = sorted(
            str(p) for p in corpus.getComposer(composer) if re.fullmatch(pattern, Path(p).name)
        )
        chosen = draw.sample(paths, min(SCORES_A_REPERTOIRE, len(paths)))
        for split, part in divide(chosen, draw).items():
            for path in part:
                players = draw.sample(sorted(INSTRUMENTS), draw.randint(1, 2))
                splits[split].append(Score(path, repertoire, tuple(players)))
    return splits


def render(score: Score) -> tuple[np.ndarray, list[str]] | None:
    """Play the beginning of a piece; return it with its tags, or None where it has no notes."""
    music21 = importlib.import_module("music21")
    piece = music21.converter.parse(score.path)
    if isinstance(piece, music21.stream.Opus):
        piece = piece.scores[0]
    quarter = REPERTOIRES[score.repertoire][2]
    # A piece of one part has one player, whoever else was invited.
    parts = list(piece.parts) or [piece]
    players = score.instruments[: len(parts)]
    events = []
    for number, part in enumerate(parts):
        for note in part.flatten().notes:
            start, end = (
                float(t) * quarter for t in (note.offset, note.offset + note.quarterLength)
            )
            if start < EXCERPT_SECONDS:
                keys = [pitch.midi for pitch in getattr(note, "pitches", ())]
                events += [(start, 1, number % len(players), key) for key in keys]
                events += [(end, 0, number % len(players), key) for key in keys]
    if not events:
        return None
    # Who rests throughout the excerpt is not heard, so no tag.
    heard = {player for _, _, player, _ in events}
    tags = [score.repertoire, *(name for player, name in enumerate(players) if player in heard)]
    if piece.analyze("key").mode == "minor":
        tags.append("minor")
    metres = list(piece.recurse().getElementsByClass("TimeSignature"))
    if metres and metres[0].numerator % 3 == 0:
        tags.append("triple metre")
    return play(sorted(events), [INSTRUMENTS[player] for player in players]), tags


def play(events: list[tuple[float, int, int, int]], programs: list[int]) -> np.ndarray:
    """Render (time, on or off, player, key) to a waveform."""
    synthesizer = importlib.import_module("tinysoundfont").Synth(samplerate=RATE)
    bundled = Path(importlib.import_module("pretty_midi").__file__).parent / "TimGM6mb.sf2"
    font = synthesizer.sfload(str(bundled))
    for player, program in enumerate(programs):
        synthesizer.program_select(player, font, 0, program)
    pieces, now = [], 0
    for time, on, player, key in [*events, (EXCERPT_SECONDS, 0, 0, 0)]:
        until = round(min(time, EXCERPT_SECONDS) * RATE)
        if until > now:
            block = np.frombuffer(synthesizer.generate(until - now), dtype=np.float32)
            pieces.append(block.reshape(-1, 2).mean(axis=1))
            now = until
        if on:
            synthesizer.noteon(player, key, VELOCITY)
        else:
            synthesizer.noteoff(player, key)
    waveform = np.concatenate(pieces)
    return 0.7 * waveform / max(float(np.abs(waveform).max()), 1e-4)


def make_music(folder: Path, processes: int = 2) -> None:
    """Excerpts of ten seconds, divided by piece."""
    draw = random.Random(SEED)
    with ProcessPoolExecutor(processes) as pool:
        for split, scores in choose_scores(draw).items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            rows = []
            for score, played in zip(scores, pool.map(render, scores, chunksize=4), strict=True):
                if played is None:
                    continue
                waveform, tags = played
                name = f"{split}/{Path(score.path).stem}.flac"
                soundfile.write(folder / name, waveform, RATE)
                rows.append((name, tags))
            write_table(folder, split, rows)


def main() -> None:
    """Make the three folders, each once."""
    root = Path(sys.argv[1])
    makers = {
        "keyword_spotting": make_keywords,
        "sound_event_tagging": make_sound_events,
        "music_tagging": make_music,
    }
    for name, make in makers.items():
        # The last table that is written; a folder made half is made again.
        if not (root / name / "test.csv").exists():
            print(f"making {root / name}")
            make(root / name)


if __name__ == "__main__":
    main()
