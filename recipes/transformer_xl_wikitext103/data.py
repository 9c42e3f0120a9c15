"""Words of WikiText-103, or of a folder of text files, as streams of numbers.

A corpus is read line by line, twice: once to count the words of the training split, once to write
every split as 32-bit numbers beside its vocabulary. What is kept in memory is the vocabulary. The
next run finds the result in the cache. `<eos>` is word 0 and follows every line, blank ones too;
the others are numbered from the most frequent on, those equally frequent in order of appearance.
"""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

__all__ = ["EOS", "UNK", "WIKITEXT_103", "Corpus", "load_corpus"]

EOS, UNK = "<eos>", "<unk>"
WIKITEXT_103 = "wikitext-103"
# The tokenised text, with its rare words already replaced; words with <eos>, as published.
_HUB = ("Salesforce/wikitext", "wikitext-103-v1")
_EXPECTED = {
    "words": 267_735,
    "train": 103_227_021,
    "validation": 217_646,
    "test": 245_569,
}
_FILES = {
    "train": ("train.txt", "wiki.train.tokens"),
    "validation": ("valid.txt", "validation.txt", "wiki.valid.tokens"),
    "test": ("test.txt", "wiki.test.tokens"),
}
_LINES = 4096  # read, encoded and written at once


@dataclass(frozen=True)
class Corpus:
    """A vocabulary and the three splits in its numbers.

    Attributes:
        words: the vocabulary; a word's number is its place.
        splits: `train`, `validation` and `test`, each one-dimensional, on disk until read.
        sha256: what the vocabulary hashes to.
    """

    words: list[str]
    splits: dict[str, np.ndarray]
    sha256: str

    def check_vocabulary(self, sha256: str | None, vocab_size: int, owner: str) -> None:
        """Refuse a model that was trained with another vocabulary.

        Args:
            sha256: the hash that the model keeps; None compares sizes only.
            vocab_size: number of words of the model.
            owner: what to call the model in the message.

        Raises:
            ValueError: the vocabularies differ.
        """
        if vocab_size != len(self.words) or sha256 not in (None, self.sha256):
            raise ValueError(
                f"{owner} knows {vocab_size:,} words (sha256 {str(sha256)[:12]}), the data has "
                f"{len(self.words):,} (sha256 {self.sha256[:12]}): its numbers mean other words. "
                "Give the data, and the --min_count, that the model was trained with."
            )


def load_corpus(source: str, cache_dir: str | Path, *, min_count: int = 1) -> Corpus:
    """Return a corpus, from the cache where it is there.

    Args:
        source: "wikitext-103" for the Hub's; `synthetic:WORDS` for random words, to try a model's
            size; or a folder that holds train, valid and test as `.txt` or as `wiki.*.tokens`.
        cache_dir: folder of the cache; each corpus has its own in it.
        min_count: words that the training split has less often become `<unk>`. Default: 1, all
            words are kept.

    Raises:
        ValueError: the folder lacks a split, or a split has words that the vocabulary lacks.
        RuntimeError: WikiText-103 is not what it should be.
    """
    if min_count < 1:
        raise ValueError(f"min_count={min_count} must be >= 1.")
    text = _open(source)
    identity = json.dumps([text.identity(), min_count])
    folder = Path(cache_dir) / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not _is_complete(folder):
        _build(text, folder, min_count)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    summary = json.loads((folder / "corpus.json").read_text())
    splits = {split: np.memmap(folder / f"{split}.bin", np.int32, "r") for split in _FILES}
    if source == WIKITEXT_103:
        _check_counts({"words": len(words)} | {name: len(split) for name, split in splits.items()})
    return Corpus(words, splits, summary["sha256"])


def _check_counts(found: dict[str, int]) -> None:
    wrong = [
        f"{name} {found[name]:,} (not {n:,})" for name, n in _EXPECTED.items() if found[name] != n
    ]
    if wrong:
        raise RuntimeError(
            f"{'/'.join(_HUB)} has {', '.join(wrong)}: perplexities would not compare with "
            "published ones. Update datasets and remove what it cached, or give a folder with the "
            "original wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens."
        )


class _Folder:
    """Text files of a folder."""

    def __init__(self, folder: Path) -> None:
        present = {
            s: [folder / n for n in names if (folder / n).is_file()] for s, names in _FILES.items()
        }
        missing = [f"{s} ({' or '.join(_FILES[s])})" for s, paths in present.items() if not paths]
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}; all three splits are needed.")
        self.paths = {split: paths[0] for split, paths in present.items()}

    def identity(self) -> list[list[str | int]]:
        stats = {path: path.stat() for path in self.paths.values()}
        return [[str(p.resolve()), s.st_size, s.st_mtime_ns] for p, s in stats.items()]

    def lines(self, split: str) -> Iterator[str]:
        with self.paths[split].open(encoding="utf-8") as file:
            yield from file


