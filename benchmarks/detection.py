"""Train rmt_nano from scratch on two small real data sets, next to torchvision's own detectors.

These are RetinaNet and Mask R-CNN with a ResNet-18 FPN (all layers trained, no batch norm frozen).
Data, augmentation, sizes, optimizer, schedule, EMA and number of steps are the same for both, all
weights are randomly initialised, and the EMA weights of the last step are evaluated: nothing is
selected on test data.

Data (written by this program from packages on this machine):
  trees   aerial photos of deepforest 2.1.0 with boxes of tree crowns. The largest photo is for
          training (one ninth of it for validation), the other three are for testing, in tiles.
  nuclei  the 512x512 microscope image of stardist 0.9.2 with masks drawn by people; left half for
          training (its lowest quarter for validation), right half for test.

Run: python benchmarks/detection.py trees [--packages DIR] [--epochs 30] [--out runs/trees]
     DIR holds the unpacked packages (pip install --no-deps --target DIR); default: where Python is.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from from_scratch import train
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from rmt.detection.annotations import assemble
from rmt.detection.datamodule import DetectionData
from rmt.detection.datasets import coco, open_splits, voc
from rmt.detection.plots import draw
from rmt.detection.predict import ObjectPredictor, Options, draw_detections
from rmt.detection.rle import to_rle
from rmt.detection.samples import Samples
from rmt.recipes import as_dict
from rmt.training.fit import load_recipe

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
TREES = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2",),
    "test": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029", "SOAP_061"),
}
# Keys of the history that are recorded.
KEPT = {"step", "loss"} | {f"ema/{kind}_{n}" for kind in ("box", "mask") for n in ("AP", "AP50")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("trees", "nuclei"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--backbone", default="rmt_nano")
    parser.add_argument("--packages", type=Path, help="folder that holds deepforest and stardist")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true", help="bf16-mixed on a CPU with AMX")
    args = parser.parse_args()
    out = args.out or Path("runs") / args.data
    if args.data == "trees":
        root = write_trees(out / "data", package("deepforest", args.packages))
        # Crowns are 20 to 60 pixels wide, and differ between photos. They are trained at 0.9 to 1.4
        # of their size and detected at 1.2, where the smallest anchor (32 pixels) fits them best.
        keys = {"model.head": "retinanet", "model.min_size": 480, "model.max_size": 600}
        keys |= {"augment.crop_size": [160, 256], "augment.min_sizes": [224]}
        keys |= {"augment.brightness": 0.3, "data.repeats": 15}
    else:
        root = write_nuclei(out / "data", package("stardist", args.packages))
        keys = {"model.head": "mask_rcnn", "model.min_size": 512, "model.max_size": 512}
        keys |= {"augment.crop_size": [112, 112], "augment.min_sizes": [224]}
        keys |= {"data.repeats": 32, "model.roi_samples_per_image": 64}
    keys |= {"augment.crop": 1.0, "augment.crop_min_sizes": [], "augment.flip_vertical": 0.5}
    keys |= {"data.root": root, "model.backbone": args.backbone, "schedule.epochs": args.epochs}
    keys |= {"trainer.evaluate_every": max(1, args.epochs // 8), "data.num_workers": 0}
    keys |= {"optimizer.lr": 1e-3, "trainer.precision": args.precision}
    options = [option for key, value in keys.items() for option in (f"--{key}", str(value))]
    recipe = load_recipe("small/detection", options)
    other = "torchvision " + {"trees": "RetinaNet", "nuclei": "Mask R-CNN"}[args.data]
    rows, models = {}, {}
    for name in (f"{args.backbone} + {recipe.model.head}", f"{other}, ResNet-18 FPN"):
        kind = Torchvision if name.startswith("torchvision") else None
        rows[name], models[name] = run(recipe, out, kind, args.accelerator)
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "history"}), flush=True)
    machine = torch.cuda.get_device_name() if args.accelerator == "gpu" else "CPU"
    record = {
        "what": f"detection from scratch, {args.data}",
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), {machine}",
        "note": args.note,
        "versions": {
            module: importlib.import_module(module).__version__
            for module in ("rmt", "torch", "torchvision", "lightning", "faster_coco_eval")
        },
        "recipe": as_dict(recipe) | {"data": as_dict(recipe)["data"] | {"root": args.data}},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    suffix = "" if args.backbone == "rmt_nano" else f"_{args.backbone}"
    name = f"detection_{args.data}{suffix}"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    compare(open_splits(recipe.data).test, models).savefig(IMAGES / f"{name}.png", dpi=70)


def compare(samples: Samples, models: dict[str, nn.Module], index: int = 0) -> Figure:
    """Return one test image with its annotations and the predictions of each network."""
    image = samples.image(index)
    annotated = []
    for own in samples.objects[samples.ids[index]]:
        x, y, w, h = own["bbox"]
        mask = {"mask": own["segmentation"]} if "segmentation" in own else {}
        annotated.append({"box": [x, y, x + w, y + h], "score": 1.0, "label": 0, "name": ""} | mask)
    shown = {"annotated": annotated}
    for name, model in models.items():
        with torch.inference_mode():
            predictor = ObjectPredictor(model, Options())
            (prediction,) = predictor.predict([predictor.prepare(image)])
        shown[name] = [entry | {"name": ""} for entry in prediction["detections"]]
    figure = Figure(figsize=(5 * len(shown), 5), layout="constrained")
    for axis, (name, objects) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axis.imshow(draw_detections(image, objects))
        axis.set_title(name if name == "annotated" else f"{name}, score at least 0.3", fontsize=9)
        axis.set_axis_off()
    return figure


def run(
    recipe, out: Path, kind: type[nn.Module] | None, accelerator: str
) -> tuple[dict, nn.Module]:
    """Train and test one network; return its numbers and its EMA weights."""
    data = DetectionData(recipe)
    other = None if kind is None else kind(recipe, data.classes)
    found = train(recipe, data, other, accelerator)
    if other is None:
        found.final.info["recipe"] = as_dict(recipe)
        found.final.save_pretrained(out)
        draw(found.final, recipe, out)
    numbers = {
        "params": found.params,
        "seconds": round(found.seconds),
        "steps": found.steps,
        "train_images": len(data.splits.train),
        "test_images": len(data.splits.test),
        "test": {key: round(value, 3) for key, value in found.test.items()},
        "history": [
            {key.removeprefix("ema/"): round(value, 4) for key, value in record.items()}
            for record in ({k: v for k, v in r.items() if k in KEPT} for r in found.history)
        ],
    }
    return numbers, found.final


class Torchvision(nn.Module):
    """torchvision's detectors with the interface that the training loop calls."""

    def __init__(self, recipe, classes: tuple[str, ...]) -> None:
        super().__init__()
        wanted = recipe.model
        self.num_classes = len(classes)
        self.info = {"label_names": list(classes)}
        self.has_masks = wanted.head == "mask_rcnn"
        sizes = {"min_size": wanted.min_size, "max_size": wanted.max_size}
        resnet = {"backbone_name": "resnet18", "weights": None, "trainable_layers": 5}
        if self.has_masks:
            body = resnet_fpn_backbone(norm_layer=nn.BatchNorm2d, **resnet)
            self.net = MaskRCNN(
                body,
                self.num_classes + 1,
                box_batch_size_per_image=wanted.roi_samples_per_image,
                **sizes,
            )
        else:
            body = resnet_fpn_backbone(
                norm_layer=nn.BatchNorm2d,
                returned_layers=[2, 3, 4],
                extra_blocks=LastLevelP6P7(256, 256),
                **resnet,
            )
            self.net = RetinaNet(body, self.num_classes, **sizes)

    def forward(
        self, images: list[Tensor], targets=None, *, resize: bool = True, score_threshold=0.05
    ):
        self.net.transform._skip_resize = not resize
        first = int(self.has_masks)  # of the labels; 0 is background there
        if targets is not None:
            return self.net(images, [t | {"labels": t["labels"] + first} for t in targets])
        predictions = []
        for found in self.net(images):
            kept = found["scores"] > score_threshold  # torchvision itself stops at 0.05
            found = {key: value[kept] for key, value in found.items()}
            prediction = {key: found[key] for key in ("boxes", "scores")}
            prediction["labels"] = found["labels"] - first
            if self.has_masks:
                prediction["masks"] = found["masks"][:, 0] >= 0.5
            predictions.append(prediction)
        return predictions


