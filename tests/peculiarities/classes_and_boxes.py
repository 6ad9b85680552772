"""Cells of classification and detection: class lists, ids, boxes, polygons, splits of YOLO."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peculiarities import cell, make, opened
from rmt.data.splits import Splits

Content = dict[str, Any]


def edited(root: Path, edit: Callable[[Content], Any], split: str = "train") -> None:
    """Change a COCO file."""
    path = root / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def boxes(splits: Splits) -> list[list[float]]:
    """Return all training boxes in the order of the images' names."""
    train = splits.train
    order = sorted(range(len(train)), key=lambda i: Path(train.name(i)).name)
    return [box for i in order for box in train.target(i, masks=False)["boxes"].tolist()]


def labels(splits: Splits) -> list[int]:
    train = splits.train
    order = sorted(range(len(train)), key=lambda i: Path(train.name(i)).name)
    return [label for i in order for label in train.target(i, masks=False)["labels"].tolist()]


def relabelled(root: Path, old: str, new: str, split: str = "train") -> Path:
    """Change the first label file of a YOLO set."""
    path = root / "labels" / split / f"{split}_0.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    return path


# Classes.


@cell("Numbers with decimals: class `1.0`, id `1.0`", "read",
      "CSV", "webdataset", "Parquet", "COCO", "YOLO")  # fmt: skip
def decimals(column: str, root: Path) -> Splits:
    place = make(column, root)
    if column == "CSV":
        names = {"blue": "0.0", "green": "1.0", "red": "10.0"}
        rows = [line.split(",") for line in place.read_text().splitlines()]
        rows = [[row[0], names.get(row[1], row[1]), row[2]] for row in rows]
        place.write_text("\n".join(",".join(row) for row in rows))
        splits = opened(column, place)
        assert splits.classes == ("0", "1", "10")
        return splits
    if column in ("webdataset", "Parquet"):
        return _decimals_inside(column, root)
    before = opened(column, place)
    if column == "YOLO":
        for path in (root / "labels" / "train").glob("*.txt"):
            lines = path.read_text().splitlines()
            path.write_text("\n".join(line.replace(" ", ".0 ", 1) for line in lines))
    else:

        def spell(content: Content) -> None:
            for entry in content["annotations"]:
                entry["category_id"] = float(entry["category_id"])
                entry["image_id"] = float(entry["image_id"])
            for entry in content["images"]:
                entry |= {"height": float(entry["height"]), "id": float(entry["id"])}

        edited(root, spell)
    splits = opened(column, place)
    assert labels(splits) == labels(before)
    return splits


def _decimals_inside(column: str, root: Path) -> Splits:
    from rmt.classification.datasets import webdataset

    if column == "webdataset":
        add = webdataset.add_file

        def spelled(archive: Any, name: str, content: bytes) -> None:
            add(archive, name, content + b".0" if name.endswith(".cls") else content)

        webdataset.add_file = spelled
        try:
            place = make(column, root / "decimals")
        finally:
            webdataset.add_file = add
    else:
        import pyarrow
        from pyarrow.parquet import read_table, write_table

        place = root
        for path in (root / "data").glob("*.parquet"):
            table = read_table(path)
            numbers = pyarrow.array([float(n) for n in table["label"].to_pylist()])
            write_table(table.set_column(1, "label", numbers), path)
    splits = opened(column, place)
    assert splits.classes == ("blue", "green", "red")
    assert sorted(set(splits.train.labels)) == [0, 1, 2]
    return splits


@cell("An empty class folder", "counted", "class folders", words="1 empty class folder (none)")
def empty_folder(column: str, root: Path) -> Splits:
    place = make(column, root)
    (root / "train" / "none").mkdir()
    splits = opened(column, place)
    assert splits.classes == ("blue", "green", "red")
    return splits


@cell("A folder around the class folders", "refused", "class folders", words="set data.root to ")
def folder_around(column: str, root: Path) -> Splits:
    make(column, root / "made")
    (root / "set").mkdir()
    (root / "made" / "train").rename(root / "set" / "Dataset")
    (root / "made" / "val" / "red").rename(root / "set" / "Examples")
    return opened(column, root / "set")


