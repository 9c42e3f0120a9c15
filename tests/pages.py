"""The part of a documentation page that a script writes: what stands between two marks."""

import argparse
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Section:
    """The part of a page between `<!-- name -->` and `<!-- /name -->`."""

    def __init__(self, page: Path, name: str):
        self.page = page
        self.begin, self.end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"

    def _parts(self) -> tuple[str, str, str]:
        text = self.page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(self.begin)
        inside, end, after = rest.partition(self.end)
        if not (begin and end):
            raise ValueError(f"{self.page} must contain {self.begin!r} and later {self.end!r}.")
        return before, inside.strip(), after

    def read(self) -> str:
        """Return what stands between the marks."""
        return self._parts()[1]

    def write(self, text: str) -> None:
        """Replace what stands between the marks."""
        before, _, after = self._parts()
        page = f"{before}{self.begin}\n{text.strip()}\n{self.end}{after}"
        self.page.write_text(page, encoding="utf-8")


def print_or_write(make: Callable[[], str], section: Section, description: str) -> None:
    """Print what `make` makes, or with --write put it into the page: a script's whole `main`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help=f"write it into {section.page.name}")
    if parser.parse_args().write:
        section.write(make())
    else:
        print(make())
