"""How many small images per second does `rmt predict` handle, in batches and one by one?

3,000 PNGs are made from scikit-learn's handwritten digits (8 x 8, enlarged to 40 x 40) and
predicted with `rmt_nano` at 40 x 40, randomly initialised. The batch sizes take turns in one
process, so that other load on the machine affects all of them; records are written as the command
writes them. The network has one thread; images are read in the background. Peak memory is that of
the process up to then, so the largest batches come last.

    python benchmarks/prediction.py [--images 3000] [--rounds 3] [--note TEXT]
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from record import write_record
from sklearn.datasets import load_digits

import rmt
from rmt.tools.predict import predict_files
from rmt.tools.records import RecordWriter

BATCH_SIZES = (1, 4, 16, 64, 256)
SIDE = 40


def write_images(folder: Path, count: int) -> None:
    digits = load_digits().images
    for i in range(count):
        grey = Image.fromarray((digits[i % len(digits)] * 15.9375).astype("uint8"))
        grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / f"{i:05}.png")


def write_model(folder: Path) -> None:
    model = rmt.create_model("rmt_nano", 10)
    size = {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "interpolation": "bilinear"}
    model.pretrained_cfg = model.pretrained_cfg | size
    model.save_pretrained(folder)


def one_pass(images: Path, model: Path, records: Path, batch_size: int) -> tuple[float, int]:
    """Return seconds and peak memory in kB."""
    start = time.perf_counter()
    with RecordWriter(records) as writer:
        for record in predict_files([images], model, device="cpu", batch_size=batch_size):
            writer.write(record)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def largest_difference(first: Path, second: Path) -> float:
    """Return the largest difference of a score; the labels must be the same."""
    largest = 0.0
    for one, other in zip(*(file.open() for file in (first, second)), strict=True):
        ours, theirs = json.loads(one), json.loads(other)
        assert ours["image"] == theirs["image"]
        scores = [{top["label"]: top["score"] for top in own["top"]} for own in (ours, theirs)]
        assert scores[0].keys() == scores[1].keys()
        largest = max([largest, *(abs(scores[0][k] - scores[1][k]) for k in scores[0])])
    return largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[int, list[tuple[float, int]]] = {size: [] for size in BATCH_SIZES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_images(folder / "images", args.images)
        write_model(folder / "model")
        for _ in range(args.rounds):
            for size in BATCH_SIZES:
                records = folder / f"{size}.jsonl"
                found[size].append(one_pass(folder / "images", folder / "model", records, size))
        rows = [
            {
                "batch_size": size,
                "images_per_second": round(args.images / statistics.median(t for t, _ in own), 1),
                "relative": 0.0,
                "largest_difference": largest_difference(
                    folder / f"{size}.jsonl", folder / "1.jsonl"
                ),
                "peak_memory_mb": round(own[0][1] / 1024),
                "rounds": [round(args.images / seconds, 1) for seconds, _ in own],
            }
            for size, own in found.items()
        ]
    for row in rows:
        row["relative"] = round(row["images_per_second"] / rows[0]["images_per_second"], 2)
        print({key: value for key, value in row.items() if key != "rounds"})
    path = write_record(
        "prediction",
        what="small images predicted per second by `rmt predict`'s own function, model loading "
        "and records included: medians, alternating in one process",
        command=f"python benchmarks/prediction.py --images {args.images} --rounds {args.rounds}",
        machine=f"{platform.machine()}, one thread of a CPU with two cores",
        notes=[
            f"rmt_nano, ten classes, {args.images} PNGs of {SIDE} x {SIDE}; "
            "largest_difference is that of a score to the one of batch size 1",
            args.note,
        ],
        packages=("rmt", "torch", "pillow"),
        rows=rows,
    )
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