@cell("A column divided by `;` or tabs, capitals in the head", "read", "CSV")
def semicolons(column: str, root: Path) -> Splits:
    place = make(column, root)
    text = place.read_text()
    for mark in (";", "\t"):
        place.write_text(text.replace(",", mark).replace("path", "Path").replace("label", "Label"))
        splits = opened(column, place)
        assert (len(splits.train), len(splits.val)) == (12, 12)
    return splits


@cell("An object or image without a class, or of one that is not listed", "left out",
      "CSV", "webdataset", "Parquet", "COCO", "YOLO", "VOC")  # fmt: skip
def unlisted_class(column: str, root: Path) -> Splits:
    place = make(column, root)
    if column == "CSV":
        place.write_text(place.read_text() + "images/train/red/red_0.png,,train\n")
    elif column == "webdataset":
        (root / "classnames.txt").write_text("one\ntwo\n")
    elif column == "Parquet":
        import pyarrow
        from pyarrow.parquet import read_table, write_table

        path = root / "data" / "train-00000-of-00001.parquet"
        table = read_table(path)
        numbers = pyarrow.array([None, *table["label"].to_pylist()[1:]])
        write_table(table.set_column(1, "label", numbers), path)
    elif column == "COCO":
        edited(root, lambda content: content["annotations"][0].update(category_id=77))
    elif column == "YOLO":
        path = root / "labels" / "train" / "train_0.txt"
        path.write_text(path.read_text() + "9 0.5 0.5 0.1 0.1\n")
    else:
        (root / "classes.txt").write_text("disc\nsquare\n")
        path = root / "train" / "train_0.xml"
        names = [name for name in ("disc", "square") if f"<name>{name}" in path.read_text()]
        path.write_text(path.read_text().replace(f"<name>{names[0]}", "<name>rare", 1))
    return opened(column, place)


@cell("Two classes of one name", "read", "COCO")
@cell("Two classes of one name", "counted", "YOLO", words="1 class name that repeats")
@cell("Two classes of one name", "read", "VOC")
@cell("Two classes of one name", "counted", "masks", words="1 class named twice (disc)")
def one_name(column: str, root: Path) -> Splits:
    """They are one class."""
    place = make(column, root)
    if column == "masks":
        (root / "classes.txt").write_text("ground\ndisc\ndisc\n")
        splits = opened(column, place)
        assert splits.classes == ("ground", "disc")
        values = {int(v) for i in range(6) for v in np.unique(splits.train.read(i)[1])}
        assert values == {0, 1}
        return splits
    if column == "COCO":
        for split in ("train", "val"):
            edited(root, lambda c: c["categories"][1].update(name="disc"), split)
    elif column == "YOLO":
        path = root / "data.yaml"
        path.write_text(path.read_text().replace("- square", "- disc"))
    else:
        (root / "classes.txt").write_text("disc\nsquare\ndisc\n")
        splits = opened(column, place)
        assert splits.classes == ("disc", "square")
        return splits
    splits = opened(column, place)
    assert splits.classes == ("disc",)
    assert set(labels(splits)) == {0}
    assert len(labels(splits)) == 15
    return splits


@cell("A category that only groups others (Roboflow)", "counted", "COCO",
      words="1 category that only groups others (shapes)")  # fmt: skip
def root_category(column: str, root: Path) -> Splits:
    place = make(column, root)
    for split in ("train", "val"):

        def group(content: Content) -> None:
            for entry in content["categories"]:
                entry["supercategory"] = "shapes"
            whole = {"id": 0, "name": "shapes", "supercategory": "none"}
            content["categories"].insert(0, whole)

        edited(root, group, split)
    splits = opened(column, place)
    assert splits.classes == ("disc", "square")
    return splits


# COCO's fields.


