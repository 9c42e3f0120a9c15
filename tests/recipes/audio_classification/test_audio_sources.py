"""The loaders: folders and tables laid out as the data sets are published, in small."""

import logging

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value

from recipes.audio_classification import sources
from recipes.audio_classification.decoding import decode_all
from tests.recipes.audio_classification.audio_files import WORDS, write_clip, write_rows

TONE = 0.3 * np.sin(np.arange(4000) / 5)


def paths(split):
    return [audio["path"] for audio in split["audio"]]


def test_speech_commands_follows_its_lists(speech_commands, caplog):
    with caplog.at_level(logging.WARNING):
        splits, names = sources.load("speech_commands", str(speech_commands), several=False)
    assert names == list(WORDS)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 9,
        "validation": 3,
        "test": 3,
    }
    assert all("menardi_it" in path for path in paths(splits["validation"]))
    assert all("armelle_fr" in path for path in paths(splits["test"]))
    assert not any("_background_noise_" in path for path in paths(splits["train"]))
    assert [names[label] for label in splits["test"]["labels"]] == [
        path.split("/")[-2] for path in paths(splits["test"])
    ]
    assert "'train': 84843" in caplog.text
    assert "not comparable" in caplog.text


def test_magnatagatune_takes_the_top_tags_and_splits_by_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sources, "TOP_TAGS", 2)
    rows = [["clip_id", "guitar", "rare", "vocal", "mp3_path"]]
    for number, folder in enumerate("0b9cdef"):
        tags = ["1", "0", "1"] if number % 2 else ["1", "1", "0"]
        rows.append([number, *tags, f"{folder}/{number}.mp3"])
        write_clip(tmp_path / f"{folder}/{number}.mp3", TONE, 16000)
    rows.append([7, "0", "1", "0", "0/only_rare.mp3"])
    rows.append([8, "1", "0", "0", "0/broken.mp3"])
    write_clip(tmp_path / "0/only_rare.mp3", TONE)
    (tmp_path / "0/broken.mp3").write_bytes(b"")
    rows[1][2] = "0"  # guitar 8, vocal 3, rare 5 - 3: fewer than vocal
    rows[3][2] = rows[5][2] = "0"
    write_rows(tmp_path / "annotations_final.csv", rows, delimiter="\t", quoting=1)

    splits, names = sources.load("magnatagatune", str(tmp_path), several=True)
    assert names == ["guitar", "vocal"]
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 5,
        "validation": 1,
        "test": 3,
    }
    assert [p.split("/")[-2] for p in paths(splits["validation"])] == ["c"]
    assert splits["validation"]["labels"][0] == [1.0, 1.0]
    with caplog.at_level(logging.WARNING):
        train = decode_all(splits["train"], rate=16000, shortest=1, name="train")
    assert len(train) == 3
    assert "1 undecodable" in caplog.text
    assert "1 without a label" in caplog.text


def test_dcase_joins_a_clips_events_and_holds_a_tenth_out(tmp_path):
    counts = {"training": 40, "testing": 20, "evaluation": 5}
    for name, count in counts.items():
        rows = []
        for number in range(count):
            file = f"{name}{number}_0.000_10.000.wav"
            rows.append([file, "0.000", "10.000", "Train horn" if number % 2 else "Car"])
            if number % 2:
                rows.append([file, "0.000", "10.000", "Air horn, truck horn"])
        write_rows(
            tmp_path / f"groundtruth_weak_label_{name}_set.csv", rows, delimiter="\t", quotechar="|"
        )
    splits, names = sources.load("dcase2017_task4", str(tmp_path), several=True)
    assert len(names) == 17
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes["test"] == 5
    assert sizes["train"] + sizes["validation"] == 60
    assert 6 <= sizes["validation"] <= 9
    assert not set(paths(splits["train"])) & set(paths(splits["validation"]))
    assert paths(splits["test"])[1] == str(tmp_path / "evaluation/Yevaluation1_0.000_10.000.wav")
    of_second = [name for name, on in zip(names, splits["test"]["labels"][1], strict=True) if on]
    assert of_second == ["Train horn", "Air horn, truck horn"]


def test_table_reads_several_labels_a_clip(tmp_path):
    for split in sources.SPLITS:
        write_rows(tmp_path / f"{split}.csv", [["file_name", "label"], ["a.wav", "b;a"], ["c", ""]])
    splits, names = sources.load("table", str(tmp_path), several=True)
    assert names == ["a", "b"]
    assert splits["train"]["labels"][:] == [[1.0, 1.0], None]


