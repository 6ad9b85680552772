"""How many training images per second does one core load, compared with timm's own loader?

Crops of photos from scikit-learn and scikit-image are written as JPEGs of 500 x 375 into class
folders, a tar file, webdataset shards and Parquet files. Each loader reads them with the ImageNet
recipe's transform (RandAugment, random crop to 224, erasing). The loaders take turns in one process
without worker processes, so that other load on the machine affects all of them. CPU time of the
process is what counts.

    python benchmarks/loading.py [--images 400] [--rounds 5] [--note TEXT]
"""

import argparse
import io
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow.parquet import write_table
from record import write_record
from skimage import data as photos
from sklearn.datasets import load_sample_image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader

from rmt.classification.datamodule import ClassificationData
from rmt.classification.transforms import with_posterize
from rmt.data.loaders import ResumableLoader
from rmt.training.fit import load_recipe

SOURCES = {
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
    "astronaut": photos.astronaut,
    "cat": photos.chelsea,
    "coffee": photos.coffee,
    "motorcycle": lambda: photos.stereo_motorcycle()[0],
    "retina": photos.retina,
    "rocket": photos.rocket,
}
SIZE = (500, 375)
BATCH = 50


def crops(count: int) -> list[tuple[str, str, bytes]]:
    """Return class, name and JPEG of crops of half to all of each photo's width."""
    noise = np.random.default_rng(0)
    found = []
    for name, source in SOURCES.items():
        photo = Image.fromarray(source())
        for i in range(count // len(SOURCES)):
            most = min(photo.width, photo.height * SIZE[0] // SIZE[1])
            width = int(noise.integers(most // 2, most + 1))
            height = width * SIZE[1] // SIZE[0]
            x = int(noise.integers(photo.width - width + 1))
            y = int(noise.integers(photo.height - height + 1))
            file = io.BytesIO()
            photo.resize(SIZE, Image.Resampling.BICUBIC, (x, y, x + width, y + height)).save(
                file, "JPEG", quality=95
            )
            found.append((name, f"{name}_{i:03}", file.getvalue()))
    return found


def tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write(root: Path, images: list[tuple[str, str, bytes]]) -> None:
    """Write the images in all layouts; the first of each class is also the validation split."""
    names = sorted(SOURCES)
    held_out = [next(image for image in images if image[0] == name) for name in names]
    for split, own in (("train", images), ("val", held_out)):
        for name, file, content in own:
            path = root / "class folders" / split / name / f"{file}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        inside = [(f"{name}/{file}.jpg", content) for name, file, content in own]
        tar(root / "tar" / f"{split}.tar", inside)
        for start in range(0, len(own), 100):
            keyed = []
            for name, file, content in own[start : start + 100]:
                keyed += [(f"{file}.jpg", content), (f"{file}.cls", b"%d" % names.index(name))]
            tar(root / "webdataset shards" / f"{split}-{start // 100:06}.tar", keyed)
        columns = {
            "image": [{"bytes": content, "path": f"{file}.jpg"} for _, file, content in own],
            "label": [names.index(name) for name, _, _ in own],
        }
        path = root / "Parquet, row groups of 100" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(pyarrow.table(columns), path, row_group_size=100)


def ours(root: Path) -> ResumableLoader:
    options = [f"--data.root={root}", f"--data.batch_size={BATCH}", "--data.num_workers=0"]
    data = ClassificationData(load_recipe("imagenet/rmt_s", [*options, "--data.repeats=1"]))
    return data.train_loader()


def theirs(root: Path) -> DataLoader:
    recipe = load_recipe("imagenet/rmt_s")
    data, augment = recipe.data, recipe.augment
    dataset = create_dataset("", root=str(root))
    loader = create_loader(
        dataset,
        input_size=(3, data.input_size, data.input_size),
        batch_size=BATCH,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.flip,
        color_jitter=0.0,
        auto_augment=augment.rand_augment,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        re_prob=augment.erasing,
        re_mode="pixel",
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        use_prefetcher=False,  # it would leave normalising and erasing to the accelerator
    )
    with_posterize(dataset.transform)  # otherwise Pillow 13 raises an error
    return loader


def one_pass(loader: DataLoader, epoch: int) -> tuple[int, float, float]:
    """Return images, CPU seconds and seconds of one pass."""
    if isinstance(loader, ResumableLoader):
        loader.batch_sampler.set_epoch(epoch)  # other random numbers each time, as with timm's
    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(len(images) for images, _ in loader)
    return count, time.process_time() - cpu, time.perf_counter() - wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = crops(args.images)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, images)
        loaders = {
            ("class folders", "timm"): theirs(root / "class folders" / "train"),
            ("tar", "timm"): theirs(root / "tar" / "train.tar"),
            **{(path.name, "rmt"): ours(path) for path in sorted(root.iterdir())},
        }
        rates: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in loaders}
        for turn in range(args.rounds + 1):
            for key, loader in loaders.items():
                count, cpu, wall = one_pass(loader, turn)
                if turn:  # the first round is a warm-up
                    rates[key].append((count / cpu, count / wall))
    rows = []
    for (layout, name), found in rates.items():
        cpu, wall = (statistics.median(values) for values in zip(*found, strict=True))
        rows.append(
            {
                "data": layout,
                "loader": name,
                "images_per_cpu_second": round(cpu, 1),
                "images_per_second": round(wall, 1),
                "rounds": [[round(value, 1) for value in pair] for pair in found],
            }
        )
    base = rows[0]["images_per_cpu_second"]
    for row in rows:
        row["relative_to_timm_folders"] = round(row["images_per_cpu_second"] / base, 3)
        print({key: value for key, value in row.items() if key != "rounds"})
    size = statistics.mean(len(content) for _, _, content in images) / 1000
    path = write_record(
        "loading",
        what="training images loaded per second by one core: medians, alternating in one process",
        command=f"python benchmarks/loading.py --images {args.images} --rounds {args.rounds}",
        machine=f"{platform.machine()}, one thread of a CPU with two cores",
        notes=[
            f"{len(images)} JPEGs of {SIZE[0]}x{SIZE[1]}, {size:.0f} kB on average, in "
            "the page cache; rand-m9-mstd0.5-inc1, bicubic crop to 224, erasing 0.25",
            args.note,
        ],
        packages=("rmt", "torch", "timm", "pillow", "pyarrow"),
        rows=rows,
    )
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