def package(name: str, folder: Path | None) -> Path:
    """Return the folder of an installed or unpacked package, without importing it."""
    if folder is not None:
        return folder / name
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{name} is not installed; run pip install --no-deps --target DIR {name} and name the "
            "folder with --packages DIR"
        )
    return Path(spec.origin).parent


def write_trees(root: Path, source: Path) -> Path:
    """Cut the photos into tiles: ninths of the large one, about 400 pixels wide for testing."""
    tiles: dict[str, list] = {"train": [], "val": [], "test": []}
    for split, stems in TREES.items():
        for stem in stems:
            photo = np.asarray(Image.open(source / "data" / f"{stem}.png").convert("RGB"))
            content = voc.read_files([source / "data" / f"{stem}.xml"])
            boxes = np.array([own["bbox"] for own in content["annotations"]], dtype=float)
            side = 800 if split == "train" else 400
            cut = _tiles(photo, boxes, side)
            if split == "train":
                tiles["train"] += cut[:-1]
                # The validation tiles have the size of the test tiles.
                tiles["val"] += _tiles(*cut[-1], 400)
            else:
                tiles[split] += cut
    for split, cut in tiles.items():
        _write(root, split, cut, "tree")
    return root


def _tiles(photo: np.ndarray, boxes: np.ndarray, side: int) -> list[tuple]:
    """Cut a photo evenly into tiles of about ``side``; a box goes into the tile with most of it."""
    height, width = photo.shape[:2]
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    out = []
    for i in range(rows):
        for j in range(columns):
            y0, y1 = i * height // rows, (i + 1) * height // rows
            x0, x1 = j * width // columns, (j + 1) * width // columns
            own = []
            for x, y, w, h in boxes:
                left, top = max(x, x0), max(y, y0)
                right, bottom = min(x + w, x1), min(y + h, y1)
                if right > left and bottom > top:
                    seen = (right - left) * (bottom - top) / (w * h)
                    if seen >= 0.5:
                        own.append([left - x0, top - y0, right - left, bottom - top])
            out.append((photo[y0:y1, x0:x1], np.array(own).reshape(-1, 4)))
    return out


