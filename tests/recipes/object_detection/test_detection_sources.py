"""The loaders, on folders made in COCO's layouts; and the scenes, whose boxes are exact."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from recipes.object_detection import scenes, sources
from recipes.object_detection.scenes import CLASSES, render
from recipes.object_detection.sources import box_convention, load

# COCO's category numbers have gaps, and tables need not be in order.
CATEGORIES = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 13, "name": "sign"}]
# Left, top, width, height.
ROWS = [
    {"image_id": 7, "category_id": 13, "bbox": [5, 6, 20, 10], "area": 150.5, "iscrowd": 0},
    {"image_id": 7, "category_id": 1, "bbox": [30, 2, 10, 25], "area": 200.0, "iscrowd": 1},
    {"image_id": 9, "category_id": 44, "bbox": [0, 0, 40, 30], "area": 900.0, "iscrowd": 0},
]
IMAGES = [
    {"id": number, "file_name": f"{number:012d}.jpg", "width": 40, "height": 30}
    for number in (7, 8, 9)
]


def jpeg(number):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (10 * number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_coco(root, *, zipped):
    """Both splits with the same images, as COCO's archives have them."""
    files = {}
    for folder in ("train2017", "val2017"):
        table = {"images": IMAGES, "annotations": ROWS, "categories": CATEGORIES}
        files[f"annotations/instances_{folder}.json"] = json.dumps(table).encode()
        for image in IMAGES:
            files[f"{folder}/{image['file_name']}"] = jpeg(image["id"])
    root.mkdir()
    archives = {"annotations": "annotations_trainval2017"}
    for name, content in files.items():
        folder = name.split("/")[0]
        if zipped:
            with zipfile.ZipFile(root / f"{archives.get(folder, folder)}.zip", "a") as archive:
                archive.writestr(name, content)
        else:
            (root / folder).mkdir(exist_ok=True)
            (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("zipped", [False, True])
def test_load_reads_coco_unpacked_or_zipped(tmp_path, zipped):
    found = load("coco", str(write_coco(tmp_path / "coco", zipped=zipped)), sizes=False)
    assert found.names == ("person", "sign", "bottle")
    for split in ("train", "validation"):
        first, second, third = found.splits[split]
        assert (first.number, first.size) == (7, (40, 30))
        assert first.boxes.tolist() == [[5, 6, 25, 16], [30, 2, 40, 27]]
        assert first.classes.tolist() == [1, 0]
        assert first.areas.tolist() == [150.5, 200.0]
        assert first.crowds.tolist() == [False, True]
        assert len(second.boxes) == 0
        assert third.boxes.tolist() == [[0, 0, 40, 30]]
        # Readers travel to worker processes.
        image = pickle.loads(pickle.dumps(third.read))()
        assert image.size == (40, 30)
        assert abs(image.getpixel((5, 5))[0] - 90) < 5


def test_load_counts_what_coco_has(tmp_path, monkeypatch):
    root = str(write_coco(tmp_path / "coco", zipped=False))
    with pytest.raises(ValueError, match="118287"):
        load("coco", root)
    monkeypatch.setattr(sources, "COCO_IMAGES", {"train": 3, "validation": 3})
    monkeypatch.setattr(sources, "COCO_CLASSES", 3)
    assert len(load("coco", root).splits["train"]) == 3


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"neither annotations nor annotations_trainval2017\.zip"):
        load("coco", str(tmp_path))
    with pytest.raises(ValueError, match="source='voc' is unknown; known sources: coco, hub"):
        load("voc", None)


