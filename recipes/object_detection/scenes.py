"""Scenes put together from sprites: images whose boxes are exact, since we placed what is in them.

The sprites come with arcade 3.3.3, whose images are by Kenney (www.kenney.nl), public domain under
CC0 1.0. The package is not imported, as it asks for another Pillow; its folder is found.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["CLASSES", "SPRITES", "Scene", "render"]

# What is looked for, and its drawings.
SPRITES: Mapping[str, Sequence[str]] = {
    "fish": ("enemies/fishGreen", "enemies/fishPink"),
    "slime": ("enemies/slimeBlue", "enemies/slimeGreen", "enemies/slimePurple"),
    "bug": ("enemies/bee", "enemies/fly", "enemies/ladybug"),
    "coin": ("items/coinBronze", "items/coinGold", "items/coinSilver"),
    "gem": ("items/gemBlue", "items/gemGreen", "items/gemRed", "items/gemYellow"),
    "key": ("items/keyBlue", "items/keyGreen", "items/keyRed", "items/keyYellow"),
    "tank": ("topdown_tanks/tank_blue", "topdown_tanks/tank_green", "topdown_tanks/tank_red"),
    "person": (
        "animated_characters/female_person/femalePerson_idle",
        "animated_characters/male_person/malePerson_idle",
        "animated_characters/robot/robot_idle",
        "animated_characters/zombie/zombie_idle",
    ),
}
CLASSES = tuple(SPRITES)
# What lies on the ground and is to be overlooked, and the ground.
CLUTTER = ("tiles/bush", "tiles/cactus", "tiles/rock", "tiles/mushroomRed", "tiles/bomb")
GROUNDS = (
    *("tiles/sandCenter", "tiles/grassCenter", "tiles/dirtCenter", "tiles/planetCenter"),
    *("tiles/brickBrown", "tiles/brickGrey", "topdown_tanks/tileGrass1", "topdown_tanks/tileSand1"),
)
OPAQUE = 128  # of 255: what is fainter is no part of an object
MOST_OBJECTS, MOST_CLUTTER = 6, 3
MOST_COVERED = 0.3  # of an object's box, by any other box
TRIES = 20  # for a place where an object covers nothing


class Scene(NamedTuple):
    """An image (height, width, 3) uint8; boxes (n, 4), left, top, right, bottom; classes (n,)."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


@cache
def _sprite(name: str) -> Image.Image:
    """Return a drawing, cut to what is opaque."""
    found = importlib.util.find_spec("arcade")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The sprites are not installed: pip install --no-deps arcade==3.3.3"
        )
    root = Path(next(iter(found.submodule_search_locations))) / "resources" / "assets" / "images"
    with Image.open(root / f"{name}.png") as file:
        image = file.convert("RGBA")
    return image.crop(_opaque_box(image))


def _opaque_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Return the smallest rectangle that holds all that is opaque."""
    box = image.getchannel("A").point(lambda value: 255 * (value >= OPAQUE)).getbbox()
    if box is None:
        raise ValueError("the drawing is transparent throughout.")
    return box


def _draw_sprite(draw: np.random.Generator, name: str, side: float) -> Image.Image:
    """Return a drawing whose longer side is `side` pixels long, every other one mirrored."""
    sprite = _sprite(name)
    scale = side / max(sprite.size)
    width, height = (max(4, round(length * scale)) for length in sprite.size)
    sprite = sprite.resize((width, height), Image.Resampling.BILINEAR)
    if draw.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Resizing has softened the edge, which may have moved it by a pixel.
    return sprite.crop(_opaque_box(sprite))


def _covered(box: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Return the largest share of a box, or of another one, that both have in common."""
    most = 0.0
    for other in others:
        sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        common = float(np.prod(sides.clip(min=0)))
        areas = (float(np.prod(each[2:] - each[:2])) for each in (box, other))
        most = max(most, common / min(areas))
    return most


def render(seed: int, size: int) -> Scene:
    """Put a scene together.

    Args:
        seed: the same seed gives the same scene, on every machine with the same Pillow.
        size: sides of the image, in pixels. The longer sides of objects are from a tenth to a half
            of it, small ones more frequent.
    """
    draw = np.random.default_rng(seed)
    ground = _sprite(GROUNDS[draw.integers(len(GROUNDS))]).convert("RGB")
    tile = ground.resize((size // 2, size // 2), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (size, size))
    for left in range(0, size, size // 2):
        for top in range(0, size, size // 2):
            canvas.paste(tile, (left, top))
    gain = draw.uniform(0.6, 1.2)
    canvas = Image.eval(canvas, lambda value: min(255, value * gain))
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    clutter = draw.integers(MOST_CLUTTER + 1)
    for number in range(clutter + draw.integers(1, MOST_OBJECTS + 1)):
        kind = draw.integers(len(CLASSES))
        names = CLUTTER if number < clutter else SPRITES[CLASSES[kind]]
        side = size * np.exp(draw.uniform(np.log(0.1), np.log(0.5)))
        sprite = _draw_sprite(draw, names[draw.integers(len(names))], side)
        for _ in range(TRIES):
            left, top = (draw.integers(size - length + 1) for length in sprite.size)
            box = np.array([left, top, left + sprite.width, top + sprite.height], dtype=np.float32)
            if _covered(box, boxes) <= MOST_COVERED:
                canvas.paste(sprite, (int(left), int(top)), sprite)
                boxes.append(box)
                classes.append(-1 if number < clutter else int(kind))
                break
    there = np.array(classes) >= 0
    return Scene(
        np.asarray(canvas),
        np.array(boxes, dtype=np.float32).reshape(-1, 4)[there],
        np.array(classes, dtype=np.int64)[there],
    )
