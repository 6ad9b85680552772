"""Where images with masks come from: ADE20K, Cityscapes, Pascal VOC, or a folder of one's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from rmt.data.bad_samples import UNREADABLE
from rmt.data.images import SUFFIXES, images_in, read_image
from rmt.data.splits import Splits
from rmt.files import digest_of_samples, identity
from rmt.segmentation import classes as known
from rmt.segmentation.masks import INVALID, Colour, plain_table, read_mask
from rmt.segmentation.recipe import Data
from rmt.segmentation.segmenter import IGNORED, MOST_CLASSES

_TRAIN, _VAL, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


@dataclass(frozen=True)
class Samples:
    """Images with masks of one split.

    Attributes:
        images: a file an image.
        masks: a file an image.
        classes: class names.
        table: mask value -> class index, (256,).
        palette: RGB of each mask value, where masks are coloured pictures.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    classes: tuple[str, ...]
    table: np.ndarray = field(repr=False)
    palette: Sequence[Colour] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB; raises ``ValueError`` naming a file that cannot be read."""
        return read_image(self.images[index])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) and its labels (H, W), both of 8 bits.

        Raises:
            ValueError: naming the file that cannot be read, or both if their sizes differ.
        """
        image = np.array(self.image(index))
        labels = read_mask(self.masks[index], self.table, self.palette)
        if image.shape[:2] != labels.shape:
            (h, w), (mask_h, mask_w) = image.shape[:2], labels.shape
            raise ValueError(
                f"mask {self.masks[index]} is {mask_w}x{mask_h} pixels, its image "
                f"{self.images[index]} {w}x{h}; they must be the same"
            )
        return image, labels

    def digest(self) -> str:
        """Return the digest of the names and sizes of images and masks."""
        files = zip(self.images, self.masks, strict=True)
        return digest_of_samples((identity(image), identity(mask)) for image, mask in files)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.images[index])

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images."""
        return replace(
            self,
            images=[self.images[i] for i in indices],
            masks=[self.masks[i] for i in indices],
        )


def open_splits(data: Data) -> Splits[Samples]:
    """Find the images and masks that a recipe's ``data`` names, and split them.

    A split that the data brings is kept; otherwise ``val_fraction`` of the images is held out, the
    same ones each time. To judge, the validation part is enough.

    Raises:
        ValueError: if there is nothing, an unknown layout, or images without masks.
    """
    root = Path(data.root)
    if not data.root or not root.is_dir():
        raise ValueError(f"data.root {data.root!r} is no folder; name that of the data set")
    kind = data.format if data.format != "auto" else _guess(root)
    if kind == "folder":
        return _folder(root, data)
    return _LAYOUTS[kind](root)


def _guess(root: Path) -> str:
    signs = {
        "folder": "classes.txt",
        "cityscapes": "leftImg8bit",
        "voc": "SegmentationClass",
        "ade20k": "annotations",
    }
    for kind, sign in signs.items():
        if (root / sign).exists():
            return kind
    raise ValueError(
        f"{root} has none of the known layouts: a folder of one's own needs images/, masks/ and "
        "classes.txt; ADE20K has annotations/, Cityscapes leftImg8bit/, VOC SegmentationClass/"
    )


def _ade20k(root: Path) -> Splits[Samples]:
    table = plain_table(150, reduce_zero_label=True)

    def part(name: str) -> Samples:
        images, masks = _pairs(root / "images" / name, root / "annotations" / name)
        return Samples(images, masks, known.ADE20K, table)

    has_train = (root / "images" / "training").is_dir()
    return Splits(part("training") if has_train else None, part("validation"))


def _cityscapes(root: Path) -> Splits[Samples]:
    # Every value up to 33 is in use; those that are not evaluated are ignored.
    table = np.full(256, INVALID, dtype=np.int16)
    table[:34] = table[255] = IGNORED
    table[list(known.CITYSCAPES.values())] = np.arange(len(known.CITYSCAPES))

    def part(name: str) -> Samples:
        images, masks = _pairs(
            root / "leftImg8bit" / name,
            root / "gtFine" / name,
            rename=lambda stem: stem.removesuffix("_leftImg8bit") + "_gtFine_labelIds",
        )
        return Samples(images, masks, tuple(known.CITYSCAPES), table)

    has_train = (root / "leftImg8bit" / "train").is_dir()
    return Splits(part("train") if has_train else None, part("val"))


def _voc(root: Path) -> Splits[Samples]:
    listings = root / "ImageSets" / "Segmentation"

    def part(name: str) -> Samples:
        listing = listings / f"{name}.txt"
        if not listing.is_file():
            raise ValueError(f"no {listing}, which names the images of VOC's part {name!r}")
        stems = listing.read_text().split()
        images = [root / "JPEGImages" / f"{stem}.jpg" for stem in stems]
        masks = [root / "SegmentationClass" / f"{stem}.png" for stem in stems]
        if lost := [path for path in (*images, *masks) if not path.is_file()]:
            raise ValueError(f"{listing} names {len(lost)} files that are not there: {lost[0]}")
        return Samples(images, masks, known.VOC, plain_table(21))

    return Splits(part("train") if (listings / "train.txt").is_file() else None, part("val"))


_LAYOUTS: dict[str, Callable[[Path], Splits[Samples]]] = {
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "voc": _voc,
}


def _folder(root: Path, data: Data) -> Splits[Samples]:
    names, palette = read_classes(root / "classes.txt")
    table = plain_table(len(names), reduce_zero_label=data.reduce_zero_label)
    if palette and data.reduce_zero_label:
        raise ValueError(
            f"{root / 'classes.txt'} lists colours, so that no mask value is 0 for unlabelled: "
            "set data.reduce_zero_label to false; unlisted black pixels are ignored anyway"
        )

    def part(*below: str) -> Samples:
        images, masks = _pairs(root.joinpath("images", *below), root.joinpath("masks", *below))
        return Samples(images, masks, names, table, palette)

    def named(choices: Sequence[str]) -> Samples | None:
        found = next((name for name in choices if (root / "images" / name).is_dir()), None)
        return part(found) if found else None

    train, val, test = named(_TRAIN), named(_VAL), named(_TEST)
    judged = val or (None if train else test)
    if judged:
        return Splits(train, judged, test)
    return replace(_split(train or part(), data.val_fraction), test=test)


def read_classes(path: Path) -> tuple[tuple[str, ...], list[Colour] | None]:
    """Read class names, one a line in the order of the mask values; maybe followed by R G B.

    Raises:
        ValueError: if there is no such file, fewer than two names, one twice, or colours on some
            lines only.
    """
    if not path.is_file():
        raise ValueError(f"no {path}: write the class names into it, line by line")
    names, colours = [], []
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        words = line.split()
        if len(words) > 3 and all(w.isdigit() and int(w) < 256 for w in words[-3:]):
            red, green, blue = map(int, words[-3:])
            colours.append((red, green, blue))
            line = " ".join(words[:-3])
        names.append(line)
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"{path} names {len(names)} classes; 2 to {MOST_CLASSES} are possible")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} names {sorted(twice)[0]!r} twice")
    if colours and len(colours) != len(names):
        raise ValueError(f"{path} gives colours for {len(colours)} of {len(names)} classes")
    return tuple(names), colours or None


def refuse_binary(samples: Samples) -> None:
    """Refuse masks that hold nothing but 0 and 255: all that is labelled is of one class.

    As a rule the first mask shows that they are others, and the rest is not read.

    Raises:
        ValueError: if they are all so.
    """
    seen: set[int] = set()
    for mask in () if samples.palette else samples.masks:
        with suppress(*UNREADABLE):  # training says what is wrong with it
            seen |= set(np.unique(read_mask(mask, np.arange(256))).tolist())
        if seen - {0, 255}:
            return
    if seen == {0, 255}:
        raise ValueError(
            f"the masks in {samples.masks[0].parent} hold only the values 0 and 255, and 255 means "
            "ignored: at most one class is left. Write the other one as 1 instead of 255"
        )


def _pairs(
    images: Path, masks: Path, *, rename: Callable[[str], str] = str
) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder and the mask of each, at the same place below another."""
    found = images_in(images)
    if not found:
        raise ValueError(f"{images} holds no image ({', '.join(SUFFIXES)})")
    at: dict[Path, Path] = {}
    for path in images_in(masks):
        other = at.setdefault(path.relative_to(masks).with_suffix(""), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} could both be the mask of one image; leave one of them there"
            )
    places = [p.relative_to(images).with_suffix("") for p in found]
    partners = [at.get(place.with_name(rename(place.name))) for place in places]
    if lost := [p for p, mask in zip(found, partners, strict=True) if mask is None]:
        raise ValueError(
            f"{len(lost)} of {len(found)} images have no mask in {masks}, first {lost[0].name}; "
            "an image and its mask have the same name but for the suffix"
        )
    return found, [mask for mask in partners if mask is not None]


def _split(samples: Samples, val_fraction: float) -> Splits[Samples]:
    """Hold out a share of the images, the same ones each time."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1")
    if len(samples) < 2:
        raise ValueError(f"{samples.images[0].parent} holds one image: too few to hold one out")
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    held = max(1, round(val_fraction * len(order)))
    return Splits(samples.take(sorted(order[held:])), samples.take(sorted(order[:held])))