@cell("Ids as text; annotation ids that repeat or are missing", "read", "COCO")
def text_ids(column: str, root: Path) -> Splits:
    place = make(column, root)
    before = opened(column, place)

    def spell(content: Content) -> None:
        for entry in (*content["images"], *content["categories"]):
            entry["id"] = str(entry["id"])
        for i, entry in enumerate(content["annotations"]):
            entry |= {"image_id": f"{entry['image_id']}", "category_id": f"{entry['category_id']}"}
            entry["id"] = str(i // 2)
        del content["annotations"][0]["id"]

    edited(root, spell)
    splits = opened(column, place)
    assert boxes(splits) == boxes(before)

    def name(content: Content) -> None:
        for entry in content["images"]:
            entry["id"] = f"image-{entry['id']}"
        for entry in content["annotations"]:
            entry["image_id"] = f"image-{entry['image_id']}"

    edited(root, name)
    assert boxes(opened(column, place)) == boxes(before)
    return splits


@cell("No `area`, `iscrowd` or `bbox`, or null", "read", "COCO")
def missing_fields(column: str, root: Path) -> Splits:
    place = make(column, root)
    before = opened(column, place)

    def drop(content: Content) -> None:
        for i, entry in enumerate(content["annotations"]):
            if not entry["iscrowd"]:
                entry |= {"area": None, "iscrowd": None} if i % 2 else {}
                entry.pop("area")
                entry.pop("iscrowd")
        content["annotations"][0].pop("bbox")  # its mask has one

    edited(root, drop)
    splits = opened(column, place)
    assert len(boxes(splits)) == len(boxes(before))
    assert np.allclose(boxes(splits)[1:], boxes(before)[1:])
    assert np.allclose(boxes(splits)[0], boxes(before)[0], atol=1)
    return splits


@cell("Sizes that are missing, 0, -1 or text: the image's own", "read", "COCO", "VOC")
def sizes_of_images(column: str, root: Path) -> Splits:
    place = make(column, root)
    before = opened(column, place)
    if column == "COCO":

        def spoil(content: Content) -> None:
            first, second, third, fourth, *_ = content["images"]
            first |= {"width": -1, "height": -1}
            second |= {"width": 0, "height": None}
            third |= {"width": str(third["width"]), "height": f"{third['height']}.0"}
            del fourth["width"], fourth["height"]

        edited(root, spoil)
    else:
        for i, size in enumerate(
            ("<size />", "", "<size><width>0</width><height>0</height></size>")
        ):
            path = root / "train" / f"train_{i}.xml"
            head, _, rest = path.read_text().partition("<size>")
            path.write_text(head + size + rest.partition("</size>")[2])
    splits = opened(column, place)
    assert boxes(splits) == boxes(before)
    return splits


def turned_photo(root: Path, stem: str) -> tuple[int, int]:
    """Store an image lying on its side, with the EXIF tag that turns it; return its stored size."""
    path = next(path for path in root.rglob(f"{stem}.*") if path.suffix in (".png", ".jpg"))
    upright = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(path, exif=exif)
    return stored.size


@cell("Photos with an EXIF rotation: sizes and boxes as stored, or upright", "read", "COCO", "VOC")
def exif(column: str, root: Path) -> Splits:
    """An annotation lies in the frame that its size says; Label Studio's size is of the other."""
    place = make(column, root)
    upright = boxes(opened(column, place))
    width, height = turned_photo(root, "train_1")
    splits = opened(column, place)
    at = [Path(splits.train.name(i)).stem for i in range(len(splits.train))].index("train_1")
    assert boxes(splits) == upright  # sizes and boxes upright
    assert splits.train.image(at).size == (height, width)
    if column == "VOC":
        path = root / "train" / "train_1.xml"
        text = path.read_text().replace(f"<width>{height}<", "<width>?<")
        text = text.replace(f"<height>{width}<", f"<height>{height}<").replace("?", str(width))
        path.write_text(text)
    else:
        edited(root, lambda c: c["images"][1].update(width=width, height=height))

        def move(content: Content) -> None:
            own = [a for a in content["annotations"] if a["image_id"] == 2]
            own[0] |= {"bbox": [10, 5, 20, 20], "segmentation": [[10, 5, 30, 5, 30, 25]]}
            for entry in own[1:]:
                entry |= {"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 10, 1, 10, 10]]}

        edited(root, move)
    splits = opened(column, place)  # nothing speaks against the size: the stored frame
    assert splits.train.image(at).size == (width, height)
    if column == "COCO":  # a box beyond it does
        edited(root, lambda c: c["annotations"][3].update(bbox=[55, 10, 20, 20], segmentation=[]))
        splits = opened(column, place)
        assert splits.train.image(at).size == (height, width)
        assert "1 photo listed unrotated" in splits.describe()
    return splits


@cell("Photos with an EXIF rotation: boxes as shares of the upright image", "read", "YOLO")
def exif_shares(column: str, root: Path) -> Splits:
    place = make(column, root)
    upright = boxes(opened(column, place))
    turned_photo(root, "train_1")
    splits = opened(column, place)
    assert boxes(splits) == upright
    return splits


# Objects.


@cell("A polygon of two points, a mask that does not fit", "left out", "COCO")
def polygons(column: str, root: Path) -> Splits:
    place = make(column, root)
    count = len(boxes(opened(column, place)))

    def spoil(content: Content) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
        content["annotations"][1]["segmentation"].append([1, 2, 3, 4])  # beside a good one
        content["annotations"][2]["segmentation"] = {"size": [1, 1], "counts": [1]}

    edited(root, spoil)
    splits = opened(column, place)
    assert len(boxes(splits)) == count - 2
    assert "3 left out" in splits.describe()
    assert len(splits.train.target(0, masks=True)["masks"]) == 1
    return splits


@cell("An object without a box, or with words for numbers", "left out", "COCO", "YOLO", "VOC")
def bad_boxes(column: str, root: Path) -> Splits:
    place = make(column, root)
    count = len(boxes(opened(column, place)))
    if column == "COCO":
        edited(root, lambda c: c["annotations"][0].update(bbox=["a", None, 1, 2]))
    elif column == "YOLO":
        relabelled(root, "0.", "x.")
    else:
        path = root / "train" / "train_0.xml"
        path.write_text(path.read_text().replace("<xmin>", "<xmin>x", 1))
    splits = opened(column, place)
    assert len(boxes(splits)) == count - 1
    return splits


@cell("Boxes that reach over their image: cut", "counted", "COCO", "YOLO", "VOC",
      words="1 box cut at its image's border")  # fmt: skip
def over_the_border(column: str, root: Path) -> Splits:
    place = make(column, root)
    if column == "COCO":
        edited(root, lambda c: c["annotations"][0].update(bbox=[-5, -5, 20, 20]))
    elif column == "YOLO":
        path = root / "labels" / "train" / "train_0.txt"
        path.write_text("0 -0.01 0.5 0.2 1.1\n")
    else:
        path = root / "train" / "train_0.xml"
        head, _, rest = path.read_text().partition("<xmin>")
        path.write_text(f"{head}<xmin>-5{rest[rest.index('<') :]}")
    return opened(column, place)


@cell("Boxes without area, or outside: not trained on", "counted", "COCO", "YOLO", "VOC",
      words="1 box without area in its image")  # fmt: skip
def without_area(column: str, root: Path) -> Splits:
    place = make(column, root)
    if column == "COCO":
        edited(root, lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 20]))
    elif column == "YOLO":
        path = root / "labels" / "train" / "train_0.txt"
        path.write_text("0 0.5 0.5 0 0.1\n1 0.5 0.5 0.3 0.3\n")
    else:
        path = root / "train" / "train_0.xml"
        head, _, rest = path.read_text().partition("<xmin>")
        path.write_text(f"{head}<xmin>9000{rest[rest.index('<') :]}")
    return opened(column, place)