class _Hub:
    """WikiText-103 as `datasets` loads it."""

    def __init__(self) -> None:
        from datasets import load_dataset  # noqa: PLC0415  a folder of files does not need it

        try:
            self.dataset = load_dataset(*_HUB)
        except Exception as error:
            raise RuntimeError(
                f"{'/'.join(_HUB)} could not be loaded ({error}); connect once, to let datasets "
                "cache it, or give --data FOLDER with train.txt, valid.txt and test.txt."
            ) from error

    def identity(self) -> list[str]:
        return [split._fingerprint for split in self.dataset.values()]

    def lines(self, split: str) -> Iterator[str]:
        for batch in self.dataset[split].iter(batch_size=_LINES):
            yield from batch["text"]


class _Synthetic:
    """Random words, each once in the training split at least: to try a size, not to learn from."""

    def __init__(self, words: int) -> None:
        self.words = words - 1  # and <eos>

    def identity(self) -> list[str | int]:
        return ["synthetic", self.words]

    def lines(self, split: str) -> Iterator[str]:
        generator = np.random.default_rng(len(split))
        if split == "train":
            for start in range(0, self.words, 50):
                yield " ".join(f"w{n}" for n in range(start, min(start + 50, self.words)))
        for _ in range(2000 if split == "train" else 20):
            ranks = np.minimum(self.words ** generator.random(50), self.words - 1).astype(int)
            yield " ".join(f"w{n}" for n in ranks)


def _open(source: str) -> _Folder | _Hub | _Synthetic:
    if source == WIKITEXT_103:
        return _Hub()
    kind, _, size = source.partition(":")
    if kind == "synthetic" and size.isdigit():
        return _Synthetic(int(size))
    if not Path(source).is_dir():
        raise ValueError(f"data={source} is neither a folder nor {WIKITEXT_103}.")
    return _Folder(Path(source))


def _is_complete(folder: Path) -> bool:
    """Whether a corpus was written to the end: its summary comes last, and knows all sizes."""
    try:
        sizes = json.loads((folder / "corpus.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _build(text: _Folder | _Hub | _Synthetic, folder: Path, min_count: int) -> None:
    """Write vocabulary, splits and summary."""
    folder.mkdir(parents=True, exist_ok=True)
    words = _order(_count(text.lines("train")), min_count)
    numbers = {word: number for number, word in enumerate(words)}
    vocabulary = "".join(f"{word}\n" for word in words).encode()
    (folder / "vocab.txt").write_bytes(vocabulary)
    for split in _FILES:
        _encode(text.lines(split), numbers, split, folder / f"{split}.bin")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != ".json"}
    summary = {"sha256": hashlib.sha256(vocabulary).hexdigest(), "bytes": sizes}
    unfinished = folder / "corpus.json.part"
    unfinished.write_text(json.dumps(summary))
    os.replace(unfinished, folder / "corpus.json")


def _count(lines: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in tqdm(lines, desc="count words of train", unit=" lines", mininterval=1):
        counts.update(line.split())
    if EOS in counts:
        raise ValueError(f"the text has {EOS} as a word {counts[EOS]} times; rename it there.")
    return counts


def _order(counts: Counter[str], min_count: int) -> list[str]:
    """Return `<eos>`, then the words by falling frequency."""
    rare = [word for word, count in counts.items() if count < min_count]
    if rare:
        counts[UNK] += sum(counts.pop(word) for word in rare)
    return [EOS, *(word for word, _ in counts.most_common())]


def _encode(lines: Iterable[str], numbers: dict[str, int], split: str, path: Path) -> None:
    """Write the words' numbers, and `<eos>` after each line."""
    unknown = numbers.get(UNK)
    eos = numbers[EOS]
    batch = array("i")
    with path.open("wb") as file:
        for index, line in enumerate(
            tqdm(lines, desc=f"encode {split}", unit=" lines", mininterval=1)
        ):
            words = line.split()
            try:
                batch.extend([numbers.get(word, unknown) for word in words])
            except TypeError:
                word = next(word for word in words if word not in numbers)
                raise ValueError(
                    f'{split}, line {index + 1}: "{word}" is not in train, and the vocabulary has '
                    f"no {UNK} to stand for it; use --min_count 2, which replaces rare words."
                ) from None
            batch.append(eos)
            if index % _LINES == _LINES - 1:
                file.write(batch.tobytes())
                batch = array("i")
        file.write(batch.tobytes())
