"""The loaders, on folders made in the real layouts, in small; counts, broken copies, icons."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from recipes.image_retrieval import icons, sources
from recipes.image_retrieval.recall import BOTH, GALLERY, QUERY
from recipes.image_retrieval.sources import COUNTS, Counts, Item, hold_out, load


def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 0)).save(path)


def shades(items):
    """What was drawn, and the label it got."""
    return [(item.read().getpixel((0, 0))[0], item.label) for item in items]


def write_cub(root):
    for number, name in enumerate(("Albatross", "Auklet", "Bunting", "Catbird"), 1):
        for copy in range(2):
            picture(root / "images" / f"{number:03}.{name}" / f"{name}_{copy}.jpg", 50 * number)
    (root / "images.txt").write_text("1 001.Albatross/Albatross_0.jpg\n")


def write_cars_mat(root):
    rows = []
    for number in range(8):
        label = 1 + number % 4
        name = f"car_ims/{number:06}.jpg"
        picture(root / name, 50 * label)
        rows.append((name, 1, 1, 9, 9, label, number % 2))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    table = np.array(rows, dtype=[(field, object) for field in fields])
    savemat(root / "cars_annos.mat", {"annotations": table[None]})


def write_cars_kaggle(root):
    names = ["Acura TL", "AM General Hummer", "Ram C/V Van", "Volvo 240"]
    (root / "names.csv").write_text("\n".join(names) + "\n")
    for part in ("train", "test"):
        rows = []
        for label, name in enumerate(names, 1):
            folder = root / "car_data" / "car_data" / part / name.replace("/", "-")
            picture(folder / f"{label:05}.jpg", 50 * label)
            rows.append([f"{label:05}.jpg", 1, 1, 9, 9, label])
        with (root / f"anno_{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def write_in_shop(root, table="Eval/list_eval_partition.txt", images="Img"):
    lines = ["10", "image_name item_id evaluation_status"]
    statuses = {1: ["train"] * 2, 2: ["query", "gallery", "gallery"], 4: ["train"] * 2}
    statuses[5] = ["query", "query", "gallery"]
    for product, of_product in statuses.items():
        for number, status in enumerate(of_product):
            name = f"img/WOMEN/Dresses/id_{product:08}/{number:02}_1_front.jpg"
            picture(root / images / name, 50 * product)
            lines.append(f"{name}    id_{product:08} {status}")
    path = root / table
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_sop(root):
    for part, classes in (("train", (1, 2)), ("test", (3, 4))):
        lines = ["image_id class_id super_class_id path"]
        for number, label in enumerate(sorted(classes * 2), 1):
            name = f"bicycle_final/{label}_{number}.JPG"
            picture(root / name, 50 * label)
            lines.append(f"{number} {label} 1 {name}")
        (root / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")


WRITERS = {
    "cub": [write_cub],
    "cars": [write_cars_mat, write_cars_kaggle],
    "in_shop": [
        write_in_shop,
        lambda root: write_in_shop(root, "list_eval_partition.txt", "."),
    ],
    "sop": [write_sop],
}
LAYOUTS = [(source, writer) for source, writers in WRITERS.items() for writer in writers]


@pytest.fixture
def small_counts(monkeypatch):
    """The published counts in small: two classes of each half."""
    small = {name: Counts(4, 2, 4, 2, 4) for name in COUNTS}
    small["in_shop"] = Counts(4, 2, 6, 2, 3)
    monkeypatch.setattr(sources, "COUNTS", small)


def test_counts_are_the_published_totals():
    total = {name: counts.train_images + counts.test_images for name, counts in COUNTS.items()}
    assert total == {"cub": 11_788, "cars": 16_185, "in_shop": 52_712, "sop": 120_053}
    assert COUNTS["in_shop"].test_images - COUNTS["in_shop"].queries == 12_612


@pytest.mark.parametrize(("source", "write"), LAYOUTS)
def test_load_reads_every_layout_with_classes_apart(small_counts, tmp_path, source, write):
    write(tmp_path)
    found = load(source, str(tmp_path))
    trained, tested = (dict(shades(items)) for items in found)
    # JPEG moves a shade by a few.
    assert sorted(trained.values()) == sorted(tested.values()) == [0, 1]
    apart = [abs(a - b) for a in trained for b in tested]
    assert min(apart) > 20
    roles = [item.role for item in found.test]
    if source == "in_shop":
        assert sorted(roles) == sorted([QUERY] * 3 + [GALLERY] * 3)
    else:
        assert set(roles) == {BOTH}


@pytest.mark.parametrize(("source", "write"), LAYOUTS)
def test_load_refuses_other_counts(tmp_path, source, write):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"has Counts\(.*, not Counts\(.*--sizes false"):
        load(source, str(tmp_path))
    load(source, str(tmp_path), sizes=False)


def test_load_names_a_missing_image(small_counts, tmp_path):
    write_sop(tmp_path)
    (tmp_path / "bicycle_final" / "3_1.JPG").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 images of the test set are missing.*3_1.JPG"):
        load("sop", str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cub", "images is missing; data_dir is the folder CUB_200_2011"),
        ("cars", "has neither cars_annos.mat nor names.csv"),
        ("in_shop", "list_eval_partition.txt is missing"),
        ("sop", "Ebay_train.txt is missing"),
        ("imagenet", "source='imagenet' is unknown; known sources: cub, cars"),
    ],
)
def test_load_says_which_file_is_missing(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        load(source, str(tmp_path))


def test_load_needs_a_folder_for_photographs():
    with pytest.raises(ValueError, match="source='cub' needs data_dir"):
        load("cub", None)


def test_hold_out_splits_by_class_the_same_each_time():
    items = [Item(np.zeros((2, 2), np.uint8), label) for label in range(10) for _ in range(3)]
    train, held = hold_out(items, 0.3)
    assert [len(train), len(held)] == [21, 9]
    assert sorted({item.label for item in train}) == list(range(7))
    assert sorted({item.label for item in held}) == [0, 1, 2]
    ids = {id(item.image) for item in train} & {id(item.image) for item in held}
    assert not ids
    again = [item.label for item in hold_out(items, 0.3)[0]]
    assert again == [item.label for item in train]


@pytest.mark.parametrize("share", [0.01, 0.95])
def test_hold_out_leaves_two_classes_on_either_side(share):
    items = [Item(np.zeros((2, 2), np.uint8), label) for label in range(10)]
    with pytest.raises(ValueError, match=f"validation_share={share} holds out"):
        hold_out(items, share)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bus", "bus"),
        ("bus-fill", "bus"),
        ("plus-box-outline", "plus"),
        ("arrow-left-circle-fill", "arrow-left"),
        ("file-2-line", "file"),
        ("outline", "outline"),
    ],
)
def test_concepts_are_names_without_styles(name, expected):
    assert icons.concept(name) == expected


def test_icons_are_distinct_drawings_of_concepts_apart():
    found = icons.load_icons()
    assert not {"qtpy", "qtawesome"} & sys.modules.keys()
    parts, drawings = np.array(found.parts), np.bincount(found.labels)
    counts = {part: (sum(drawings[parts == part]), sum(parts == part)) for part in set(parts)}
    assert counts == {"train": (1498, 117), "test": (1453, 116)}
    assert drawings.min() == icons.FEWEST
    images = found.images.astype(np.float32)
    for label in range(0, len(parts), 10):
        of_concept = images[found.labels == label].reshape(-1, icons.SIDE**2)
        apart = np.abs(of_concept[:, None] - of_concept).mean(-1)
        np.fill_diagonal(apart, 255)
        assert apart.min() > icons.SAME * 255
        assert (of_concept.max(-1) > 128).all()
    assert load("icons").counts[:4] == (*counts["train"], *counts["test"])


def test_icons_with_few_drawings_come_along_where_asked_for(monkeypatch):
    few = {name: files for name, files in icons.FONTS.items() if name in ("elusive", "codicon")}
    monkeypatch.setattr(icons, "FONTS", few)
    monkeypatch.setattr(icons, "FEWEST", 3)
    monkeypatch.setattr(icons, "FEWEST_FONTS", 2)
    monkeypatch.setattr(icons, "FEWEST_SPARE", 2)
    draw = icons.load_icons.__wrapped__
    without, found = draw(), draw(spare=True)
    whole = dict(zip(without.names, without.parts, strict=True))
    assert set(whole.values()) == {"train", "test"}
    parts = dict(zip(found.names, found.parts, strict=True))
    # The other concepts are in the part that they were in without the spare ones.
    assert {name: part for name, part in parts.items() if part != "spare"} == whole
    assert len(parts) > 2 * len(whole)


def test_icons_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps QtAwesome==1\.4\.2"):
        icons._folder()
