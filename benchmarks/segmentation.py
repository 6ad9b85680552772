"""Train rmt_nano + Semantic FPN from scratch on two small real data sets, next to another network.

The other one is segmentation-models-pytorch's FPN with timm's regnetx_002: about as many multiply-
accumulates in the encoder (0.15 G against 0.19 G at 192²), 3.6 times its parameters. Both have
128-channel pyramids and 64-channel heads. Data, augmentation, loss, optimizer, schedule, EMA and
number of steps are the same for both, all weights are randomly initialised, and the EMA weights of
the last step are evaluated: nothing is selected on test data.

Data (written by this program from packages on this machine):
  nuclei   stardist 0.9.2's 512x512 microscope image; left half for training, right half for test.
           --nuclei FOLDER_OR_WHEEL (default: the installed package)
  colin27  one head MRI, axial slices, with 116 AAL regions of both sides merged into 16 and
           background; of every five slabs of 10 slices the second is for validation and the fourth
           for test (so that each split has every region), with 2 unused slices on each side.
           Debian's package mricron-data.

Run: python benchmarks/segmentation.py nuclei [--epochs 200] [--out runs/nuclei]
     python benchmarks/segmentation_plots.py draws the learning curves
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib.util
import json
import platform
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from from_scratch import train
from PIL import Image
from torch import Tensor, nn

from rmt.recipes import as_dict
from rmt.segmentation.datamodule import SegmentationData
from rmt.segmentation.plots import draw
from rmt.segmentation.segmenter import Segmenter, pixel_loss
from rmt.training.fit import load_recipe

RESULTS = Path(__file__).parent / "results"
MRICRON = Path("/usr/share/mricron/templates")
ENCODER = "tu-regnetx_002"
# Class -> how the names of its AAL regions begin; the first match counts.
REGIONS = {
    "precentral": ("Precentral",),
    "frontal": ("Frontal", "Olfactory", "Rectus", "Supp_Motor", "Rolandic"),
    "insula": ("Insula",),
    "cingulate": ("Cingulum",),
    "medial temporal": ("Hippocampus", "ParaHippocampal", "Amygdala"),
    "occipital": ("Calcarine", "Cuneus", "Lingual", "Occipital"),
    "fusiform": ("Fusiform",),
    "postcentral": ("Postcentral", "Paracentral"),
    "parietal": ("Parietal", "SupraMarginal", "Angular"),
    "precuneus": ("Precuneus",),
    "caudate": ("Caudate",),
    "putamen, pallidum": ("Putamen", "Pallidum"),
    "thalamus": ("Thalamus",),
    "temporal": ("Heschl", "Temporal"),
    "cerebellum": ("Cerebelum",),
    "vermis": ("Vermis",),
}
SLAB, GAP = 10, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", choices=("nuclei", "colin27"), default="colin27")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--nuclei", help="stardist wheel or package folder")
    parser.add_argument(
        "--backbone",
        default="rmt_nano",
        help="with one other than rmt_nano the other network is not trained",
    )
    parser.add_argument("--accelerator", default="cpu", help="Lightning's name")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args()
    out = args.out or Path("runs") / args.data
    if args.data == "nuclei":
        root = write_nuclei(out / "data", args.nuclei)
        keys = {
            "data.crop": 128,
            "data.repeats": 32,
            "data.batch_size": 8,
            "augment.flip_vertical": 0.5,
        }
        epochs = args.epochs or 60
    else:
        root = write_colin27(out / "data")
        # One scanner, one head: grey values need no augmentation, and the sides share names.
        keys = {"data.crop": 192, "data.batch_size": 4, "augment.scale": [0.8, 1.25]}
        keys |= {"augment.photometric": False}
        epochs = args.epochs or 60
    keys |= {"data.root": root, "model.backbone": args.backbone, "schedule.epochs": epochs}
    keys |= {"trainer.evaluate_every": max(1, epochs // 10), "data.num_workers": 0}
    options = [option for key, value in keys.items() for option in (f"--{key}", str(value))]
    recipe = load_recipe("small/segmentation", options)
    kinds = {f"{args.backbone} + Semantic FPN": None, f"smp FPN, {ENCODER}": SmpFPN}
    alone = "" if args.backbone == "rmt_nano" else f"_{args.backbone}"
    rows = {}
    for name in list(kinds)[: 1 if alone else 2]:
        rows[name] = run(recipe, out, kinds[name], args.accelerator)
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "history"}), flush=True)
    record = {
        "what": f"semantic segmentation from scratch, {args.data}"
        + (f", {args.backbone}" if alone else ""),
        "command": f"python benchmarks/segmentation.py {args.data} --epochs {epochs}"
        + (f" --backbone {args.backbone} --accelerator {args.accelerator}" if alone else ""),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), "
        + args.accelerator.upper(),
        "note": args.note,
        "versions": {
            module: importlib.import_module(module).__version__
            for module in ("rmt", "torch", "timm", "lightning", "segmentation_models_pytorch")
        },
        "recipe": as_dict(recipe) | {"data": as_dict(recipe)["data"] | {"root": args.data}},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"segmentation_{args.data}{alone}.json").write_text(
        json.dumps(record, indent=1) + "\n"
    )


def run(recipe, out: Path, kind: type[nn.Module] | None, accelerator: str) -> dict:
    """Train and test one network; return its numbers."""
    data = SegmentationData(recipe)
    other = None if kind is None else kind(len(data.classes))
    found = train(recipe, data, other, accelerator)
    if other is None:
        found.final.info |= {"label_names": list(data.classes), "recipe": as_dict(recipe)}
        found.final.save_pretrained(out)
        draw(found.final, recipe, out)
    return {
        "params": found.params,
        "seconds": round(found.seconds),
        "cpu_seconds": round(found.cpu_seconds),
        "steps": found.steps,
        "train_images": len(data.splits.train),
        "test_images": len(data.splits.test),
        "test": {key: round(value, 3) for key, value in found.test.items()},
        "history": [
            {"step": r["step"], "val_mIoU": round(r["ema/mIoU"], 3), "loss": round(r["loss"], 5)}
            for r in found.history
        ],
    }


class SmpFPN(Segmenter):
    """segmentation-models-pytorch's FPN with the interface that the training loop calls."""

    def __init__(self, num_classes: int) -> None:
        nn.Module.__init__(self)
        import segmentation_models_pytorch as smp

        self.num_classes, self.info = num_classes, {}
        self.net = smp.FPN(
            ENCODER,
            encoder_weights=None,
            decoder_pyramid_channels=128,
            decoder_segmentation_channels=64,
            decoder_dropout=0.1,
            classes=num_classes,
        )

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, full_size: bool = True
    ) -> Tensor | dict[str, Tensor]:
        height, width = images.shape[2:]
        padded = nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
        logits = self.net(padded)[:, :, :height, :width]
        return logits if labels is None else {"loss_seg": pixel_loss(logits, labels)}


