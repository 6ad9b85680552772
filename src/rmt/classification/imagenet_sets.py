"""ImageNet's test sets as their authors ship them: validation, -V2, -A, -R, -Sketch, ReaL, -C."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from timm.data import ImageNetInfo

from rmt.classification.samples import Samples, Splits, only_judged
from rmt.images import SUFFIXES

#: Errors of AlexNet in percent, the unit of mCE (arXiv 1903.12261, table 1).
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6,
    "shot_noise": 89.4,
    "impulse_noise": 92.3,
    "defocus_blur": 82.0,
    "glass_blur": 82.6,
    "motion_blur": 78.6,
    "zoom_blur": 79.8,
    "snow": 86.7,
    "frost": 82.7,
    "fog": 81.9,
    "brightness": 56.5,
    "contrast": 85.3,
    "elastic_transform": 64.6,
    "pixelate": 71.8,
    "jpeg_compression": 60.7,
}
SEVERITIES = (1, 2, 3, 4, 5)


def class_folders(root: Path) -> Splits:
    """Read a test set of class folders named by WordNet id or by ImageNet's class number.

    ImageNet-V2 numbers its folders 0 to 999; validation, -A, -R, -Sketch and -C name them n01440764
    and so on. Where a set has fewer than 1,000 classes (-A and -R have 200), only these count as
    answers, as their authors evaluate. There is nothing to train on.

    Raises:
        ValueError: if a folder is no class of ImageNet, or there is none.
    """
    wordnet = wordnet_ids()
    number = {name: i for i, name in enumerate(wordnet)} | {str(i): i for i in range(1000)}
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if strange := [p.name for p in folders if p.name not in number]:
        raise ValueError(f"{root} has folders that are no class of ImageNet: {strange[:5]}")
    items, labels = [], []
    for folder in folders:
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        items += images
        labels += [number[folder.name]] * len(images)
    if not items:
        raise ValueError(f"{root} holds no class folder of ImageNet with images")
    present = tuple(sorted(set(labels)))
    allowed = present if len(present) < 1000 else ()
    return only_judged(Samples(items, labels, wordnet, allowed=allowed))


def real_labels(root: Path) -> Splits:
    """Read ImageNet's validation images with the reassessed labels (ReaL, arXiv 2006.07159).

    ``root`` holds ``real.json``, a list with the right classes of each validation image by number,
    and the images ``*_val_00000001.JPEG`` and so on, in class folders or not. An image without a
    right class is left out; any of several is a hit.

    Raises:
        ValueError: if ``real.json`` or the images are not there.
    """
    file = root / "real.json"
    if not file.is_file():
        raise ValueError(f"no {file}: the labels of google-research/reassessed-imagenet")
    right = json.loads(file.read_text())
    found = []
    for path in sorted(root.rglob("*")):
        match = re.search(r"_val_(\d{8})$", path.stem)
        if match and path.suffix.lower() in SUFFIXES:
            classes = right[int(match[1]) - 1]
            if classes:
                found.append((path, classes))
    if not found:
        raise ValueError(f"{root} holds no validation image with a label (*_val_00000001.JPEG)")
    return only_judged(
        Samples(
            [path for path, _ in found],
            [classes[0] for _, classes in found],
            wordnet_ids(),
            accepted=tuple(frozenset(classes) for _, classes in found),
        )
    )


def corruption_error(
    root: str | Path, top1: Callable[[Path], float]
) -> dict[str, float | dict[str, float]]:
    """Return the mean corruption error of ImageNet-C (arXiv 1903.12261, section 4.3), in percent.

    Args:
        root: ``CORRUPTION/SEVERITY/CLASS/*``, the 15 corruptions of 5 severities; an extra level
            of folders (``noise/gaussian_noise``), as the archives unpack to, is looked through.
        top1: from a folder of class folders to a top-1 accuracy in percent.

    Returns:
        ``mCE``; ``error``, the plain mean error; ``by_corruption``, each one's mean error divided
        by AlexNet's.

    Raises:
        ValueError: if a corruption or severity is absent.
    """
    root = Path(root)
    ratios, errors = {}, []
    for name, alexnet in ALEXNET_ERRORS.items():
        at = next((p for p in (root / name, *root.glob(f"*/{name}")) if p.is_dir()), None)
        absent = [s for s in SEVERITIES if at is None or not (at / str(s)).is_dir()]
        if at is None or absent:
            raise ValueError(f"{root} has no {name}/{absent[0]}; mCE needs all 15 corruptions")
        error = sum(100 - top1(at / str(severity)) for severity in SEVERITIES) / len(SEVERITIES)
        ratios[name] = 100 * error / alexnet
        errors.append(error)
    return {
        "mCE": sum(ratios.values()) / len(ratios),
        "error": sum(errors) / len(errors),
        "by_corruption": ratios,
    }


def wordnet_ids() -> tuple[str, ...]:
    """Return ImageNet-1K's WordNet ids in the order of its classes."""
    info = ImageNetInfo()
    return tuple(info.index_to_label_name(i) for i in range(1000))
