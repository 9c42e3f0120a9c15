"""From text to numbers: the vocabulary's order, the cache, and texts that do not serve."""

from collections import Counter

import datasets
import numpy as np
import pytest

from recipes.transformer_xl_wikitext103 import data
from recipes.transformer_xl_wikitext103.data import EOS, WIKITEXT_103, load_corpus


@pytest.fixture
def folder(tmp_path):
    """Three small files, with a blank line and words equally frequent."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_text("b a b \n\n c a b\n d\n")
    (folder / "valid.txt").write_text("a d\n")
    (folder / "test.txt").write_text("c\n\n")
    return folder


def decode(corpus, split):
    return [corpus.words[number] for number in corpus.splits[split]]


def test_vocabulary_is_in_order_of_frequency_then_of_appearance(folder, tmp_path):
    assert load_corpus(str(folder), tmp_path).words == [EOS, "b", "a", "c", "d"]


def test_every_line_ends_with_eos_also_a_blank_one(folder, tmp_path):
    corpus = load_corpus(str(folder), tmp_path)
    assert decode(corpus, "train") == ["b", "a", "b", EOS, EOS, "c", "a", "b", EOS, "d", EOS]
    assert decode(corpus, "validation") == ["a", "d", EOS]
    assert decode(corpus, "test") == ["c", EOS, EOS]


def test_numbers_are_32_bit_and_stay_on_disk(folder, tmp_path):
    train = load_corpus(str(folder), tmp_path).splits["train"]
    assert isinstance(train, np.memmap)
    assert train.dtype == np.int32


def test_words_longer_than_a_block_of_lines_are_all_encoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_LINES", 2)
    corpus = load_corpus(str(folder), tmp_path)
    assert decode(corpus, "train")[-3:] == [EOS, "d", EOS]
    assert len(corpus.splits["train"]) == 11


def test_corpus_is_built_once(folder, tmp_path, monkeypatch):
    before = load_corpus(str(folder), tmp_path)
    monkeypatch.setattr(data, "_build", None)
    after = load_corpus(str(folder), tmp_path)
    assert (after.words, after.sha256) == (before.words, before.sha256)


def test_changed_text_is_another_corpus(folder, tmp_path):
    before = load_corpus(str(folder), tmp_path)
    (folder / "train.txt").write_text("a b c d e\n")
    after = load_corpus(str(folder), tmp_path)
    assert after.sha256 != before.sha256
    assert after.words[-1] == "e"


def test_interrupted_build_is_done_again(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            load_corpus(str(folder), tmp_path / "cache")
    assert decode(load_corpus(str(folder), tmp_path / "cache"), "test") == ["c", EOS, EOS]


def test_truncated_cache_is_built_again(folder, tmp_path):
    load_corpus(str(folder), tmp_path / "cache")
    [path] = (tmp_path / "cache").glob("*/train.bin")
    path.write_bytes(path.read_bytes()[:8])
    assert len(load_corpus(str(folder), tmp_path / "cache").splits["train"]) == 11


def test_min_count_puts_rare_words_into_unk(folder, tmp_path):
    corpus = load_corpus(str(folder), tmp_path, min_count=2)
    assert corpus.words == [EOS, "b", "a", "<unk>"]
    assert decode(corpus, "validation") == ["a", "<unk>", EOS]


def test_missing_splits_are_named(folder, tmp_path):
    (folder / "valid.txt").unlink()
    (folder / "test.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks validation \(valid.txt or .*\), test \(test.txt"):
        load_corpus(str(folder), tmp_path)


def test_original_file_names_are_known(folder, tmp_path):
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").rename(folder / f"wiki.{split}.tokens")
    assert len(load_corpus(str(folder), tmp_path).words) == 5


def test_unknown_word_is_named_with_its_line(folder, tmp_path):
    (folder / "valid.txt").write_text("a\nb zebra\n")
    with pytest.raises(
        ValueError, match=r'validation, line 2: "zebra" is not in train.*--min_count'
    ):
        load_corpus(str(folder), tmp_path)


def test_eos_in_the_text_is_refused(folder, tmp_path):
    (folder / "train.txt").write_text("a <eos> b\n")
    with pytest.raises(ValueError, match="has <eos> as a word 1 times"):
        load_corpus(str(folder), tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder", "synthetic:many"])
def test_source_that_is_nothing_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match=f"data={source} is neither"):
        load_corpus(source, tmp_path)


def test_other_vocabulary_is_refused(folder, tmp_path):
    corpus = load_corpus(str(folder), tmp_path)
    corpus.check_vocabulary(corpus.sha256, 5, "model")
    corpus.check_vocabulary(None, 5, "model")
    for sha256, size in (("0" * 64, 5), (corpus.sha256, 6)):
        with pytest.raises(ValueError, match=r"runs/base knows [56] words .* the data has 5"):
            corpus.check_vocabulary(sha256, size, "runs/base")


def test_synthetic_words_all_occur_and_frequent_ones_come_first(tmp_path):
    corpus = load_corpus("synthetic:500", tmp_path)
    assert len(corpus.words) == 500
    counts = Counter(corpus.splits["train"].tolist())
    assert counts[1] > counts[250] >= 1


def hub(monkeypatch, splits):
    """Stand in for the Hub: rows as it has them, blank ones and trailing blanks included."""
    built = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(built))


def test_hub_rows_make_the_published_stream(tmp_path, monkeypatch):
    rows = ["", " = Title = \n", "", " the <unk> was the @-@ end . \n"]
    hub(monkeypatch, {"train": rows, "validation": rows[:2], "test": rows[1:]})
    monkeypatch.setattr(data, "_EXPECTED", {"words": 9, "train": 14, "validation": 5, "test": 13})
    corpus = load_corpus(WIKITEXT_103, tmp_path)
    assert corpus.words[:4] == [EOS, "=", "the", "Title"]
    assert decode(corpus, "validation") == [EOS, "=", "Title", "=", EOS]


def test_hub_with_other_counts_is_refused(tmp_path, monkeypatch):
    hub(monkeypatch, {name: ["a b"] for name in ("train", "validation", "test")})
    with pytest.raises(RuntimeError, match=r"words 3 \(not 267,735\).*test 3 \(not 245,569\)"):
        load_corpus(WIKITEXT_103, tmp_path)


def test_hub_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RuntimeError, match=r"\(offline\); connect once.*--data FOLDER"):
        load_corpus(WIKITEXT_103, tmp_path)


def test_demo_text_is_real_and_complete(tmp_path):
    from recipes.transformer_xl_wikitext103.demo_text import write_text

    words = write_text(tmp_path)
    assert words == {"train": 825459, "valid": 43624, "test": 44480}
    first = (tmp_path / "train.txt").read_text().split("\n", 1)[0]
    assert first == "in the beginning god created the heavens and the earth ."
    lines = {split: (tmp_path / f"{split}.txt").read_text() for split in words}
    assert not any(any(mark.isdigit() for mark in content) for content in lines.values())
    assert lines["test"].split("\n", 1)[0] not in lines["train"]