def write_nuclei(root: Path, source: str | None) -> Path:
    image, mask = (np.asarray(Image.open(file)) for file in _stardist_files(source))
    low, high = np.percentile(image, (0.1, 99.9))
    grey = ((image - low) / (high - low)).clip(0, 1) * 255
    splits = {
        "train": np.s_[:384, :256],
        "val": np.s_[384:, :256],
        "test": np.s_[:, 256:],
    }
    for split, at in splits.items():
        _write(grey[at], mask[at] > 0, root, split, "nuclei")
    (root / "classes.txt").write_text("background\nnucleus\n")
    return root


def _stardist_files(source: str | None) -> list:
    names = ["stardist/data/images/img2d.tif", "stardist/data/images/mask2d.tif"]
    if source and source.endswith(".whl"):
        with zipfile.ZipFile(source) as wheel:
            return [BytesIO(wheel.read(name)) for name in names]
    if source is None:
        spec = importlib.util.find_spec("stardist")
        if spec is None:
            raise SystemExit("stardist is not installed; name its wheel with --nuclei")
        source = str(Path(spec.origin).parent)
    return [Path(source).parent / name for name in names]


def write_colin27(root: Path) -> Path:
    if not MRICRON.is_dir():
        raise SystemExit(f"{MRICRON} does not exist; install Debian's package mricron-data")
    head, regions = (_volume(MRICRON / f"{name}.nii.gz") for name in ("ch2", "aal"))
    table = np.zeros(256, dtype=np.uint8)
    for line in (MRICRON / "aal.nii.txt").read_text().split("\n"):
        if not line.strip():
            continue
        number, name, _ = line.split()
        starts = [i for i, names in enumerate(REGIONS.values()) if name.startswith(names)]
        table[int(number)] = 1 + starts[0]
    labels = table[regions]
    used = np.flatnonzero(labels.any(axis=(0, 1)))
    for z in range(used[0], used[-1] + 1):
        split = _split(z)
        if split:
            # The axes x, y, z start at the left, the back and below; the front is shown on top.
            _write(head[:, ::-1, z].T, labels[:, ::-1, z].T, root, split, f"slice_{z:03d}")
    (root / "classes.txt").write_text("\n".join(["background", *REGIONS]) + "\n")
    return root


def _split(z: int) -> str | None:
    held = {1: "val", 3: "test"}  # of every five slabs
    own, below, above = (held.get(at // SLAB % 5) for at in (z, z - GAP, z + GAP))
    return own or (None if below or above else "train")


def _volume(path: Path) -> np.ndarray:
    """Read the 8-bit voxels (x, y, z) of a NIfTI-1 file."""
    content = gzip.decompress(path.read_bytes())
    header = np.frombuffer(content[:348], dtype=np.uint8)
    shape = header[40:56].view("<i2")[1:4]
    assert header[70:72].view("<i2")[0] == 2, "expected 8-bit voxels"
    start = int(header[108:112].view("<f4")[0])
    return np.frombuffer(content[start:], dtype=np.uint8).reshape(shape, order="F")


def _write(image: np.ndarray, labels: np.ndarray, root: Path, split: str, stem: str) -> None:
    for folder, pixels in (("images", image), ("masks", labels)):
        path = root / folder / split / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
