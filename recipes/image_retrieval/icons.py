"""Icons as a small set for retrieval: one concept, such as "bus", drawn by several icon fonts.

    icons = load_icons()
    icons.images, icons.labels, icons.names, icons.parts

The fonts come with QtAwesome 1.4.2 (MIT), which is not imported, as it asks for Qt: its font files
and their tables of names are read as data, and drawn by Pillow. Each font has a licence of its own:

    Font Awesome 5 and 6 (solid, regular)   SIL Open Font License 1.1
    Elusive Icons                           SIL Open Font License 1.1
    Material Design Icons 6                 Apache License 2.0
    Phosphor                                MIT
    Remix Icon                              Apache License 2.0
    Codicons                                Creative Commons Attribution 4.0, by Microsoft

Fonts of trade marks are left out, and Material Design Icons 5, which its successor holds.
"""

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["FONTS", "SIDE", "Icons", "load_icons"]

# A font's name here, its file, and its table of names.
FONTS: Mapping[str, tuple[str, str]] = {
    name: (f"{stem}-{version}.ttf", f"{stem}-charmap-{version}.json")
    for name, stem, version in (
        ("codicon", "codicon", "0.0.36"),
        ("elusive", "elusiveicons-webfont", "2.0"),
        ("awesome5-regular", "fontawesome5-regular-webfont", "5.15.4"),
        ("awesome5-solid", "fontawesome5-solid-webfont", "5.15.4"),
        ("awesome6-regular", "fontawesome6-regular-webfont", "6.7.2"),
        ("awesome6-solid", "fontawesome6-solid-webfont", "6.7.2"),
        ("material", "materialdesignicons6-webfont", "6.9.96"),
        ("phosphor", "phosphor", "1.3.0"),
        ("remix", "remixicon", "2.5.0"),
    )
}
PACKAGE = "QtAwesome==1.4.2"
SIDE = 32  # of a drawing, in pixels
MARGIN = 1  # around what is drawn
FEWEST, FEWEST_FONTS = 8, 3  # drawings of a concept, and fonts that they are from
FEWEST_SPARE = 5  # drawings of a concept that only the first weights are learnt from
# What a name says beside the concept: how it is drawn, not what.
STYLES = re.compile(
    r"[-_](outline|outlined|fill|filled|line|bold|light|thin|duotone|regular|solid|alt|o|sharp"
    r"|variant|box|circle|square|rounded|round|simple|\d)$"
)
SAME = 0.02  # mean difference of pixels from 0 to 1, below which two drawings count as one
PART_SEED = 20160  # of the parts that the concepts are dealt to


class Icons(NamedTuple):
    """Drawings and their concepts.

    Attributes:
        images: (drawings, 32, 32) uint8, 255 is ink.
        labels: (drawings,) int64, an index of `names`.
        names: of the concepts.
        parts: of each concept: "train", "test", or "spare" for those with few drawings.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    parts: tuple[str, ...]


def concept(name: str) -> str:
    """Return what a drawing's name says beside how it is drawn."""
    while STYLES.search(name):
        name = STYLES.sub("", name)
    return name


@cache
def load_icons(*, spare: bool = False) -> Icons:
    """Return all concepts with enough drawings, each drawing once.

    Args:
        spare: whether concepts with few drawings come along, which takes twice as long. Default:
            no.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: a font of its is missing.
    """
    folder, names, parts, images, labels = _folder(), [], [], [], []
    for name, drawings in sorted(_find_drawings(folder).items()):
        # Concepts with too few names are not drawn at all, which saves most of the time.
        if len(drawings) < (FEWEST_SPARE if spare else FEWEST):
            continue
        found = _distinct(folder, drawings)
        enough = len(found) >= FEWEST and len({font for font, _ in found}) >= FEWEST_FONTS
        if not enough and not (spare and len(found) >= FEWEST_SPARE):
            continue
        parts.append("whole" if enough else "spare")
        labels += [len(names)] * len(found)
        images += [image for _, image in found]
        names.append(name)
    whole = [number for number, part in enumerate(parts) if part == "whole"]
    for place, number in enumerate(np.random.default_rng(PART_SEED).permutation(whole)):
        parts[number] = ("train", "test")[place % 2]
    return Icons(
        np.stack(images).astype(np.uint8),
        np.array(labels, dtype=np.int64),
        tuple(names),
        tuple(parts),
    )


def _folder() -> Path:
    # Finding a package does not import it.
    found = importlib.util.find_spec("qtawesome")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"The icons are not installed: pip install --no-deps {PACKAGE}")
    return Path(next(iter(found.submodule_search_locations))) / "fonts"


def _find_drawings(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Return font and character of every icon, by concept."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for title, files in FONTS.items():
        for file in files:
            if not (folder / file).is_file():
                raise ValueError(f"{folder / file} is missing; install {PACKAGE}.")
        table: dict[str, str] = json.loads((folder / files[1]).read_text(encoding="utf-8"))
        # One drawing may have several names; its first stands for it.
        first: dict[str, str] = {}
        for name, code in table.items():
            first.setdefault(chr(int(code, 16)), name)
        for character, name in first.items():
            found[concept(name)].append((title, character))
    return found


def _distinct(folder: Path, drawings: Sequence[tuple[str, str]]) -> list[tuple[str, np.ndarray]]:
    """Return font and picture of a concept's drawings, of those that are nearly equal the first."""
    kept: list[tuple[str, np.ndarray]] = []
    for title, character in drawings:
        image = _draw(_font(folder / FONTS[title][0]), character)
        if image is None:
            continue
        if kept:
            others = np.stack([other for _, other in kept])
            if np.abs(others - image).mean(axis=(1, 2)).min() <= SAME * 255:
                continue
        kept.append((title, image))
    return kept


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    # Without the layout of text, which single characters do not need.
    return ImageFont.truetype(str(path), 2 * SIDE, layout_engine=ImageFont.Layout.BASIC)


def _draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """Return a character in the middle of a square, as large as fits, or None if it is blank."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), character, font=font, fill=255)
    box = image.getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = (SIDE - 2 * MARGIN) / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BOX)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(image, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(canvas, dtype=np.float32)