@cell("Crowds (COCO) and difficult objects (VOC): neither trained on nor scored", "counted", "COCO",
      words="2 crowds, not trained on")  # fmt: skip
@cell("Crowds (COCO) and difficult objects (VOC): neither trained on nor scored", "counted", "VOC",
      words="1 difficult object, left out of all")  # fmt: skip
def ignored(column: str, root: Path) -> Splits:
    place = make(column, root)
    if column == "VOC":
        path = root / "train" / "train_0.xml"
        path.write_text(path.read_text().replace("</name>", "</name><difficult>1</difficult>", 1))
        splits = opened(column, place)
        assert len(splits.train.target(0, masks=False)["labels"]) == 2
        assert len(splits.train.only()["annotations"]) == 15
        return splits
    return opened(column, place)


@cell("Images without objects: background", "counted", "YOLO",
      words="1 training image without objects (trained on as background)")  # fmt: skip
@cell("Images without objects: not trained on unless `data.keep_empty`", "counted", "COCO", "VOC",
      words="1 training image without objects (not trained on: data.keep_empty)")  # fmt: skip
def background(column: str, root: Path) -> Splits:
    place = make(column, root)
    splits = opened(column, place)
    assert len(splits.train) == (6 if column == "YOLO" else 5)
    assert len(opened(column, place, keep_empty=True).train) == 6
    return splits


