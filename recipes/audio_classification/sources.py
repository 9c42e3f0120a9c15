"""Where the clips are and what is in them: the published data sets, and folders of your own.

Every function returns the three splits with `audio` ({"path", "bytes"}, not decoded), `labels` (a
class number, or zeros and ones a tag; None where a clip has none of the task's labels), and the
names of the labels.
"""

import csv
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Sequence,
    Value,
    concatenate_datasets,
    load_dataset,
)

__all__ = ["SOURCES", "Source", "load"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# The official lists of Speech Commands v0.02; https://arxiv.org/abs/1804.03209, section 7.
SPEECH_COMMANDS_SIZES = {"train": 84_843, "validation": 9_981, "test": 11_005}
# What a split may be called besides.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
TOP_TAGS = 50
# MagnaTagATune's first folders train, the thirteenth validates, the last three test.
MTAT_FOLDERS = {"train": "0123456789ab", "validation": "c", "test": "def"}
# DCASE 2017 task 4, in the order of its own evaluation.
DCASE_EVENTS = (
    "Train horn",
    "Air horn, truck horn",
    "Car alarm",
    "Reversing beeps",
    "Ambulance (siren)",
    "Police car (siren)",
    "Fire engine, fire truck (siren)",
    "Civil defense siren",
    "Screaming",
    "Bicycle",
    "Skateboard",
    "Car",
    "Car passing by",
    "Bus",
    "Truck",
    "Motorcycle",
    "Train",
)
DCASE_SETS = ("training", "testing", "evaluation")
DCASE_VALIDATION = 0.1  # of each event's training clips
DCASE_SEED = 123
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au"),
    *(".m4a", ".aac", ".webm", ".mp4"),  # with torchcodec only
)
LABEL_SEPARATOR = ";"  # between the labels of a clip in a table of your own


class Clip(NamedTuple):
    """One file and the names of its labels."""

    path: Path
    labels: tuple[str, ...]


class Source(NamedTuple):
    """The splits of a data set, and what its labels are called."""

    splits: DatasetDict
    names: list[str]


