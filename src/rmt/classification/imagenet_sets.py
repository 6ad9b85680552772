"""ImageNet's test sets as their authors ship them: validation, -V2, -A, -R, -Sketch, ReaL, -C."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from rmt.classification.samples import EvaluationRule, Samples, eval_only
from rmt.data.images import SUFFIXES
from rmt.data.splits import Splits

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


@dataclass(frozen=True)
class AllowedClasses(EvaluationRule):
    """Only some classes may be predicted, as -A and -R are evaluated by their authors.

    Attributes:
        allowed: their indices; empty for all.
    """

    allowed: tuple[int, ...] = ()

    def apply(self, logits: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits that are -inf for the other classes, and the labels."""
        if not self.allowed:
            return logits, labels
        possible = logits.new_full(logits.shape[1:], -torch.inf)
        possible[list(self.allowed)] = 0
        return logits + possible, labels


@dataclass(frozen=True)
class AcceptedClasses(EvaluationRule):
    """Any of several classes is right (ReaL).

    Attributes:
        accepted: the right classes of each image.
    """

    accepted: tuple[tuple[int, ...], ...] = ()

    def apply(self, logits: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and as label the right class with the highest logit."""
        right = [list(self.accepted[i]) for i in indices.tolist()]
        best = [at[int(row[at].argmax())] for row, at in zip(logits, right, strict=True)]
        return logits, labels.new_tensor(best)

    def take(self, indices: Sequence[int]) -> AcceptedClasses:
        """Return the rule for some of the images."""
        return replace(self, accepted=tuple(self.accepted[i] for i in indices))


@dataclass(frozen=True)
class CorruptionRule(AllowedClasses):
    """Top-1 of each corruption of ImageNet-C, and mCE."""

    def summarise(self, top1: Mapping[str, float]) -> dict[str, float]:
        """Return mCE in percent."""
        return {"mCE": mean_corruption_error(top1)}

    def take(self, indices: Sequence[int]) -> AllowedClasses:
        """Return the rule without groups, which some of the images do not make."""
        return AllowedClasses(allowed=self.allowed)


def class_folders(root: Path) -> Splits[Samples]:
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
        images = sorted(path for path in folder.rglob("*") if _is_image(path))
        items += images
        labels += [number[folder.name]] * len(images)
    if not items:
        raise ValueError(f"{root} holds no class folder of ImageNet with images")
    present = tuple(sorted(set(labels)))
    rule = AllowedClasses(allowed=present if len(present) < 1000 else ())
    return eval_only(Samples(items, labels, wordnet, rule=rule))


def real_labels(root: Path) -> Splits[Samples]:
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
        if match and _is_image(path):
            classes = right[int(match[1]) - 1]
            if classes:
                found.append((path, classes))
    if not found:
        raise ValueError(f"{root} holds no validation image with a label (*_val_00000001.JPEG)")
    return eval_only(
        Samples(
            [path for path, _ in found],
            [classes[0] for _, classes in found],
            wordnet_ids(),
            rule=AcceptedClasses(accepted=tuple(tuple(sorted(set(c))) for _, c in found)),
        )
    )


def corruptions(root: Path) -> Splits[Samples]:
    """Read ImageNet-C (arXiv 1903.12261): ``CORRUPTION/SEVERITY/CLASS/*``, all images in one pass.

    An extra level of folders (``noise/gaussian_noise``), as the archives unpack to, is looked
    through; corruptions beyond the 15 are not looked at.

    Raises:
        ValueError: if a corruption or severity is absent, or has other images than the first.
    """
    folders = []
    for name in ALEXNET_ERRORS:
        at = next((p for p in (root / name, *root.glob(f"*/{name}")) if p.is_dir()), root / name)
        folders += [at / str(severity) for severity in SEVERITIES]
    if absent := next((folder for folder in folders if not folder.is_dir()), None):
        name = "/".join(absent.parts[-2:])
        raise ValueError(f"{root} has no {name}; mCE needs 15 corruptions of 5 severities")
    first = class_folders(folders[0]).val
    allowed = first.rule.allowed if isinstance(first.rule, AllowedClasses) else ()
    names = [path.relative_to(folders[0]) for path in first.items if isinstance(path, Path)]
    for folder in folders[1:]:
        found = {path.relative_to(folder) for path in folder.rglob("*") if _is_image(path)}
        if odd := found ^ set(names):
            raise ValueError(
                f"{folder} and {folders[0]} hold different images: {len(odd)} are in one of them "
                f"only, such as {min(odd)}"
            )
    return eval_only(
        replace(
            first,
            items=Product(folders, names),
            labels=list(first.labels) * len(folders),
            rule=CorruptionRule(groups=tuple(ALEXNET_ERRORS), allowed=allowed),
        )
    )


@dataclass(frozen=True)
class Product(Sequence[Path]):
    """The same files in each of many folders; ImageNet-C's 3.75 million paths are never a list.

    Attributes:
        folders: one behind the other.
        names: of the files, below each.
    """

    folders: Sequence[Path]
    names: Sequence[Path]

    def __len__(self) -> int:
        return len(self.folders) * len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        folder, name = divmod(index, len(self.names))
        return self.folders[folder] / self.names[name]


def mean_corruption_error(top1: Mapping[str, float]) -> float:
    """Return mCE in percent (arXiv 1903.12261, section 4.3) from each corruption's mean top-1.

    Each corruption's error, averaged over its severities, counts as a share of AlexNet's.
    """
    ratios = [100 * (100 - top1[name]) / alexnet for name, alexnet in ALEXNET_ERRORS.items()]
    return sum(ratios) / len(ratios)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def same_imagenet(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether ``names`` are ImageNet-1K's classes otherwise called, and ``classes`` its ids.

    Shards without names number the classes, and Hugging Face's files describe them ("tench, Tinca
    tinca"); all are in the order of the WordNet ids.
    """
    if not len(names) == len(classes) == 1000 or tuple(classes) != wordnet_ids():
        return False
    if list(names) == [str(i) for i in range(len(classes))]:
        return True
    info = ImageNetInfo()
    described = [info.index_to_description(i) for i in range(len(classes))]
    first, theirs = ([name.split(",")[0].lower() for name in of] for of in (described, names))
    return first == theirs


def wordnet_ids() -> tuple[str, ...]:
    """Return ImageNet-1K's WordNet ids in the order of its classes."""
    info = ImageNetInfo()
    return tuple(info.index_to_label_name(i) for i in range(1000))
