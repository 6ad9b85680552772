"""ImageNet's test sets as their authors ship them: validation, -V2, -A, -R, -Sketch, and ReaL."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from rmt.classification.datasets.drawn import Drawn, as_png
from rmt.classification.recipe import Data
from rmt.classification.samples import EvaluationRule, Samples
from rmt.data.folders import images_in, subfolders
from rmt.data.formats import Format, Source
from rmt.data.splits import Split
from rmt.messages import printable
from rmt.untrusted import read_json_file

_REAL = "real.json"


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


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read a test set of class folders; see :func:`class_folders`."""
    return {"test": class_folders(source.root)}


def class_folders(root: Path) -> Samples:
    """Return the images of class folders named by WordNet id or by ImageNet's class number.

    ImageNet-V2 numbers its folders 0 to 999; validation, -A, -R, -Sketch and -C name them n01440764
    and so on. Where a set has fewer than 1,000 classes (-A and -R have 200), only these count as
    predictions, as their authors evaluate. There is nothing to train on.

    Raises:
        ValueError: if a folder is not a class of ImageNet, or there is none.
    """
    wordnet = wordnet_ids()
    number = {name: i for i, name in enumerate(wordnet)} | {str(i): i for i in range(1000)}
    folders = subfolders(root)
    if strange := [p.name for p in folders if p.name not in number]:
        raise ValueError(f"{root} has folders that are not classes of ImageNet: {strange[:5]}")
    items, labels = [], []
    for folder in folders:
        images = images_in(folder)
        items += images
        labels += [number[folder.name]] * len(images)
    if not items:
        raise ValueError(f"{root} holds no class folder of ImageNet with images")
    present = tuple(sorted(set(labels)))
    rule = AllowedClasses(allowed=present if len(present) < 1000 else ())
    return Samples(items, labels, wordnet, rule=rule)


def read_real(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read ImageNet's validation images with the reassessed labels (ReaL, arXiv 2006.07159).

    The root holds ``real.json``, a list with the right classes of each validation image by number,
    and the images ``*_val_00000001.JPEG`` and so on, in class folders or not. An image without a
    right class is left out; any of several is a hit.

    Raises:
        ValueError: if ``real.json`` or the images are not there.
    """
    root = source.root
    if sign_real(root) is None:
        raise ValueError(f"no {root / _REAL}: the labels of google-research/reassessed-imagenet")
    right = _right_classes(root / _REAL)
    found = []
    for path in images_in(root):
        match = re.search(r"_val_(\d{8})$", path.stem)
        if classes := right.get(int(match[1])) if match else None:
            found.append((path, classes))
    if not found:
        raise ValueError(f"{root} holds no validation image with a label (*_val_00000001.JPEG)")
    samples = Samples(
        [path for path, _ in found],
        [classes[0] for _, classes in found],
        wordnet_ids(),
        rule=AcceptedClasses(accepted=tuple(tuple(sorted(set(c))) for _, c in found)),
    )
    return {"test": samples}


def _right_classes(path: Path) -> dict[int, list[int]]:
    """Return the right classes of each validation image, which count from 1."""
    content = read_json_file(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is not a list with the right classes of each image")
    for number, classes in enumerate(content, start=1):
        known = isinstance(classes, list) and all(type(c) is int and 0 <= c < 1000 for c in classes)
        if not known:
            raise ValueError(
                f"{path}: entry {number} is {printable(repr(classes), limit=60)}; expected a list "
                "of classes from 0 to 999"
            )
    return dict(enumerate(content, start=1))


def sign_real(root: Path) -> str | None:
    """Return the file of the reassessed labels, if it is there."""
    return _REAL if (root / _REAL).is_file() else None


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write the validation split as folders of ImageNet's first classes."""
    if split == "val":
        # There are a thousand ids, and a few classes are drawn.
        for wordnet, (name, images) in zip(wordnet_ids(), drawn.items(), strict=False):
            for i, image in enumerate(images):
                (root / wordnet).mkdir(parents=True, exist_ok=True)
                (root / wordnet / f"{name}_{i}.png").write_bytes(as_png(image))
    return root


def write_real(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write the validation split as numbered images, each right in two of the first classes."""
    if split == "val":
        root.mkdir(parents=True, exist_ok=True)
        labelled = [(image, label) for label, own in enumerate(drawn.values()) for image in own]
        for number, (image, _) in enumerate(labelled, start=1):
            (root / f"ILSVRC2012_val_{number:08}.png").write_bytes(as_png(image))
        (root / _REAL).write_text(json.dumps([[label, label + 1] for _, label in labelled]))
    return root


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


FORMAT = Format(name="imagenet", title="a test set of ImageNet", read=read, write=write)
REAL = Format(
    name="imagenet-real",
    title="ImageNet with ReaL labels",
    layout="real.json beside ImageNet's validation images",
    sign=sign_real,
    read=read_real,
    write=write_real,
)