def load(source: str, location: str, *, several: bool) -> Source:
    """Open a data set.

    Args:
        source: a key of `SOURCES`.
        location: its folder; for "hub", the repository's id, and after colons a configuration
            and a revision, such as `google/speech_commands:v0.02:refs/convert/parquet`.
        several: whether a clip may have several labels.

    Raises:
        ValueError: there is no such source, or the folder has not the files it should have.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is unknown; known sources: {', '.join(SOURCES)}.")
    if source != "hub" and not Path(location).is_dir():
        raise ValueError(f"data_dir={location!r} is not a folder; unpack the data there first.")
    found = SOURCES[source](location, several)
    missing = [split for split in SPLITS if not len(found.splits.get(split, ()))]
    if missing:
        raise ValueError(f"{location} has no clip for {', '.join(missing)}; every split needs one.")
    return found


def _named(split: str, present: Iterable[str]) -> str:
    """What a split is called among the names that are there; its own where none is."""
    found = [name for name in SPLIT_NAMES[split] if name in present]
    if len(found) > 1:
        raise ValueError(f"the data has both {' and '.join(found)}; keep one, for {split}.")
    return found[0] if found else split


def _rows(paths: list[str], labels: list[Any], stamps: list[int]) -> Iterator[dict[str, Any]]:
    for path, label in zip(paths, labels, strict=True):
        yield {"audio": {"path": path, "bytes": None}, "labels": label}


def _build(clips: dict[str, list[Clip]], names: list[str], several: bool) -> Source:
    """Make the splits, on disk, so that what is computed from them can be cached."""
    numbers = {name: number for number, name in enumerate(names)}
    splits = {}
    for split, listed in clips.items():
        paths = [str(clip.path) for clip in listed]
        # A file that has changed since is decoded again.
        stamps = [p.path.stat().st_mtime_ns if p.path.is_file() else 0 for p in listed]
        splits[split] = Dataset.from_generator(
            _rows,
            gen_kwargs={
                "paths": paths,
                "labels": [_encode(clip.labels, numbers, several) for clip in listed],
                "stamps": stamps,
            },
            features=_features(len(names), several),
        )
    return Source(DatasetDict(splits), names)


def _features(labels: int, several: bool) -> Features:
    kind = Sequence(Value("float32"), length=labels) if several else Value("int64")
    return Features({"audio": {"path": Value("string"), "bytes": Value("binary")}, "labels": kind})


def _encode(labels: Iterable[str], numbers: dict[str, int], several: bool) -> Any:
    known = [numbers[label] for label in labels if label in numbers]
    if not known:
        return None
    if not several:
        if len(known) > 1:
            raise ValueError(
                f"a clip has the labels {', '.join(labels)}, but keyword spotting allows one."
            )
        return known[0]
    return [float(number in known) for number in range(len(numbers))]


def _read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; the folder must hold the data set as published.")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def speech_commands(location: str, several: bool) -> Source:
    """Speech Commands v0.02 as its archive unpacks: a folder a word, and two lists of files."""
    root = Path(location)
    held_out = {}
    for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        if not (root / name).is_file():
            raise ValueError(f"{root / name} is missing; unpack speech_commands_v0.02.tar.gz here.")
        held_out |= dict.fromkeys((root / name).read_text().split(), split)
    clips: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for path in sorted(root.glob("[!_]*/*.wav")):  # _background_noise_ is no word
        split = held_out.get(path.relative_to(root).as_posix(), "train")
        clips[split].append(Clip(path, (path.parent.name,)))
    sizes = {split: len(listed) for split, listed in clips.items()}
    if sizes != SPEECH_COMMANDS_SIZES:
        logger.warning(
            "%s has %s clips, where v0.02 of Speech Commands has %s: accuracies are not comparable "
            "with published ones.",
            root,
            sizes,
            SPEECH_COMMANDS_SIZES,
        )
    names = sorted({label for listed in clips.values() for _, (label,) in listed})
    return _build(clips, names, several)


def magnatagatune(location: str, several: bool) -> Source:
    """MagnaTagATune: annotations_final.csv and folders 0 to f; the 50 most frequent tags."""
    root = Path(location)
    rows = _read_csv(root / "annotations_final.csv", delimiter="\t")
    tags = [name for name in rows[0] if name not in ("clip_id", "mp3_path")]
    counts = {tag: sum(row[tag] == "1" for row in rows) for tag in tags}
    top = sorted(sorted(tags), key=lambda tag: -counts[tag])[:TOP_TAGS]
    clips: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    split_of = {folder: split for split, folders in MTAT_FOLDERS.items() for folder in folders}
    for row in rows:
        labels = tuple(tag for tag in top if row[tag] == "1")
        folder = row["mp3_path"].partition("/")[0]
        clips[split_of[folder]].append(Clip(root / row["mp3_path"], labels))
    return _build(clips, top, several)


def dcase2017_task4(location: str, several: bool) -> Source:
    """DCASE 2017 task 4: its weak labels, and folders `training`, `testing` and `evaluation`.

    The published test is the evaluation set; training and testing set together train, but for a
    tenth of each event's clips, which validate.
    """
    root = Path(location)
    events: dict[str, dict[Path, list[str]]] = {name: defaultdict(list) for name in DCASE_SETS}
    for name, files in events.items():
        table = root / f"groundtruth_weak_label_{name}_set.csv"
        if not table.is_file():
            raise ValueError(f"{table} is missing; it comes with the challenge's repository.")
        # Lines of file, start, end and event; the files on disk begin with another Y.
        for line in csv.reader(table.open(encoding="utf-8", newline=""), delimiter="\t"):
            files[root / name / f"Y{line[0]}"].append(line[3].strip())
    listed = [Clip(p, tuple(e)) for name in DCASE_SETS[:2] for p, e in events[name].items()]
    draw, held = random.Random(DCASE_SEED), set()
    for event in DCASE_EVENTS:
        of_event = [clip.path for clip in listed if event in clip.labels]
        held |= set(draw.sample(of_event, round(len(of_event) * DCASE_VALIDATION)))
    clips = {
        "train": [clip for clip in listed if clip.path not in held],
        "validation": [clip for clip in listed if clip.path in held],
        "test": [Clip(path, tuple(found)) for path, found in events["evaluation"].items()],
    }
    return _build(clips, list(DCASE_EVENTS), several)


def table(location: str, several: bool) -> Source:
    """Your own clips: train.csv, validation.csv (or val.csv) and test.csv.

    Their columns are `file_name` and `label`.

    File names are relative to the folder. Several labels of a clip are joined by semicolons.
    Labels that only occur outside of train.csv are an error: no model can have learnt them.
    """
    root = Path(location)
    present = [path.stem for path in root.glob("*.csv")]
    clips = {split: _listed(root, root / f"{_named(split, present)}.csv") for split in SPLITS}
    return _build(clips, _names(clips), several)


def _listed(folder: Path, table: Path) -> list[Clip]:
    """Read the clips of a csv with `file_name` and `label`."""
    rows = _read_csv(table)
    lacking = {"file_name", "label"} - set(rows[0] if rows else ())
    if lacking:
        raise ValueError(f"{table} lacks the columns {', '.join(sorted(lacking))}.")
    return [
        Clip(folder / row["file_name"], tuple(filter(None, row["label"].split(LABEL_SEPARATOR))))
        for row in rows
    ]


def _names(clips: dict[str, list[Clip]]) -> list[str]:
    """Return the labels of the training split, and refuse others."""
    found = {split: {label for clip in clips[split] for label in clip.labels} for split in SPLITS}
    for split in SPLITS[1:]:
        if unknown := found[split] - found["train"]:
            raise ValueError(
                f"the {split} split has labels that train has not: {', '.join(sorted(unknown))}."
            )
    return sorted(found["train"])


def audiofolder(location: str, several: bool) -> Source:
    """Your own clips in folders SPLIT/LABEL/FILE, or in SPLIT beside a metadata.csv of its own.

    The splits are train, validation (or val) and test.

    The layouts that `datasets` calls audiofolder; it only builds them where torchcodec works.
    """
    root, clips = Path(location), {}
    present = [path.name for path in root.iterdir() if path.is_dir()]
    for split in SPLITS:
        folder = root / _named(split, present)
        if (folder / "metadata.csv").is_file():
            clips[split] = _listed(folder, folder / "metadata.csv")
        else:
            found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
            clips[split] = [Clip(path, (path.parent.name,)) for path in found]
        if not clips[split]:
            raise ValueError(f"{folder} has no audio; it wants LABEL/FILE.wav or metadata.csv.")
    return _build(clips, _names(clips), several)


def hub(location: str, several: bool) -> Source:
    """A data set of the Hub that needs no script: columns `audio` and `label`."""
    name, config, revision = [*location.split(":", 2), None, None][:3]
    return _from_columns(load_dataset(name, config, revision=revision), several)


def _present(split: str, splits: DatasetDict) -> str:
    name = _named(split, splits)
    if name not in splits:
        raise ValueError(f"the data set has no split {split!r}, only {', '.join(splits)}.")
    return name


def _from_columns(splits: DatasetDict, several: bool) -> Source:
    """Take `audio` undecoded, and turn `label` (or `labels`) into ours."""
    splits = DatasetDict({split: splits[_present(split, splits)] for split in SPLITS})
    train = splits["train"]
    column = "labels" if "labels" in train.features else "label"
    kind = train.features[column]
    if not isinstance(kind, ClassLabel):
        kind = getattr(kind, "feature", kind)
    if isinstance(kind, ClassLabel):
        # Speech Commands on the Hub has background noise as a 36th word.
        names = [name for name in kind.names if name != "_silence_"]
    else:
        values = train[column]
        names = sorted({v for row in values for v in (row if isinstance(row, list) else [row])})
    numbers = {name: number for number, name in enumerate(sorted(names))}

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        values = row[column] if isinstance(row[column], list) else [row[column]]
        if isinstance(kind, ClassLabel):
            values = [kind.int2str(value) for value in values]
        return {"labels": _encode(values, numbers, several)}

    encoded = {}
    for split in SPLITS:
        part = splits[split].cast_column("audio", Audio(decode=False))
        labels = part.select_columns([column]).map(
            encode,
            remove_columns=[column],
            features=Features({"labels": _features(len(numbers), several)["labels"]}),
            desc=f"labels of {split}",
        )
        # Side by side, the audio is not written once more.
        encoded[split] = concatenate_datasets([part.select_columns(["audio"]), labels], axis=1)
    return Source(DatasetDict(encoded), sorted(names))


SOURCES: dict[str, Callable[[str, bool], Source]] = {
    "speech_commands": speech_commands,
    "magnatagatune": magnatagatune,
    "dcase2017_task4": dcase2017_task4,
    "table": table,
    "audiofolder": audiofolder,
    "hub": hub,
}