# Layouts.


@cell("CVAT: `instances_default.json` with `images/default/`; its VOC and YOLO exports", "read",
      "COCO", "YOLO", "VOC")  # fmt: skip
def cvat(column: str, root: Path) -> Splits:
    make(column, root / "made")
    made = root / "made"
    if column == "COCO":
        (made / "annotations" / "val.json").unlink()
        (made / "annotations" / "train.json").rename(
            made / "annotations" / "instances_default.json"
        )
        (made / "images" / "train").rename(made / "images" / "default")
    elif column == "VOC":
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (made / folder).mkdir(parents=True)
        files = sorted((made / "train").iterdir())
        for path in files:
            home = "Annotations" if path.suffix == ".xml" else "JPEGImages"
            path.rename(made / home / path.name)
        listed = "\n".join(path.stem for path in files if path.suffix == ".xml")
        (made / "ImageSets" / "Main" / "default.txt").write_text(listed)
        for path in (made / "val").iterdir():
            path.unlink()
    else:
        (made / "data.yaml").unlink()
        images = made / "obj_train_data"
        (made / "images" / "train").rename(images)
        for path in (made / "labels" / "train").iterdir():
            path.rename(images / path.name)
        (made / "obj.names").write_text("disc\nsquare\n")
        (made / "obj.data").write_text(
            "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
        )
        names = [f"data/obj_train_data/{path.name}" for path in sorted(images.glob("*.png"))]
        (made / "train.txt").write_text("\n".join(names))
    splits = opened(column, made, val_fraction=0.5, keep_empty=True)
    assert (len(splits.train), len(splits.val)) == (3, 3)
    assert splits.held_out
    return splits


@cell("Label Studio: `result.json` with `images/`; `classes.txt` and `notes.json`", "read", "COCO",
      "YOLO", "VOC")  # fmt: skip
def label_studio(column: str, root: Path) -> Splits:
    make(column, root / "made")
    made, own = root / "made", root / "export"
    (own / "images").mkdir(parents=True)
    (own / "notes.json").write_text(json.dumps({"categories": [{"id": 0, "name": "disc"}]}))
    source = made / ("train" if column == "VOC" else "images/train")
    for path in sorted(source.glob("*.png")):
        path.rename(own / "images" / path.name)
    if column == "COCO":
        content = json.loads((made / "annotations" / "train.json").read_text())
        for entry in content["images"]:
            entry["file_name"] = f"images\\{entry['file_name']}"
        (own / "result.json").write_text(json.dumps(content))
    elif column == "YOLO":
        (made / "labels" / "train").rename(own / "labels")
        (own / "classes.txt").write_text("disc\nsquare\n")
    else:
        (own / "Annotations").mkdir()
        for path in (made / "train").glob("*.xml"):
            text = path.read_text().replace(".png</filename>", "</filename>")
            (own / "Annotations" / path.name).write_text(text)
    splits = opened(column, own, val_fraction=0.5, keep_empty=True)
    assert (len(splits.train), len(splits.val)) == (3, 3)
    assert splits.classes == ("disc", "square")
    return splits


@cell("Roboflow: `train/`, `valid/` and `test/` with all of a split in them", "read",
      "COCO", "YOLO", "VOC")  # fmt: skip
