"""Each task with a tiny data set and a recipe of seconds, for suites over all tasks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rmt.detection.toy
import rmt.segmentation.toy
from rmt.recipes.schema import Recipe
from rmt.training.fit import load_recipe
from rmt.training.module import TrainingModule
from rmt.training.run_folder import LAST


@dataclass(frozen=True)
class Case:
    """A task, and how to make small data and a small run of it.

    Attributes:
        task: its name.
        recipe: a shipped recipe.
        write: writes images of two splits below a folder, so many each.
        keys: what makes the recipe small.
        image_folders: where the images of a split lie, ``{split}`` in place of its name.
        stem: a frozen part with batch norms.
        options: an option of prediction with a good value and a bad one.
    """

    task: str
    recipe: str
    write: Callable[[Path, int], Any]
    keys: dict[str, Any]
    image_folders: str
    stem: str
    options: tuple[str, Any, Any]
    classes: tuple[str, ...] = field(default=())

    def data(self, root: Path, images: int = 6) -> Path:
        """Write ``images`` images into each of the splits train and val."""
        self.write(root, images)
        return root

    def undivided(self, root: Path, images: int = 6) -> Path:
        """Write a data set of one split."""
        self.write(root, images)
        for path in sorted(root.rglob("val*"), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return root

    def images(self, root: Path, split: str) -> list[Path]:
        """Return the image files of a split."""
        folder = root / self.image_folders.format(split=split)
        return sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))

    def add_image(self, root: Path) -> None:
        """Add one image, labelled as another one is, to an undivided data set."""
        old = self.images(root, "train")[0]
        new = old.with_name(f"new_{old.name}")
        shutil.copy(old, new)
        mask = root / "masks" / "train" / f"{old.stem}.png"
        if mask.exists():
            shutil.copy(mask, mask.with_name(f"{new.stem}.png"))
        listing = root / "annotations" / "train.json"
        if listing.exists():
            content = json.loads(listing.read_text())
            entry = next(e for e in content["images"] if e["file_name"].endswith(old.name))
            name = entry["file_name"].replace(old.name, new.name)
            content["images"].append(entry | {"id": 999, "file_name": name})
            own = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
            content["annotations"] += [
                a | {"id": 9000 + i, "image_id": 999} for i, a in enumerate(own)
            ]
            listing.write_text(json.dumps(content))

    def recipe_for(self, root: Path, **keys: Any) -> Recipe:
        """Return the small recipe on some data; ``__`` in a keyword stands for a dot."""
        own = {key.replace("__", "."): value for key, value in keys.items()}
        every = {
            "data.root": root,
            "data.num_workers": 0,
            "trainer.accelerator": "cpu",
            "schedule.epochs": 1,
        }
        words = [
            word
            for key, value in (every | self.keys | own).items()
            for word in (f"--{key}", str(value))
        ]
        return load_recipe(self.recipe, words)


def _write_folders(root: Path, images: int) -> None:
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, low in (("dark", 0), ("light", 100)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(images // 2):
                pixels = noise.integers(low, low + 155, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}_{i}.png")


CASES = {
    case.task: case
    for case in (
        Case(
            task="classification",
            recipe="small/folder",
            write=_write_folders,
            keys={"model.name": "rmt_nano", "data.input_size": 32, "data.batch_size": 2},
            image_folders="{split}",
            stem="stem",
            options=("top", 2, 0),
            classes=("dark", "light"),
        ),
        Case(
            task="detection",
            recipe="small/detection",
            write=lambda root, images: rmt.detection.toy.toy(root, images=images),
            keys={
                "model.backbone": "rmt_nano",
                "model.min_size": 64,
                "model.max_size": 96,
                "model.roi_samples_per_image": 16,
                "augment.min_sizes": [48, 64],
                "data.batch_size": 2,
            },
            image_folders="images/{split}",
            stem="backbone.body.stem",
            options=("score", 0.0, 1.5),
            classes=rmt.detection.toy.SHAPES,
        ),
        Case(
            task="segmentation",
            recipe="small/segmentation",
            write=lambda root, images: rmt.segmentation.toy.toy(root, images=images),
            keys={
                "model.backbone": "rmt_nano",
                "model.channels": 16,
                "data.crop": 48,
                "data.batch_size": 2,
            },
            image_folders="images/{split}",
            stem="backbone.body.stem",
            options=("window", 32, -1),
            classes=rmt.segmentation.toy.SHAPES,
        ),
    )
}


def signal_at(monkeypatch: pytest.MonkeyPatch, calls: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a training step."""
    step = TrainingModule.training_step
    done = 0

    def training_step(self: TrainingModule, batch: object, batch_idx: int) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == calls:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)


def state(out: Path, file: str = LAST) -> dict[str, Any]:
    """Return everything in a checkpoint that determines how the run continues or ends."""
    content = torch.load(out / file, weights_only=True)
    return {
        "weights": content["state_dict"],
        "optimizer": content["optimizer_states"],
        "schedule": content["lr_schedulers"],
        "found": content["rmt"],
        "at": (content["epoch"], content["global_step"]),
    }


def assert_same(ours: object, expected: object, where: str = "") -> None:
    """Compare nested values; tensors must be equal bit for bit."""
    assert type(ours) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(ours, expected), where
    elif isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(ours[key], value, f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected), where
        for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert ours == expected, where