@pytest.mark.parametrize(
    ("train", "test", "several", "message"),
    [
        (
            [["file_name", "label"], ["a", "x"]],
            [["file_name", "label"], ["b", "y"]],
            True,
            "has not: y",
        ),
        (
            [["path", "label"], ["a", "x"]],
            [["file_name", "label"]],
            True,
            "lacks the columns file_name",
        ),
        (
            [["file_name", "label"], ["a", "x;y"]],
            [["file_name", "label"], ["b", "x"]],
            False,
            "allows one",
        ),
    ],
)
def test_table_refuses_what_it_cannot_use(tmp_path, train, test, several, message):
    write_rows(tmp_path / "train.csv", train)
    write_rows(tmp_path / "validation.csv", train)
    write_rows(tmp_path / "test.csv", test)
    with pytest.raises(ValueError, match=message):
        sources.load("table", str(tmp_path), several=several)


def test_audiofolder_takes_its_labels_from_folders(tmp_path):
    for split in sources.SPLITS:
        for word in ("yes", "no"):
            write_clip(tmp_path / split / word / "1.wav", TONE)
    splits, names = sources.load("audiofolder", str(tmp_path), several=False)
    assert names == ["no", "yes"]
    kept = decode_all(splits["test"], rate=16000, shortest=1)
    assert sorted(kept["labels"]) == [0, 1]
    assert len(kept[0]["samples"]) == 4000


def test_audiofolder_takes_its_labels_from_metadata(tmp_path):
    for split in sources.SPLITS:
        rows = [["file_name", "label"], ["1.wav", "dog;cat"], ["2.wav", "cat"]]
        write_rows(tmp_path / split / "metadata.csv", rows)
    splits, names = sources.load("audiofolder", str(tmp_path), several=True)
    assert names == ["cat", "dog"]
    assert splits["test"]["labels"][:] == [[1.0, 1.0], [1.0, 0.0]]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing.train has no audio; it wants LABEL"):
        sources.load("audiofolder", str(tmp_path / "nothing"), several=True)


def test_hub_reads_parquet_with_bytes_and_drops_background_noise(tmp_path, recording):
    kinds = ClassLabel(names=["yes", "no", "_silence_"])
    features = Features(
        {"audio": {"bytes": Value("binary"), "path": Value("string")}, "label": kinds}
    )
    rows = {"audio": [{"bytes": recording.read_bytes(), "path": "x.flac"}] * 3, "label": [0, 1, 2]}
    data = Dataset.from_dict(rows, features=features).cast_column("audio", Audio(decode=False))
    for split in sources.SPLITS:
        data.to_parquet(tmp_path / f"{split}.parquet")
    splits, names = sources.load("hub", str(tmp_path), several=False)
    assert names == ["no", "yes"]
    assert isinstance(splits, DatasetDict)
    kept = decode_all(splits["train"], rate=16000, shortest=1, name="train")
    assert kept["labels"][:] == [1, 0]


def test_second_load_finds_the_decoded_clips_in_the_cache(speech_commands, monkeypatch):
    def load():
        splits, _ = sources.load("speech_commands", str(speech_commands), several=False)
        return decode_all(splits["train"], rate=16000, shortest=16000, name="train")

    first = load()
    monkeypatch.setattr("soundfile.read", lambda *_, **__: pytest.fail("decoded again"))
    assert load()["samples"][0] == first["samples"][0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mtat", "source='mtat' is unknown; known sources: speech_commands, magnatagatune"),
        ("speech_commands", "validation_list.txt is missing; unpack speech_commands_v0.02"),
        ("magnatagatune", "annotations_final.csv is missing"),
        ("dcase2017_task4", "groundtruth_weak_label_training_set.csv is missing"),
        ("table", "train.csv is missing"),
    ],
)
def test_folder_that_is_not_the_data_set_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        sources.load(source, str(tmp_path), several=True)


def test_absent_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder; unpack the data there first"):
        sources.load("table", str(tmp_path / "nowhere"), several=True)


@pytest.mark.parametrize("source", ["table", "audiofolder", "hub"])
@pytest.mark.parametrize("name", ["val", "dev", "valid"])
def test_validation_may_be_called_otherwise(tmp_path, source, name, recording):
    names = ("train", name, "test")
    if source == "hub":
        row = {"audio": [{"bytes": recording.read_bytes(), "path": "x.flac"}], "label": ["yes"]}
        data = DatasetDict({split: Dataset.from_dict(row) for split in names})
        found = sources._from_columns(data, several=False)
    else:
        for split in names:
            write_clip(tmp_path / split / "yes" / "1.wav", TONE)
            rows = [["file_name", "label"], [f"{split}/yes/1.wav", "yes"]]
            write_rows(tmp_path / f"{split}.csv", rows)
        found = sources.load(source, str(tmp_path), several=False)
    assert {split: len(rows) for split, rows in found.splits.items()} == dict.fromkeys(
        sources.SPLITS, 1
    )
    assert f"{name}/yes" in paths(found.splits["validation"])[0] or source == "hub"


def test_two_names_for_one_split_are_refused(tmp_path):
    for split in ("train", "val", "validation", "test"):
        write_clip(tmp_path / split / "yes" / "1.wav", TONE)
    with pytest.raises(ValueError, match="both validation and val; keep one, for validation"):
        sources.load("audiofolder", str(tmp_path), several=False)