def roboflow(column: str, root: Path) -> Splits:
    make(column, root / "made")
    made, own = root / "made", root / "export"
    for split, folder in (("train", "train"), ("val", "valid")):
        (own / folder).mkdir(parents=True)
        source = made / (split if column == "VOC" else f"images/{split}")
        home = own / folder / ("images" if column == "YOLO" else "")
        home.mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            path.rename(home / path.name)
        if column == "COCO":
            listing = made / "annotations" / f"{split}.json"
            listing.rename(own / folder / "_annotations.coco.json")
        elif column == "YOLO":
            (made / "labels" / split).rename(own / folder / "labels")
    if column == "YOLO":
        # Another data set beside this one is not meant by "..".
        (root / "train" / "images").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "train" / "images" / "other.png")
        (own / "data.yaml").write_text(
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
            "nc: 2\nnames: ['disc', 'square']\nroboflow:\n  version: 1\n"
        )
        (own / "test" / "images").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(own / "test" / "images" / "x.png")
    (own / "README.roboflow.txt").write_text("exported\n")
    splits = opened(column, own, keep_empty=True)
    assert (len(splits.train), len(splits.val)) == (6, 6)
    return splits


@cell("`data.yaml` says where the splits are: folders, lists, text files, `path`", "read", "YOLO")
def described_splits(column: str, root: Path) -> Splits:
    place = make(column, root)
    for split in ("train", "val"):  # one flat folder, divided by lists alone
        for kind in ("images", "labels"):
            for path in (root / kind / split).iterdir():
                path.rename(root / kind / path.name)
            (root / kind / split).rmdir()
    names = [path.name for path in sorted((root / "images").iterdir())]
    (root / "train.txt").write_text("\r\n".join(f"./images/{n}" for n in names if n[-5] != "0"))
    (root / "val.txt").write_text(
        "\n".join(f"/kaggle/set/images/{n}" for n in names if n[-5] == "0")
    )
    head = "names: {0: disc, 1: square}\n"
    (root / "data.yaml").write_text(f"path: ../datasets/x\ntrain: train.txt\nval: val.txt\n{head}")
    splits = opened(column, place)
    assert (len(splits.train), len(splits.val)) == (10, 2)
    for folder in ("a", "b", "c"):
        (root / "images" / folder).mkdir()
        (root / "labels" / folder).mkdir()
    for name in names:
        folder = "abc"[int(name[-5]) % 3]
        (root / "images" / name).rename(root / "images" / folder / name)
        label = f"{name[:-4]}.txt"
        (root / "labels" / label).rename(root / "labels" / folder / label)
    (root / "args.yaml").write_text("task: detect\nname: x\n")
    (root / "data.yaml").unlink()
    (root / "data.yml").write_text(f"path: .\ntrain: [images/a, images/b]\nval: images\\c\n{head}")
    splits = opened(column, place)
    assert (len(splits.train), len(splits.val)) == (8, 4)
    assert not splits.findings.left_out
    return splits


@cell("`data.yaml` names the same images for two splits (coco128)", "counted", "YOLO",
      words="6 val images that are also of train")  # fmt: skip
def same_images(column: str, root: Path) -> Splits:
    place = make(column, root)
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / kind / "train2017")
        for path in (root / kind / "val").iterdir():
            path.unlink()
    (root / "data.yaml").write_text(
        "train: images/train2017\nval: images/train2017\nnames: [disc, square]\n"
    )
    splits = opened(column, place)
    assert splits.held_out
    return splits


@cell("`data.yaml` names training or validation images that are not there", "refused", "YOLO",
      words="which is not there; name a folder")  # fmt: skip
def nowhere(column: str, root: Path) -> Splits:
    place = make(column, root)
    (root / "images" / "val").rename(root / "images" / "holdout")
    return opened(column, place)


@cell("`data.yaml` names test images that are not there", "counted", "YOLO",
      words="1 split not used (data.yaml says test: images/holdout, which is not")  # fmt: skip
def no_test(column: str, root: Path) -> Splits:
    place = make(column, root)
    path = root / "data.yaml"
    path.write_text(path.read_text() + "test: images/holdout\n")
    return opened(column, place)


@cell("No file names the classes", "refused", "YOLO", words="no data.yaml")
@cell("No file names the classes", "refused", "masks", words="classes.txt")
def no_names(column: str, root: Path) -> Splits:
    place = make(column, root)
    for name in ("data.yaml", "classes.txt"):
        (root / name).unlink(missing_ok=True)
    return opened(column, place)


