"""Detection in large images: tile by tile, and one list of objects at the end."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_area

from rmt.data.windows import starts
from rmt.detection.boxes import nms_by_class
from rmt.detection.detector import Detections, Detector
from rmt.detection.rle import moved, to_rle

#: A box that comes so near to a border inside the image may be that of a cut object, in pixels.
_NEAR = 4


def detect_in_tiles(
    model: Detector,
    image: Tensor,
    *,
    tile: int,
    overlap: float,
    batch_size: int,
    score_threshold: float,
) -> tuple[Detections, list[dict] | None]:
    """Detect objects in overlapping tiles, each of which the model sees as an image of its own.

    An object in several tiles is found several times: non-maximum suppression by class keeps the
    best of the boxes whose IoU is above the model's threshold. A part of an object, cut off by the
    border of its tile, is dropped if more than this share of it lies in a larger box of its class
    from another tile, which scores at least half as much.

    Args:
        model: in eval mode.
        image: (3, h, w), uint8; only its tiles go to the model's device.
        tile: side of a tile, in pixels.
        overlap: of neighbouring tiles, as a share of the side. An object that is larger than the
            overlap may be found in parts only.
        batch_size: tiles that pass the network together.
        score_threshold: detections must score above it.

    Returns:
        ``boxes`` (n, 4), ``scores`` and ``labels`` (n,), best first and in the image's pixels; and
        their masks as run-length codes, None for models without masks. The model's limit of
        detections holds for each tile.
    """
    height, width = image.shape[1:]
    stride = max(1, round(tile * (1 - overlap)))
    corners = [(x, y) for y in starts(height, tile, stride) for x in starts(width, tile, stride)]
    found: list[Detections] = []
    codes: list[tuple[dict, tuple[int, int]]] = []
    for first in range(0, len(corners), batch_size):
        some = corners[first : first + batch_size]
        views = [image[:, y : y + tile, x : x + tile].float() / 255 for x, y in some]
        results = model(views, score_threshold=score_threshold)
        assert isinstance(results, list)
        for (x, y), own in zip(some, results, strict=True):
            if "masks" in own:
                codes += [(code, (x, y)) for code in to_rle(own.pop("masks").cpu().numpy())]
            found.append(_in_image(own, (x, y), tile, (height, width)))
    every = {name: torch.cat([own[name] for own in found]) for name in found[0]}
    keep = _merged(every, iou=model.iou_threshold)
    detections = {name: every[name][keep] for name in ("boxes", "scores", "labels")}
    if not model.has_masks:
        return detections, None
    kept = (codes[i] for i in keep.tolist())
    return detections, [moved(code, corner, (height, width)) for code, corner in kept]


def _in_image(
    own: Detections, corner: tuple[int, int], tile: int, size: tuple[int, int]
) -> Detections:
    """Return a tile's detections in the image's pixels, with the tile's number, and ``cut``."""
    (x, y), (height, width) = corner, size
    shift = own["boxes"].new_tensor([x, y, x, y])
    boxes = own["boxes"] + shift
    inner = boxes.new_tensor([x > 0, y > 0, x + tile < width, y + tile < height]).bool()
    border = boxes.new_tensor([x, y, x + tile, y + tile])
    cut = (((boxes - border).abs() < _NEAR) & inner).any(dim=1)
    tiles = torch.full_like(own["labels"], y * width + x)
    return own | {"boxes": boxes, "cut": cut, "tile": tiles}


def _merged(every: Detections, *, iou: float) -> Tensor:
    """Return the indices of the objects to keep, best first."""
    boxes, scores, labels = (every[name] for name in ("boxes", "scores", "labels"))
    area = box_area(boxes)
    part = torch.zeros_like(every["cut"])
    # One by one: all pairs of thousands of boxes would not fit into memory.
    for i in every["cut"].nonzero()[:, 0].tolist():
        low, high = boxes[:, :2].maximum(boxes[i, :2]), boxes[:, 2:].minimum(boxes[i, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        whole = (labels == labels[i]) & (every["tile"] != every["tile"][i]) & (area > area[i])
        # Before the suppression, which would prefer a part that scores higher than the whole.
        part[i] = (whole & (scores >= scores[i] / 2) & (shared > iou * area[i])).any()
    rest = (~part).nonzero()[:, 0]
    return rest[nms_by_class(boxes[rest], scores[rest], labels[rest], iou=iou)]
