"""How a detector's predictions are drawn."""

import numpy as np
from PIL import Image

from rmt.detection.predict import colour_of, draw_detections
from rmt.detection.rle import to_rle


def test_overlapping_masks_are_drawn_by_the_best() -> None:
    masks = np.zeros((2, 40, 60), dtype=np.uint8)
    masks[0, 5:30, 5:40] = masks[1, 15:38, 20:55] = 1
    boxes = ([5.0, 5.0, 40.0, 30.0], [20.0, 15.0, 55.0, 38.0])
    detections = [
        {"box": box, "score": score, "label": label, "name": "", "mask": code}
        for label, (box, score, code) in enumerate(
            zip(boxes, (0.9, 0.6), to_rle(masks), strict=True)
        )
    ]
    drawn = np.asarray(draw_detections(Image.new("RGB", (60, 40)), detections))
    best, other = (np.array(colour_of(label)) // 2 for label in (0, 1))
    assert np.abs(drawn[25, 30] - best).max() <= 1  # in both
    assert np.abs(drawn[34, 45] - other).max() <= 1
    assert not drawn[34, 10].any()
    hidden = draw_detections(Image.new("RGB", (60, 40)), detections, min_score=0.95)
    assert not np.asarray(hidden).any()