@cell("Pose labels (`kpt_shape`): their boxes", "read", "YOLO")
def pose(column: str, root: Path) -> Splits:
    place = make(column, root)
    for path in (root / "labels").rglob("*.txt"):  # boxes in place of polygons
        lines = [f"{i % 2} 0.5 0.5 0.25 0.5" for i in range(3 if path.stem != "train_5" else 0)]
        path.write_text("\n".join(lines))
    before = boxes(opened(column, place))
    described = (root / "data.yaml").read_text()
    for shape in ("[2, 2]", "[3, 3]"):
        numbers = " 0.4 0.4 0.6 0.6" if shape == "[2, 2]" else " 0.4 0.4 2 0.6 0.6 1 0 0 0"
        for path in (root / "labels").rglob("*.txt"):
            lines = [" ".join(line.split()[:5]) for line in path.read_text().splitlines()]
            path.write_text("\n".join(f"{line}{numbers}" for line in lines))
        (root / "data.yaml").write_text(f"{described}kpt_shape: {shape}\n")
        splits = opened(column, place)
        assert boxes(splits) == before
    return splits


@cell("Pixels for shares, confidences, half polygons", "left out", "YOLO")
def strange_lines(column: str, root: Path) -> Splits:
    place = make(column, root)
    count = len(boxes(opened(column, place)))
    path = root / "labels" / "train" / "train_0.txt"
    lines = ("0 320 240 50 60", "0 0.5 0.5 0.1 0.1 0.9", "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4")
    path.write_text(path.read_text() + "\n".join(lines))
    splits = opened(column, place)
    assert len(boxes(splits)) == count
    assert "3 label lines that make no sense" in splits.describe()
    return splits


@cell("Lists of `ImageSets`: names with blanks, a second column, `trainval`", "read", "VOC")
def image_sets(column: str, root: Path) -> Splits:
    make(column, root / "made")
    made, own = root / "made", root / "own"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (own / folder).mkdir(parents=True)
    for split in ("train", "val"):
        names = []
        for path in sorted((made / split).glob("*.xml")):
            stem = f"photo {path.stem} 1"
            names.append(stem)
            text = path.read_text().replace(f"{path.stem}.png", f"{stem}.png")
            (own / "Annotations" / f"{stem}.xml").write_text(text)
            path.with_suffix(".png").rename(own / "JPEGImages" / f"{stem}.png")
        lines = [f"{name}  {-1 if i % 2 else 1}" for i, name in enumerate(names)]
        (own / "ImageSets" / "Main" / f"{split.title()}.txt").write_text("\n".join(lines))
        (own / "ImageSets" / "Main" / f"disc_{split}.txt").write_text("\n".join(lines))
    splits = opened(column, own, keep_empty=True)
    assert (len(splits.train), len(splits.val)) == (6, 6)
    lists = own / "ImageSets" / "Main"
    (lists / "Train.txt").rename(lists / "trainval.txt")
    (lists / "Val.txt").rename(lists / "test.txt")
    splits = opened(column, own, keep_empty=True, val_fraction=0.5)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (3, 3, 6)
    return splits


@cell("A test split without annotations", "counted", "COCO", "YOLO", "VOC",
      words="the test split has no objects")  # fmt: skip
def unlabelled_test(column: str, root: Path) -> Splits:
    place = make(column, root)
    if column == "COCO":
        content = json.loads((root / "annotations" / "val.json").read_text())
        test = root / "annotations" / "test.json"
        test.write_text(json.dumps(content | {"annotations": []}))
        shutil.copytree(root / "images" / "val", root / "images" / "test")
    else:
        home = root / ("test" if column == "VOC" else "images/test")
        home.mkdir()
        Image.new("RGB", (8, 8)).save(home / "t.png")
        if column == "VOC":
            (home / "t.xml").write_text("<annotation><filename>t.png</filename></annotation>")
        else:
            path = root / "data.yaml"
            path.write_text(path.read_text() + "test: images/test\n")
    splits = opened(column, place)
    assert splits.test is None
    return splits
