"""ImageNet-C (arXiv 1903.12261): ``CORRUPTION/SEVERITY/CLASS/*``, evaluated as its authors do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from rmt.classification.datasets.drawn import Drawn
from rmt.classification.datasets.imagenet import AllowedClasses, class_folders
from rmt.classification.datasets.imagenet import write as write_class_folders
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.folders import images_in
from rmt.data.formats import Format, Source
from rmt.data.splits import Split

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
class CorruptionRule(AllowedClasses):
    """Top-1 of each corruption of ImageNet-C, and mCE."""

    def summarise(self, top1: Mapping[str, float]) -> dict[str, float]:
        """Return mCE in percent."""
        return {"mCE": mean_corruption_error(top1)}

    def take(self, indices: Sequence[int]) -> AllowedClasses:
        """Return the rule without groups, which some of the images do not make."""
        return AllowedClasses(allowed=self.allowed)


def sign(root: Path) -> str | None:
    """Return the folder of the first corruption, if it is there."""
    at = _folder_of(root, next(iter(ALEXNET_ERRORS))) if root.is_dir() else None
    return f"{at.relative_to(root)}/" if at else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read all corruptions and severities, to be evaluated in one pass.

    An extra level of folders (``noise/gaussian_noise``), as the archives unpack to, is looked
    through; corruptions beyond the 15 are not looked at.

    Raises:
        ValueError: if a corruption or severity is absent, or has other images than the first.
    """
    root = source.root
    folders = []
    for name in ALEXNET_ERRORS:
        at = _folder_of(root, name) or root / name
        folders += [at / str(severity) for severity in SEVERITIES]
    if absent := next((folder for folder in folders if not folder.is_dir()), None):
        name = "/".join(absent.parts[-2:])
        raise ValueError(f"{root} has no {name}; mCE needs 15 corruptions of 5 severities")
    first = class_folders(folders[0])
    allowed = first.rule.allowed if isinstance(first.rule, AllowedClasses) else ()
    names = [path.relative_to(folders[0]) for path in first.items if isinstance(path, Path)]
    for folder in folders[1:]:
        found = {path.relative_to(folder) for path in images_in(folder)}
        if odd := found ^ set(names):
            raise ValueError(
                f"{folder} and {folders[0]} hold different images: {len(odd)} are in one of them "
                f"only, such as {min(odd)}"
            )
    samples = replace(
        first,
        items=Product(folders, names),
        labels=list(first.labels) * len(folders),
        rule=CorruptionRule(groups=tuple(ALEXNET_ERRORS), allowed=allowed),
    )
    return {"test": samples}


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


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write the validation split once for each corruption and severity."""
    for name in ALEXNET_ERRORS:
        for severity in SEVERITIES:
            write_class_folders(root / name / str(severity), split, drawn)
    return root


def _folder_of(root: Path, name: str) -> Path | None:
    """Return the folder of a corruption: in the root, or one level deeper."""
    return next((p for p in (root / name, *root.glob(f"*/{name}")) if p.is_dir()), None)


FORMAT = Format(
    name="imagenet-c",
    title="ImageNet-C",
    layout="a folder per corruption, with a folder per severity",
    sign=sign,
    read=read,
    write=write,
)
