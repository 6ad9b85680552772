"""A trained timm model that labels every position of an image, for token labelling."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import load_state_dict
from torch import Tensor
from torchvision.transforms import functional as TF

from rmt.classification.datasets import open_splits
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.classification.token_labels import map_name, refuse_shared_maps
from rmt.files import write_torch
from rmt.messages import did_you_mean, printable

log = logging.getLogger(__name__)


class Teacher:
    """A frozen classifier whose head is applied to each position of its last map.

    It is not an ``nn.Module``, so it is neither trained, nor averaged, nor saved in checkpoints.

    Args:
        name: a timm model whose ``forward_features`` returns a map.
        num_classes: number of classes of data and teacher.
        weights: its state dict, ``.pth`` or ``.safetensors``; empty takes timm's own weights.
        mean: per channel, that the images have been normalised with.
        std: likewise.

    Raises:
        ValueError: if timm does not know the model (the nearest is named), or the weights do not
            fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        weights: str | Path = "",
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        if not timm.is_model(name):
            raise ValueError(f"unknown teacher {name!r}{did_you_mean(name, timm.list_models())}")
        self.model: Any = timm.create_model(name, pretrained=not weights, num_classes=num_classes)
        if weights:
            try:
                self.model.load_state_dict(load_state_dict(str(weights), weights_only=True))
            except Exception as error:  # a damaged file can raise anything
                reason = printable(error, keep="\n", limit=2000)
                raise ValueError(f"{weights} does not fit teacher {name!r}: {reason}") from error
        self.model.eval().requires_grad_(False)
        cfg: Any = self.model.pretrained_cfg
        self.size: tuple[int, int] = cfg["input_size"][1:]
        # From our mean and standard deviation to the teacher's.
        theirs, ours = (torch.tensor(v)[:, None, None] for v in (cfg["std"], std))
        self.scale = ours / theirs
        self.shift = (torch.tensor(mean) - torch.tensor(cfg["mean"]))[:, None, None] / theirs

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the head's output at each position of the last map.

        Args:
            images: (B, 3, H, W), normalised by ``mean`` and ``std``.

        Returns:
            (B, K, h, w), float32.

        Raises:
            ValueError: if the model's features have no spatial positions.
        """
        self.model.to(images.device)
        images = images * self.scale.to(images) + self.shift.to(images)
        found = self.model.forward_features(images)
        if found.ndim != 4:
            raise ValueError(
                f"the teacher's features have shape {tuple(found.shape)}, not (B, C, H, W): choose "
                "a model that keeps spatial positions, such as a convolutional network"
            )
        last = found.shape[1] != self.model.num_features  # as in Swin
        height, width = found.shape[1:3] if last else found.shape[2:]
        if last:
            each = found.flatten(0, 2)[:, None, None]
        else:
            each = found.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        # The head averages over positions; here each map has only one.
        logits = self.model.forward_head(each).float()
        return logits.unflatten(0, (len(images), height, width)).permute(0, 3, 1, 2)

    def labels(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class probabilities at each position of a grid of ``size``: (B, h, w, K)."""
        with torch.autocast(images.device.type, enabled=False):
            seen = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
            probabilities = self.logits(seen).softmax(dim=1)
        # With antialiasing a coarser grid is an average; a finer one is plain bilinear.
        return F.interpolate(probabilities, size, mode="bilinear", antialias=True).permute(
            0, 2, 3, 1
        )


def write_maps(
    teacher: Teacher,
    samples: Samples,
    folder: str | Path,
    *,
    img_size: int | None = None,
    top: int = 5,
    device: str = "cpu",
) -> Iterator[Path]:
    """Write the label map of each image that has none yet, and yield its path.

    A map covers the whole image, resized to a square. An unreadable image is named in the log.

    Args:
        teacher: made for images of mean 0 and std 1.
        samples: images with paths of the form ``CLASS/NAME.SUFFIX``, or within larger files.
        folder: of the maps.
        img_size: side of the square; None takes the teacher's own. 18 times its stride gives maps
            of the TokenLabeling project's size.
        top: number of classes to keep at each position.
        device: where the teacher runs.
    """
    refuse_shared_maps(samples)
    size = [img_size, img_size] if img_size else list(teacher.size)
    for index in range(len(samples)):
        path = Path(folder) / map_name(samples.place(index))
        if path.is_file():
            continue
        try:
            image = samples.image(index)
        except (ValueError, FileNotFoundError) as error:
            log.warning("no label map: %s", error)
            continue
        pixels = TF.to_tensor(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        logits = teacher.logits(pixels[None].to(device))[0]
        values, classes = logits.topk(min(top, len(logits)), dim=0)
        # float16 holds integers exactly up to 2048 only.
        dtype = torch.float16 if teacher.model.num_classes <= 2048 else torch.float32
        found = torch.stack([values, classes.to(values)]).to(dtype).cpu()
        write_torch(path, found)
        yield path


def label_folder(
    name: str,
    data: str | Path,
    folder: str | Path,
    *,
    kind: str = "auto",
    weights: str | Path = "",
    img_size: int | None = None,
    device: str = "cpu",
) -> int:
    """Write label maps for the training images of a data set; return how many were written.

    Args:
        name: of the teacher, a timm model with as many classes as the data.
        data: as ``data.root`` in a recipe.
        folder: of the maps; existing maps stay.
        kind: as ``data.format`` in a recipe.
        weights: the teacher's state dict; empty takes timm's own weights.
        img_size: see :func:`write_maps`.
        device: where the teacher runs.

    Raises:
        ValueError: for an unknown teacher or format, weights that do not fit, or data without
            training images.
    """
    samples = open_splits(Data(root=str(data), format=kind)).train
    if samples is None:
        raise ValueError(f"{data} has no training images to label, only images to evaluate")
    if samples.multi_label:
        raise ValueError(f"the images of {data} have several labels each; token labels are for one")
    teacher = Teacher(
        name, len(samples.classes), weights=weights, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return sum(1 for _ in write_maps(teacher, samples, folder, img_size=img_size, device=device))
