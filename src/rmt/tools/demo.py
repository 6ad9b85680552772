"""A first look in two minutes: train, evaluate and predict on real handwritten digits."""

from __future__ import annotations

import shutil
from pathlib import Path

from rmt.classification.datasets import open_splits
from rmt.classification.recipe import Data
from rmt.tools.predict import describe, predict_files
from rmt.tools.train import train

PREDICTED = 8
#: A folder with this file was made by the demo, and may be replaced by it.
MARKER = ".rmt-demo"


def run_demo(out: str | Path) -> int:
    """Train ``rmt_nano`` on scikit-learn's digits, write the report, predict some test images.

    Args:
        out: folder of the run; an earlier demo there is replaced.

    Returns:
        Exit status: 0 if everything went well.

    Raises:
        ValueError: if ``out`` holds something other than an earlier demo.
    """
    out = Path(out)
    marker = out / MARKER
    if out.is_dir() and any(out.iterdir()):
        if not marker.is_file():
            raise ValueError(
                f"{out} is not empty and was not made by `rmt demo`; name another folder with --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("This folder was made by `rmt demo`, which replaces it when it runs again.\n")
    if status := train("small/digits", out=out):
        return status
    samples = open_splits(Data(format="digits")).test
    assert samples is not None
    folder = out / "test-images"
    folder.mkdir()
    for index in range(PREDICTED):
        true = samples.classes[samples.labels[index]]
        samples.image(index).resize((64, 64)).save(folder / f"{index:02d}_true_{true}.png")
    print(f"\nrmt predict {folder} --checkpoint {out} --top 3 --out {out / 'predicted'}")
    for record in predict_files([folder], out, top=3, out=out / "predicted"):
        print(describe(record))
    print(
        f"\nLook at {out / 'report'}: predictions.png, confusion.png, learning_curve.png, "
        "decay.png, attention.png."
        "\nNext, with your own images (one folder per class):"
        "\n  rmt train small/folder --data.root YOUR_FOLDER"
        "\n  rmt predict YOUR_IMAGES --checkpoint runs/small/folder"
    )
    return 0
