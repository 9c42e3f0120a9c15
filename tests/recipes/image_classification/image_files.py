"""Small photographs of noise, in the layouts that the recipe reads."""

import io
import tarfile

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def encode(seed, size=(40, 48), kind="JPEG", mode="RGB"):
    """Return a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write_folders(root, counts=(4, 4, 4), evaluated=(2, 2, 2), evaluation="val"):
    """Write `train` and an evaluation split, a folder a class."""
    for split, numbers in (("train", counts), (evaluation, evaluated)):
        for label, (name, count) in enumerate(zip(CLASSES, numbers, strict=True)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(encode(100 * label + number))
    return root


def write_shard(path, samples):
    """Write a tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