def _write(root: Path, split: str, cut: list[tuple], name: str) -> None:
    folder = root / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    images, objects = [], []
    for i, (photo, boxes) in enumerate(cut, start=1):
        Image.fromarray(photo).save(folder / f"{split}_{i}.png")
        height, width = photo.shape[:2]
        images.append({"file_name": f"{split}_{i}.png", "height": height, "width": width})
        objects += [{"image_id": i, "label": 0, "bbox": box} for box in boxes.tolist()]
    coco.write(root, split, assemble(images, objects, [name]))


def write_nuclei(root: Path, source: Path) -> Path:
    image, mask = (
        np.asarray(Image.open(source / "data" / "images" / f"{name}.tif"))
        for name in ("img2d", "mask2d")
    )
    low, high = np.percentile(image, (0.1, 99.9))
    grey = (((image - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
    splits = {
        "train": [np.s_[:384, :256]],
        "val": [np.s_[384:, :256]],
        "test": [np.s_[:256, 256:], np.s_[256:, 256:]],
    }
    for split, pieces in splits.items():
        folder = root / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        images, objects = [], []
        for i, at in enumerate(pieces, start=1):
            Image.fromarray(grey[at]).convert("RGB").save(folder / f"{split}_{i}.png")
            height, width = grey[at].shape
            images.append({"file_name": f"{split}_{i}.png", "height": height, "width": width})
            for number in np.unique(mask[at])[1:]:
                own = mask[at] == number
                y, x = own.nonzero()
                x0, y0 = int(x.min()), int(y.min())
                box = [x0, y0, int(x.max()) + 1 - x0, int(y.max()) + 1 - y0]
                code = to_rle(own[None])[0]
                objects.append(
                    {
                        "image_id": i,
                        "label": 0,
                        "bbox": box,
                        "segmentation": code,
                        "area": int(own.sum()),
                    }
                )
        coco.write(root, split, assemble(images, objects, ["nucleus"]))
    return root


if __name__ == "__main__":
    main()