@pytest.mark.parametrize("convention", ["corners", "extent"])
def test_load_reads_the_hub_in_either_convention(tmp_path, monkeypatch, convention):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    objects = {
        "category": Sequence(ClassLabel(names=["person", "sign", "bottle"])),
        "bbox": Sequence(Sequence(Value("float32"), length=4)),
        "area": Sequence(Value("float32")),
    }
    features = Features(
        {
            **{"image_id": Value("int64"), "image": ImageFeature()},
            **{"width": Value("int32"), "height": Value("int32"), "objects": objects},
        }
    )
    numbers = {13: 1, 1: 0, 44: 2}
    rows = []
    for image in IMAGES:
        of = [row for row in ROWS if row["image_id"] == image["id"]]
        boxes = [row["bbox"] for row in of]
        if convention == "corners":
            boxes = [[x, y, x + width, y + height] for x, y, width, height in boxes]
        found = {"category": [numbers[row["category_id"]] for row in of], "bbox": boxes}
        rows.append(
            {
                **{"image_id": image["id"], "image": {"bytes": jpeg(image["id"]), "path": None}},
                **{"width": 40, "height": 30},
                "objects": found | {"area": [row["area"] for row in of]},
            }
        )
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        table = Dataset.from_list(rows, features=features)
        table.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    found = load("hub", str(tmp_path / "data"), sizes=False)
    assert found.names == ("person", "sign", "bottle")
    first, second, third = found.splits["validation"]
    assert first.boxes.tolist() == [[5, 6, 25, 16], [30, 2, 40, 27]]
    assert first.classes.tolist() == [1, 0]
    assert len(second.boxes) == 0
    assert abs(third.read().getpixel((5, 5))[0] - 90) < 5


def test_box_convention_refuses_to_guess():
    sizes = np.array([[40, 30], [40, 30]])
    assert box_convention(np.array([[5, 6, 25, 16], [30, 2, 40, 27]]), sizes) == "corners"
    assert box_convention(np.array([[5, 6, 20, 10], [30, 2, 10, 25]]), sizes) == "extent"
    with pytest.raises(ValueError, match="2 boxes fit both"):
        box_convention(np.array([[1, 1, 9, 9], [2, 3, 8, 9]]), sizes)
    with pytest.raises(ValueError, match="2 boxes fit neither"):
        box_convention(np.array([[30, 2, 10, 29], [30, 2, 60, 90]]), sizes)


def test_render_is_a_matter_of_the_seed():
    one, again, other = render(5, 64), render(5, 64), render(6, 64)
    assert (one.image == again.image).all()
    assert (one.boxes == again.boxes).all()
    assert one.image.shape == other.image.shape
    assert (one.image != other.image).any()


def test_render_draws_each_object_within_its_box_and_up_to_its_edges(monkeypatch):
    """Against the same scene without its last object: what differs is the object."""
    compared = 0
    for seed in range(40):
        pasted = []
        paste = Image.Image.paste

        def record(self, image, box=None, mask=None, pasted=pasted, paste=paste):
            before = np.asarray(self, int)
            paste(self, image, box, mask)
            if mask is not None:
                pasted.append(np.abs(np.asarray(self, int) - before).max(-1))

        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, "paste", record)
            scene = render(seed, 96)
        for (left, top, right, bottom), _ in zip(scene.boxes, scene.classes, strict=True):
            changed = [
                difference
                for difference in pasted
                if not difference[:, : int(left)].any()
                and not difference[:, int(right) :].any()
                and not difference[: int(top)].any()
                and not difference[int(bottom) :].any()
                and difference.any()
            ]
            spans = [np.nonzero(d.any(axis))[0] for d in changed for axis in (0, 1)]
            reach = list(zip(spans[::2], spans[1::2], strict=True))
            # Faint edges may look like the ground: a pixel of each side is allowed for.
            close = [
                columns[0] <= left + 2
                and columns[-1] >= right - 3
                and rows[0] <= top + 2
                and rows[-1] >= bottom - 3
                for columns, rows in reach
            ]
            assert any(close)
            compared += 1
    assert compared > 60


def test_scenes_have_three_fixed_splits_of_eight_classes(monkeypatch):
    monkeypatch.setattr(
        sources, "SCENES", {"train": (6, 0), "validation": (3, 10), "test": (4, 20)}
    )
    sources._scenes.cache_clear()
    found = load("scenes", None, scene_size=64)
    sources._scenes.cache_clear()
    assert found.names == CLASSES
    assert {name: len(images) for name, images in found.splits.items()} == {
        "train": 6,
        "validation": 3,
        "test": 4,
    }
    for images in found.splits.values():
        for image in images:
            assert (image.boxes[:, 2:] - image.boxes[:, :2] >= 3).all()
            assert (image.boxes >= 0).all()
            assert (image.boxes <= 64).all()
            assert image.read().size == (64, 64)


def test_objects_hardly_cover_each_other():
    for seed in range(30):
        boxes = render(seed, 96).boxes
        for number, box in enumerate(boxes):
            assert scenes._covered(box, [*boxes[:number], *boxes[number + 1 :]]) <= 0.3
